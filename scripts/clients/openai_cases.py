"""Values of each parameter of openai-python, and what is right in the answer to each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finding import need

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"enum": ["Paris", "Rome"]}},
    "required": ["capital"],
    "additionalProperties": False,
}
Look = Callable[[Any], object]
"""Raises Wrong where the answer is not what was asked for."""


@dataclass(frozen=True)
class Case:
    """A value of one parameter. It may be `refused` by a 400 that names it, or must be.

    `beside` are other fields that go with it. With `again` the same must give the same text.
    """

    value: Any
    look: Look = lambda _: None
    beside: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    refused: str = "never"


def either(value: Any, look: Look = lambda _: None, **beside: Any) -> Case:
    """What is either done, then as `look` says, or refused."""
    return Case(value, look, beside, refused="perhaps")


def refused(value: Any, **beside: Any) -> Case:
    """What nobody could do: it must be refused."""
    return Case(value, beside=beside, refused="always")


def text(answer: Any) -> str:
    choice = answer.choices[0]
    return choice.message.content or "" if hasattr(choice, "message") else choice.text


def same_tokens(answer: Any) -> None:
    logprobs = answer.choices[0].logprobs
    tokens = logprobs.tokens if hasattr(logprobs, "tokens") else [t.token for t in logprobs.content]
    need(len(set(tokens)) == 1, tokens)


def n_tokens(count: int) -> Look:
    return lambda answer: need(answer.usage.completion_tokens <= count, answer.usage)


def n_choices(count: int) -> Look:
    return lambda a: need([c.index for c in a.choices] == [*range(count)], a.choices)


def without(stop: str) -> Look:
    return lambda answer: need(stop not in text(answer), text(answer))


def chat_logprobs(n_top: int) -> Look:
    def look(answer: Any) -> None:
        content = answer.choices[0].logprobs.content
        need("".join(t.token for t in content) == text(answer), content)
        need(all(bytes(t.bytes).decode() == t.token and t.logprob <= 0 for t in content), content)
        need(all(len(t.top_logprobs) == n_top for t in content), content)

    return look


def text_logprobs(answer: Any) -> None:
    logprobs = answer.choices[0].logprobs
    need("".join(logprobs.tokens) == text(answer), logprobs)
    need(all(value is None or value <= 0 for value in logprobs.token_logprobs), logprobs)
    starts = [sum(map(len, logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    need(logprobs.text_offset == starts, logprobs.text_offset)
    need(all(len(top) >= 2 for top in logprobs.top_logprobs if top is not None), logprobs)


def as_schema(answer: Any) -> None:
    if answer.choices[0].finish_reason == "stop":
        need(json.loads(text(answer))["capital"] in ("Paris", "Rome"), text(answer))


def is_object(answer: Any) -> None:
    if answer.choices[0].finish_reason == "stop":
        need(isinstance(json.loads(text(answer)), dict), text(answer))


def calls_tool(answer: Any) -> None:
    calls = answer.choices[0].message.tool_calls
    need(calls and calls[0].function.name == "weather", answer.choices[0])
    need(json.loads(calls[0].function.arguments)["city"] in ("Paris", "Rome"), calls)


COMMON = {
    "frequency_penalty": [Case(0.5)],
    "presence_penalty": [Case(0.5)],
    "max_tokens": [Case(5, n_tokens(5))],
    "n": [Case(3, n_choices(3), {"temperature": 1})],
    "seed": [Case(7, beside={"temperature": 1}, again=True)],
    "stop": [Case("a", without("a")), Case(["e", "a"], without("a"))],
    "temperature": [Case(0, again=True), Case(1.5)],
    "top_p": [Case(0.1)],
    "user": [Case("someone")],
    "timeout": [Case(30.0)],
    "extra_headers": [Case({"x-request-id": "abc"}, lambda a: need(a.id.endswith("-abc"), a.id))],
    "extra_query": [Case({"api-version": "1"})],
    "extra_body": [
        Case(
            {"ignore_eos": True, "min_tokens": 8}, lambda a: need(a.usage.completion_tokens == 8, a)
        )
    ],
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
CHAT = COMMON | {
    "audio": [either({"voice": "alloy", "format": "wav"})],
    "function_call": [Case("none"), either("auto")],
    "functions": [either([TOOL["function"]])],
    "logit_bias": [Case({"1000": 100}, same_tokens, {"logprobs": True})],
    "logprobs": [Case(True, chat_logprobs(0))],
    "max_completion_tokens": [Case(5, n_tokens(5))],
    "messages": [Case([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])],
    "metadata": [Case({"topic": "test"})],
    "modalities": [Case(["text"]), either(["text", "audio"])],
    "moderation": [either({"model": "omni-moderation-latest"})],
    "parallel_tool_calls": [Case(True)],
    "prediction": [either({"type": "content", "content": "Paris"})],
    "prompt_cache_key": [Case("key")],
    "prompt_cache_options": [Case({"mode": "implicit"})],
    "prompt_cache_retention": [Case("in_memory")],
    "reasoning_effort": [either("low")],
    "response_format": [
        Case({"type": "text"}),
        either({"type": "json_object"}, is_object, max_completion_tokens=64),
        either(JSON_SCHEMA, as_schema, max_completion_tokens=64),
    ],
    "safety_identifier": [Case("someone")],
    "service_tier": [Case("auto")],
    "store": [Case(False), either(True)],
    "tool_choice": [
        Case("none", beside={"tools": [TOOL]}),
        either("required", calls_tool, tools=[TOOL], max_completion_tokens=64),
    ],
    "tools": [either([TOOL], max_completion_tokens=64)],
    "top_logprobs": [Case(3, chat_logprobs(3), {"logprobs": True}), refused(3)],
    "verbosity": [either("low")],
    "web_search_options": [either({})],
}
TEXT = COMMON | {
    "best_of": [Case(2, n_choices(2), {"n": 2}), either(3)],
    "echo": [Case(True, lambda a: need(text(a).startswith(PROMPT), text(a)))],
    "logit_bias": [Case({"1000": 100}, same_tokens, {"logprobs": 0})],
    "logprobs": [Case(2, text_logprobs), Case(2, text_logprobs, {"echo": True})],
    "prompt": [
        Case(["Once upon", "One, two,"], n_choices(2)),
        Case([1, 2, 3]),
        Case([[1, 2], [3, 4, 5]], n_choices(2)),
    ],
    "suffix": [either(" and")],
}
