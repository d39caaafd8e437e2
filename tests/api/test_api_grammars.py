"""What is asked of an output's form: the grammars it becomes, and what is refused, and how fast."""

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from functools import partial

import pytest
from llguidance import LLMatcher

from blitzgw.api import grammars
from blitzgw.api.grammars import (
    MAX_WAITING,
    WHITESPACE,
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
)
from blitzgw.core.peer import Submit
from blitzgw.core.request import MAX_GRAMMAR_BYTES, FinishReason, GenerationRequest
from blitzgw.core.request import SamplingParams as Params
from blitzgw.core.span import Span
from blitzgw.core.step import NO_TOKEN, NewSequence, Step
from blitzgw.engine.grammar import deeply, parser_limits
from blitzgw.errors import InvalidRequest
from blitzgw.wire import FrameBuffer, dump, pack, parse

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = {"model": "m", "prompt": "Hello"}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def matches(grammar, text):
    """Tell whether a grammar has exactly this text."""
    matcher = LLMatcher(grammars._bytes(), grammar)
    data = [*text.encode()]
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def test_a_schema_is_kept_to():
    grammar = json_schema_grammar(PERSON)
    assert matches(grammar, '{"name":"Jo"}')
    assert matches(grammar, '{\n  "name": "Jo",\n  "age": 5\n}')
    for wrong in ("{}", '{"name":5}', '{"name":"Jo","age":-1}', '{"name":"Jo","x":1}', '"Jo"'):
        assert not matches(grammar, wrong), wrong
    assert not matches(grammar, '{"name":' + " " * 65 + '"Jo"}')  # WHITESPACE
    assert WHITESPACE.endswith("{1,64}")


def test_any_object_and_no_other_value():
    grammar = json_object_grammar()
    for text in ("{}", '{"a": [1, null, {"b": "é\\n"}]}'):
        assert matches(grammar, text)
    for text in ("[]", "5", '"a"', "{", '{"a"}'):
        assert not matches(grammar, text)


def test_exactly_these_texts():
    texts = ["yes", "no", 'a "quoted"\n\\one', "naïve 😀", "<|im_end|>"]
    grammar = choice_grammar(texts)
    assert all(matches(grammar, text) for text in texts)
    assert not any(matches(grammar, text) for text in ("y", "yes ", "maybe"))


def nested(levels, **schema):
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def chain(length):
    """Each definition within the one before: deep, without being nested."""
    defs = {f"{i:x}": {"items": {"$ref": f"#/$defs/{i + 1:x}"}} for i in range(length)}
    return {"$defs": {**defs, f"{length:x}": {}}, "$ref": "#/$defs/0"}


WIDE = {
    "type": "object",
    "properties": {f"p{i}": {} for i in range(2000)},
    "required": [f"p{i}" for i in range(2000)],
}

