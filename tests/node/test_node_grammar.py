"""Outputs of a given form: what the real model writes, and that nothing on the way changes them."""

import asyncio
from typing import Annotated, Literal

import msgspec
import pytest

from tests.node.test_node_failover import kill_after
from tests.node.test_node_pressure import BLOCK_BYTES, one_by_one
from tests.support.nodes import MODEL, client, completion, cpu, paced, running, stream_all

Word = Annotated[str, msgspec.Meta(max_length=12)]


class Pet(msgspec.Struct, forbid_unknown_fields=True):
    name: Word
    kind: Literal["cat", "dog", "naïve 😀"]
    age: int | None = None


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    pets: Annotated[list[Pet], msgspec.Meta(min_length=1, max_length=2)]
    happy: bool


SCHEMA = {
    "type": "object",
    "properties": {
        "pets": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"$ref": "#/$defs/pet"},
        },
        "happy": {"type": "boolean"},
    },
    "required": ["pets", "happy"],
    "additionalProperties": False,
    "$defs": {
        "pet": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "kind": {"enum": ["cat", "dog", "naïve 😀"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["name", "kind"],
            "additionalProperties": False,
        }
    },
}
FORM = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "pets", "schema": SCHEMA}}
}


def check(text):
    return msgspec.json.decode(text, type=Answer)


# The real model.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    small = cpu().replace("= 2048", "= 256")
    with running(tmp_path_factory.mktemp("real"), small) as node:
        yield node


def chat(**fields):
    messages = [{"role": "user", "content": "Tell me about two pets of yours, as JSON."}]
    return {"model": MODEL, "messages": messages, "max_tokens": 160} | fields


async def test_the_real_model_keeps_to_a_schema(real):
    """Chat and completions, whole and streamed, greedy and not, all at once."""
    prompt = "Two pets, as JSON:\n"
    streams = [completion(prompt, 160, temperature=t, seed=5, **FORM) for t in (0, 1)]
    streaming = asyncio.ensure_future(stream_all(real.url, streams))
    bodies = [chat(temperature=t, seed=6, n=2, logprobs=True, **FORM) for t in (0, 1.0)]
    async with client() as session:

        async def post(body):
            async with session.post(f"{real.url}/v1/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        replies = await asyncio.gather(*(post(body) for body in bodies))
    for answer in await streaming:
        assert (answer.error, answer.finish) == (None, "stop")
        check(answer.text)
    for reply in replies:
        assert len(reply["choices"]) == 2
        for choice in reply["choices"]:
            assert choice["finish_reason"] == "stop"
            check(choice["message"]["content"])
    greedy, drawn = ([c["message"]["content"] for c in r["choices"]] for r in replies)
    assert greedy[0] == greedy[1]
    assert drawn[0] != drawn[1]


def test_any_object_one_of_some_texts_and_a_cut(real):
    some = real.post("/v1/chat/completions", chat(
        temperature=0, response_format={"type": "json_object"}, max_tokens=6
    ))  # fmt: skip
    (choice,) = some.json["choices"]
    assert choice["message"]["content"].lstrip().startswith("{")
    assert choice["finish_reason"] == "length"
    one = real.complete("Is it?", structured_outputs={"choice": ["maybe so", "no way"]})
    assert one["choices"][0]["text"] in ("maybe so", "no way")
    assert one["choices"][0]["finish_reason"] == "stop"
    long = real.complete(
        "Is it?", structured_outputs={"choice": ["no"]}, ignore_eos=True, max_tokens=5
    )
    assert (long["choices"][0]["text"], long["choices"][0]["finish_reason"]) == ("no", "length")
    assert long["usage"]["completion_tokens"] == 5
    late = real.complete("Is it?", structured_outputs={"choice": ["no"]}, min_tokens=4)
    assert (late["choices"][0]["text"], late["choices"][0]["finish_reason"]) == ("no", "stop")
    assert late["usage"]["completion_tokens"] >= 4


# The paced device: exactly equal, whatever happens.


def bodies(count):
    """Each with a prompt of its own, so that what the device makes up differs."""
    return [
        completion(f"Pet {i}: " + "meow " * i, 160, temperature=0.5 * (i % 2), seed=i, **FORM)
        for i in range(count)
    ]


def check_same(answers, alone):
    assert [(a.text, a.finish, a.error) for a in answers] == [
        (a.text, a.finish, None) for a in alone
    ]
    used = [[a.usage["completion_tokens"] for a in each] for each in (answers, alone)]
    assert used[0] == used[1]
    stopped = [answer for answer in alone if answer.finish == "stop"]
    assert len({answer.text for answer in stopped}) > 3
    for answer in stopped:
        check(answer.text)


async def test_a_killed_worker_changes_nothing(tmp_path):
    with running(tmp_path, paced(node="dilation = 0.2", fixed_us=500.0)) as node:
        asked = bodies(12)
        alone = await one_by_one(node, asked)
        lost = node.log().count("worker_lost")
        check_same(await stream_all(node.url, asked, kill_after(node, chunks=150)), alone)
        assert node.log().count("worker_lost") == lost + 1


async def test_preemption_changes_nothing(tmp_path):
    tight = paced(fixed_us=0.0, kv=20 * BLOCK_BYTES).replace("= 2048", "= 256")
    with running(tmp_path, tight) as node:
        asked = bodies(16)
        alone = await one_by_one(node, asked)
        assert node.metric("vllm:num_preemptions_total") == 0
        check_same(await stream_all(node.url, asked), alone)
        assert node.metric("vllm:num_preemptions_total") > 0


def test_a_hostile_schema_disturbs_nobody(real):
    hostile = {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(2000)}}
    form = {"type": "json_schema", "json_schema": {"schema": hostile}}
    reply = real.post("/v1/completions", completion("x", 4, response_format=form))
    assert (reply.status, reply.error["param"]) == (400, "response_format")
    assert real.complete("The capital of France is", 4)["choices"][0]["text"]
