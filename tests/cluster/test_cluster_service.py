"""Several nodes are one service: models, definitions, keys, clients, departures."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

from tests.support.clusters import NOTHING, Cluster, cluster, paced, within
from tests.support.nodes import MODEL, ROOT, completion, stream_all, until


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A front without anything, and two nodes that serve different models."""
    folder = tmp_path_factory.mktemp("mixed")
    other = paced().replace("max_model_len = 2048", 'name = "second"\naliases = ["also-second"]')
    with cluster(folder, front=NOTHING, one=paced(), two=other) as made:
        made.settle(2)
        known = {MODEL, "second"}
        until(lambda: all(known <= names(made, name) for name in made.nodes), "both models")
        yield made


def names(made, asked):
    return {item["id"] for item in made.nodes[asked].get("/v1/models").json["data"]}


def test_every_node_answers_for_every_model_alike(mixed):
    answers = {}
    for name, node in mixed.nodes.items():
        assert names(mixed, name) == {MODEL, "second", "also-second"}
        for model in (MODEL, "second", "also-second"):
            body = completion("One, two,", 12, model=model, temperature=0.8, seed=5)
            reply = node.post("/v1/completions", body)
            assert reply.status == 200, reply.body
            assert reply.headers["x-blitzgw-node"] == name
            served = reply.headers["x-blitzgw-instance"]
            assert served == (f"{MODEL}@one/p0" if model == MODEL else "second@two/p0")
            answers.setdefault(model, set()).add(reply.json["choices"][0]["text"])
    assert all(len(texts) == 1 for texts in answers.values()), answers


def test_text_is_the_same_without_the_checkpoint(mixed):
    asked = {
        "/tokenize": {"model": MODEL, "messages": [{"role": "user", "content": "héllo 🦙"}]},
        "/detokenize": {"model": MODEL, "tokens": [9906, 28, 1905, 17, 2]},
    }
    for path, body in asked.items():
        front, one = (mixed.nodes[name].post(path, body).json for name in ("front", "one"))
        assert front == one


def test_an_unknown_model_is_refused_everywhere(mixed):
    for node in mixed.nodes.values():
        reply = node.post("/v1/completions", completion("x", model="third"))
        assert (reply.status, reply.error["param"]) == (404, "model")
        assert "second" in reply.error["message"]


def test_the_official_client_works_against_a_node_without_an_instance(mixed):
    base = mixed.nodes["front"].url + "/v1"
    with openai.OpenAI(base_url=base, api_key="unused", max_retries=0, timeout=30) as client:
        whole = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=12, seed=1
        )
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=12,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL, prompt=[1] * 5000, max_tokens=1)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="third", prompt="x")


def test_ready_tells_what_the_cluster_has(mixed):
    reply = mixed.nodes["front"].get("/ready")
    assert (reply.status, reply.json["ready"]) == (200, True)
    assert {m: s["instances"] for m, s in reply.json["models"].items()} == {MODEL: 1, "second": 1}


def test_requests_of_all_nodes_can_be_seen_at_any(mixed):
    async def look():
        url = mixed.nodes["front"].url
        body = completion("x", 1500, ignore_eos=True, model="second")
        task = asyncio.get_running_loop().create_task(stream_all(url, [body]))
        try:
            while not (found := mixed.get("one", "requests")):
                await asyncio.sleep(0.02)
            return found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    [request] = asyncio.run(look())
    assert (request["ingress"], request["model"]) == ("front", "second")
    assert request["instance"] == "second@two/p0"
    assert request["max_tokens"] == 1500


def test_metrics_tell_of_peers(mixed):
    def alive():
        lines = mixed.nodes["one"].get("/metrics").body.decode().splitlines()
        return 'blitzgw_peers{state="alive"} 2.0' in lines

    until(alive, "two peers in the metrics")


