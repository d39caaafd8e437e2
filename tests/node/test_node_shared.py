"""Several models, several devices, names and keys."""

import asyncio
import re

import pytest

from tests.support.nodes import MODEL, client, completion, paced, running, stream, stream_all, until

OTHER = """aliases = ["gpt-4o", "chat"]
[[models]]
name = "other"
path = "smollm2-135m"
aliases = ["*"]
max_model_len = 1024
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Two models in one arena that holds neither of their queues."""
    tight = paced(fixed_us=0.0, kv="48MiB", model=OTHER, cluster="hold_timeout_s = 30")
    with running(tmp_path_factory.mktemp("shared"), tight) as node:
        until(lambda: node.log().count("instance_ready") == 2, "both models")
        yield node


def text(node, model):
    return node.complete("Hello", 8, model=model)["choices"][0]["text"]


def test_all_names_are_listed(node):
    listed = {item["id"]: item for item in node.get("/v1/models").json["data"]}
    assert listed.keys() == {MODEL, "gpt-4o", "chat", "other"}
    assert listed["gpt-4o"]["root"] == MODEL
    assert [listed[name]["max_model_len"] for name in (MODEL, "other")] == [2048, 1024]
    assert {item["blitzgw"]["state"] for item in listed.values()} == {"serving"}


def test_aliases_answer(node):
    assert text(node, "gpt-4o") == text(node, "chat") == text(node, MODEL)
    for name, instance in [("chat", f"{MODEL}@test/p0"), ("anything", "other@test/p0")]:
        reply = node.post("/v1/completions", completion("Hello", model=name))
        assert reply.headers["x-blitzgw-instance"] == instance


async def test_two_models_share_the_memory(node):
    asked = [
        completion(f"Tale {i} " * 20, 200, ignore_eos=True, model=(MODEL, "other")[i % 2])
        for i in range(24)
    ]
    alone = [(await stream_all(node.url, [body]))[0] for body in asked]
    before = node.metric("vllm:num_preemptions_total")
    together = await stream_all(node.url, asked)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert node.metric("vllm:num_preemptions_total") > before
    assert node.load() == (0, 0)


async def test_a_killed_worker_takes_both_down_and_brings_both_back(node):
    asked = [completion("Hello", 150, ignore_eos=True, model=model) for model in (MODEL, "other")]
    whole = await stream_all(node.url, asked)
    killed = []

    def kill():
        if not killed:
            killed.append(asyncio.ensure_future(asyncio.to_thread(node.kill_worker)))

    answers = await stream_all(node.url, asked, kill)
    await killed[0]
    assert [answer.text for answer in answers] == [answer.text for answer in whole]


SECOND_DEVICE = (
    '[[devices]]\nid = "p1"\nkind = "paced"\nkv_bytes = "1GiB"\ncost = {fixed_us = 100.0}\n'
)


async def test_two_devices_share_the_work_and_stand_in_for_each_other(tmp_path):
    two = paced().replace("[[models]]", SECOND_DEVICE + "[[models]]")
    with running(tmp_path, two) as node:
        ready = lambda: node.get("/ready").json["models"][MODEL]["instances"] == 2  # noqa: E731
        await asyncio.to_thread(until, ready, "both instances")
        asked = [completion(f"Tale {i}", 100, ignore_eos=True) for i in range(8)]
        whole = await stream_all(node.url, asked)
        used = set(re.findall(r"instance_ready instance=(\S+)", node.log()))
        assert used == {f"{MODEL}@test/p0", f"{MODEL}@test/p1"}
        async with client() as session:
            tasks = [asyncio.ensure_future(stream(session, node.url, body)) for body in asked]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(node.kill_worker)
            assert node.get("/ready").status == 200
            answers = await asyncio.gather(*tasks)
        assert [answer.text for answer in answers] == [answer.text for answer in whole]
        assert len(set(re.findall(r"worker_lost device=(\S+)", node.log()))) == 1


def test_keys_are_asked_for(tmp_path):
    (tmp_path / "keys").write_text("# ours\nfrom-file\n")
    (tmp_path / "keys").chmod(0o600)
    keys = f'api_keys = ["secret"]\napi_key_file = "{tmp_path / "keys"}"'
    with running(tmp_path, paced(http=keys)) as node:
        for path in ("/health", "/ready", "/version"):
            assert node.get(path).status == 200
        for path in ("/v1/models", "/metrics", "/load", "/nowhere"):
            assert node.get(path).status == 401
            assert node.get(path, Authorization="Bearer wrong").status == 401
        reply = node.post("/v1/completions", completion("Hello"))
        assert (reply.status, reply.error["type"]) == (401, "AuthenticationError")
        for key in ("secret", "from-file"):
            assert node.get("/v1/models", Authorization=f"Bearer {key}").status == 200
        assert node.get("/nowhere", Authorization="Bearer secret").status == 404
        assert node.get("/v1/completions", Authorization="Bearer secret").status == 405
        assert "secret" not in node.log()
        assert "from-file" not in node.log()