HOSTILE = {
    "deep": (nested(300), "recursion limit"),
    "very deep": (nested(3000), "ecursion"),
    "not a type": ({"type": "strin"}, "Invalid type: strin"),
    "not implemented": ({"properties": {"a": {"not": {}}}}, 'Unimplemented keys: ["not"]'),
    "no way around that": (
        {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True},
        "uniqueItems",
    ),
    "nothing satisfies it": ({"$ref": "#"}, "no text satisfies it"),
    "too large": ({"enum": ["x" * 100] * 1000}, "at most 65536 are allowed"),
    "large once compiled": (
        {"allOf": [
            {"anyOf": [{"properties": {f"k{i}{j}": {"type": "string"}}} for j in range(10)]}
            for i in range(10)
        ]},
        "too large",
    ),
    "a web page": ({"$ref": "http://127.0.0.1:9/x"}, "does not fetch"),
    "a file": ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    "a bad pattern": ({"type": "string", "pattern": "(" * 9000}, "regex parse error"),
    "deeper than a stack": (chain(1500), "too big"),
    "many remainders": ({"type": "integer", "multipleOf": 999983}, "is 999983"),
    "more of them together": (
        {"allOf": [{"multipleOf": prime} for prime in (97, 8.9, 83)]}, "least common multiple"
    ),
    "many ways": (
        {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(2000)}}, "too big"
    ),
    "a list": ([], "is an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_at_once(name):
    schema, told = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(InvalidRequest, match=r"^response_format") as error:
        json_schema_grammar(schema)
    assert told in error.value.message
    assert error.value.param == "response_format"
    assert len(error.value.message) < 300
    assert "\n" not in error.value.message
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    "schema",
    [
        chain(100),
        WIDE,
        {
            "type": "object",
            "properties": {
                f"p{i}": {"type": "number", "multipleOf": m}
                for i, m in enumerate((1e6, 0.01, 9973))
            },
        },
        {"type": "string", "minLength": 10**8, "maxLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**7, "maxItems": 10**8},
        {"type": "object", "properties": {f"p{i}": {"maxLength": i} for i in range(800)}},
        {"type": "string", "pattern": "^(.*a.{200}|.*b.{300})*$"},
    ],
    ids=["chain", "wide", "multiples", "length", "items", "properties", "pattern"],
)
def test_what_is_only_large_is_taken_in_bounded_time(schema):
    began = time.process_time()
    assert len(json_schema_grammar(schema)) <= MAX_GRAMMAR_BYTES
    assert time.process_time() - began < 2.0


def test_many_keys_can_be_written():
    """What is taken here is not given up where one of them is to be chosen."""
    optional = {"type": "object", "properties": {f"p{i}": {} for i in range(800)}}
    matcher = LLMatcher(grammars._bytes(), json_schema_grammar(optional), limits=parser_limits())
    assert matcher.consume_tokens([*b'{"p799":1}'])
    assert matcher.is_accepting()


def test_nobody_waits_for_a_grammar_without_end(monkeypatch):
    """Whatever else there may be that no limit knows of."""
    monkeypatch.setattr(grammars, "deeply", partial(deeply, limit_s=0.01))
    with pytest.raises(InvalidRequest, match="takes more than 0 s"):
        json_schema_grammar(WIDE | {"title": "not compiled before"})


def test_effort_is_bounded_whether_or_not_it_suffices():
    """Of a pattern like this, which is at the limit, either may come out."""
    began = time.process_time()
    with contextlib.suppress(InvalidRequest):
        json_schema_grammar({"type": "string", "pattern": "(a*b?)*" * 5000})
    assert time.process_time() - began < 2.0


async def test_compiling_leaves_the_event_loop_free(world):
    """While a schema of 0.1 s is compiled, everybody else is served."""
    schema = {**WIDE, "title": "of which nothing is remembered"}
    body = TEXT | {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    asking = asyncio.ensure_future(world.post("/v1/completions", body))
    turns = 0
    while not world.generator.requests:
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 5
    asking.cancel()


async def test_who_comes_when_too_many_wait_is_told_to_come_back(world):
    forms = [
        {"type": "json_schema", "json_schema": {"schema": chain(1000 + i)}}
        for i in range(MAX_WAITING + 3)
    ]
    asking = [
        asyncio.ensure_future(world.post("/v1/completions", TEXT | {"response_format": form}))
        for form in forms
    ]
    (status, headers, _), *_ = [
        task.result()
        for task in (await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED))[0]
    ]
    assert (status, headers["Retry-After"]) == (429, "1")
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


ASKED = {
    "text": ({"response_format": {"type": "text"}}, None),
    "null": ({"response_format": None}, None),
    "object": ({"response_format": {"type": "json_object"}}, '{"a": 1}'),
    "schema": (
        {"response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        }},
        '{"name": "Jo"}',
    ),
    "vllm": ({"structured_outputs": {"json": PERSON}}, '{"name": "Jo"}'),
    "as text": ({"structured_outputs": {"json": json.dumps(PERSON)}}, '{"name": "Jo"}'),
    "any": ({"structured_outputs": {"json_object": True}}, "{}"),
    "choice": ({"structured_outputs": {"choice": ["yes", "no"]}}, "no"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(
    ("path", "base"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
)
async def test_every_way_to_ask(world, tools, path, base, name):
    fields, text = ASKED[name]
    world.generator.script = lambda request: tools.events(request, world.ids("Hi")[:2])
    status, _, answer = await world.post(path, base | fields | {"n": 2})
    assert status == 200, answer
    made = {request.sampling.grammar for request, _ in world.generator.requests.values()}
    assert len(world.generator.requests) == 2
    if text is None:
        assert made == {""}
    else:
        (grammar,) = made
        assert matches(grammar, text)


async def test_a_refused_schema_names_the_field_and_the_fault(world):
    for field, body in {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}},
        "structured_outputs": {"json": {"type": 5}},
    }.items():
        status, _, answer = await world.post("/v1/completions", TEXT | {field: body})
        assert status == 400
        assert answer["error"]["param"] == field
        assert "type must be a string" in answer["error"]["message"]
    assert not world.generator.requests


async def test_without_llguidance(world, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    body = TEXT | {"response_format": {"type": "json_object"}}
    status, _, answer = await world.post("/v1/completions", body)
    assert status == 400
    assert "pip install llguidance" in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["", "Hell"], ids=["at once", "later"])
async def test_a_form_that_was_given_up_is_an_error_and_no_answer(world, tools, text, stream):
    def script(request):
        *events, last = tools.events(request, [*world.ids(text), 2])
        return [*events, replace(last, tokens=[NO_TOKEN], finish=FinishReason.ERROR)]

    world.generator.script = script
    body = CHAT | {"response_format": {"type": "json_object"}, "stream": stream}
    async with world.http.post(world.url("/v1/chat/completions"), json=body) as response:
        answer = (await response.read()).decode()
    assert "form that was asked for" in answer
    assert '"finish_reason":"' not in answer
    assert response.status == (200 if stream and text else 500)
    assert world.services.metrics.model("m", 0).success["error"] == 1
    assert not world.generator.aborted


def test_a_grammar_travels_with_its_request():
    params = Params(max_tokens=5, grammar="x" * MAX_GRAMMAR_BYTES)
    request = GenerationRequest("r", "m", (1, 2), 2, params)
    submitted = Submit("i", 1, request)
    assert parse(dump(submitted), {Submit}) == submitted
    new = tuple(NewSequence(n, (1,) * 1000, 1000, 0, params) for n in range(512))
    step = Step(1, "i", Span(0, 1), (), new=new)
    (received,) = FrameBuffer().feed(pack(step))  # 512 at once are within its limit
    assert received == step