def test_a_stranger_changes_nothing_and_hears_nothing(mixed):
    """Garbage on both sockets."""
    address = ("127.0.0.1", mixed.ports[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 40, 1400, 60_000):
            udp.sendto(os.urandom(size), address)
        udp.settimeout(0.3)
        with pytest.raises(TimeoutError):
            udp.recv(1)
    with socket.create_connection(address, timeout=10) as tcp:
        tcp.sendall(os.urandom(4096))
        with contextlib.suppress(ConnectionResetError):
            assert tcp.recv(1) == b""
    assert mixed.alive("front") == {"front", "one", "two"}


def test_a_node_with_another_key_is_not_let_in(mixed, tmp_path):
    other = Cluster(tmp_path, [mixed.ports[0]])
    stranger = other.add("stranger", NOTHING)
    try:
        stranger.listen()
        within(10.0, lambda: "cluster_listening" in stranger.log(), "its own cluster")
        time.sleep(1.5)  # several attempts to join
        assert other.alive("stranger") == {"stranger"}
        assert mixed.alive("front") == {"front", "one", "two"}
    finally:
        stranger.signal(signal.SIGTERM)
        assert stranger.end() == 0


def test_a_name_given_twice_is_told_and_the_younger_is_not_ready(mixed, tmp_path):
    other = Cluster(tmp_path, [mixed.ports[0]], key=mixed.key)
    twin = other.add("two", NOTHING)
    try:
        twin.listen()
        reason = "another node is called two: set [node] name"
        within(15.0, lambda: twin.get("/ready").json["reason"] == reason, "refusal")
        for node in (twin, *mixed.nodes.values()):
            within(10.0, lambda node=node: "node_name_conflict name=two" in node.log(), "warning")
        nodes = mixed.get("front", "nodes")
        assert sorted(n["name"] for n in nodes if n["conflict"]) == ["two", "two"]
        assert mixed.nodes["two"].get("/ready").status == 200
        reply = mixed.nodes["front"].post("/v1/completions", completion("x", 2, model="second"))
        assert reply.status == 200
    finally:
        twin.signal(signal.SIGTERM)
        assert twin.end() == 0
    until(lambda: not any(n["conflict"] for n in mixed.get("front", "nodes")), "peace")


def test_a_different_definition_of_a_name_is_refused_until_the_first_has_gone(tmp_path):
    shorter = paced().replace("max_model_len = 2048", "max_model_len = 512")
    with cluster(tmp_path, front=NOTHING, first=paced()) as made:
        made.settle(1)
        until(lambda: names(made, "front") == {MODEL}, "the model")
        made.add("second", shorter)
        made.nodes["second"].listen()
        until(lambda: made.alive("front") == {"front", "first", "second"}, "the newcomer")
        until(lambda: len(made.serving("front")) == 2, "its instance")
        for node in made.nodes.values():
            within(
                10.0, lambda node=node: "model_conflict name=smollm2-135m" in node.log(), "event"
            )
            for _ in range(4):
                reply = node.post("/v1/completions", completion([5] * 600, 2))
                assert reply.status == 200, reply.body
                assert reply.headers["x-blitzgw-instance"] == f"{MODEL}@first/p0"
        [held, refused] = made.get("front", "models")
        assert (held["conflict"], held["prevails"], held["nodes"]) == (True, True, ["first"])
        assert (refused["prevails"], refused["nodes"]) == (False, ["second"])
        made.nodes["first"].workers()
        made.nodes["first"].signal(signal.SIGTERM)
        assert made.nodes["first"].end() == 0

        def switched():
            reply = made.nodes["front"].post("/v1/completions", completion("x", 2))
            return reply.headers.get("x-blitzgw-instance") == f"{MODEL}@second/p0"

        until(switched, "the other definition")


def test_without_a_key_nothing_listens_and_joining_is_a_mistake(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[cluster]\nhost = "0.0.0.0"\njoin = ["10.0.0.1:7946"]\n')
    env = {key: value for key, value in os.environ.items() if key != "BLITZGW_CLUSTER_KEY"}
    command = [sys.executable, "-c", "from blitzgw.cli.main import main; exit(main())"]
    done = subprocess.run(
        [*command, "run", "--config", str(file)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cluster.host" in done.stderr
    assert "cluster.join" in done.stderr


def test_a_second_signal_ends_it_at_once(tmp_path):
    with cluster(tmp_path, only=paced(200.0)) as made:
        node = made.settle(1).nodes["only"]

        async def interrupt():
            body = completion("x", 2000, ignore_eos=True)
            task = asyncio.get_running_loop().create_task(stream_all(node.url, [body]))
            while not made.get("only", "requests"):
                await asyncio.sleep(0.02)
            node.workers()
            node.signal(signal.SIGTERM)
            until(lambda: node.get("/ready").status == 503, "being not ready")
            assert json.loads(node.get("/ready").body)["reason"] == "draining"
            node.signal(signal.SIGTERM)
            [answer] = await task
            return answer

        answer = asyncio.run(interrupt())
        assert answer.error is not None
        assert node.end() != 0
        made.nodes.clear()
