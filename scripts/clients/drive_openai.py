"""openai-python, sync and async: each parameter that its methods have, and the rest of its face.

A parameter works, or is refused with a 400 that names it. One that this file does not know is a
failure: a newer client has something that nobody has looked at yet.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import openai
from finding import Wrong, arguments, check, need
from openai_cases import CHAT, JSON_SCHEMA, MESSAGES, PROMPT, TEXT, Case, as_schema, text


class Caller:
    """One of the client's two faces: `call` awaits what the async one returns."""

    def __init__(self, name: str, api: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.name, self.api, self._loop = name, api, loop

    def call(self, method: Callable[..., Any], **fields: Any) -> Any:
        answer = method(**fields)
        return self._loop.run_until_complete(answer) if self._loop else answer

    def items(self, streamed: Any) -> list[Any]:
        """Return everything of a stream."""
        if self._loop is None:
            return list(streamed)

        async def collect() -> list[Any]:
            return [item async for item in streamed]

        return self._loop.run_until_complete(collect())


def parameters(caller: Caller, method: Any, base: dict[str, Any], cases: dict[str, Any]) -> None:
    """Try each parameter of a method."""
    api = "chat" if "messages" in base else "completions"
    known = {*cases, *base, "stream", "stream_options"}

    def unknown() -> None:
        names = set(inspect.signature(method).parameters) - known
        need(not names, f"this script does not know {sorted(names)}")

    check(f"{caller.name} {api}: all parameters are known", unknown)
    for name, values in cases.items():
        for case in values:
            label = f"{caller.name} {api}: {name}={json.dumps(case.value)[:40]}"
            check(label, lambda name=name, case=case: one(caller, method, base, name, case))


def one(caller: Caller, method: Any, base: dict[str, Any], name: str, case: Case) -> str:
    """Try one value; return how it went."""
    fields = base | case.beside | {name: case.value}
    if name in ("max_tokens", "max_completion_tokens"):
        fields = {key: value for key, value in fields.items() if key == name or "max_" not in key}
    try:
        answer = caller.call(method, **fields)
    except openai.BadRequestError as error:
        if case.refused == "never":
            raise
        body = error.body if isinstance(error.body, dict) else {}
        need(body.get("param") in (name, *case.beside) and body.get("message"), error)
        return f"400: {body['message']}"
    need(case.refused != "always", "it was taken")
    case.look(answer)
    if case.again:
        other = caller.call(method, **fields)
        need(text(other) == text(answer), (text(answer), text(other)))
    return "works"


def streams(caller: Caller, method: Any, base: dict[str, Any]) -> str:
    """A stream says what the whole answer says, its usage too."""
    whole = caller.call(method, **base)
    options = {"include_usage": True}
    chunks = caller.items(caller.call(method, **base, stream=True, stream_options=options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    parts = [c.delta.content if hasattr(c, "delta") else c.text for c in choices]
    need("".join(part or "" for part in parts) == text(whole), parts)
    need(choices[-1].finish_reason == whole.choices[0].finish_reason, choices[-1])
    need(not chunks[-1].choices and chunks[-1].usage == whole.usage, chunks[-1])
    return f"{len(chunks)} chunks"


def counts_on(caller: Caller, method: Any, base: dict[str, Any]) -> None:
    """With continuous_usage_stats every chunk tells the usage so far."""
    extra = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = caller.items(caller.call(method, **base, stream=True, extra_body=extra))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    need(counts == sorted(counts) and counts[-1] > 1, counts)


def raises(error: type[Exception], act: Callable[[], object]) -> str:
    """Return what the error says that must come."""
    try:
        answer = act()
    except error as raised:
        return str(raised)
    raise Wrong(f"no {error.__name__}, but {answer}")


def rest(caller: Caller, model: str, chat: dict[str, Any]) -> None:
    """What is beside the two methods."""
    api, name = caller.api, caller.name
    completions = api.chat.completions

    def models() -> None:
        listed = caller.items(api.models.list()) if name == "async" else list(api.models.list())
        need(model in [one.id for one in listed], listed)
        need(caller.call(api.models.retrieve, model=model).id == model, model)

    def raw() -> None:
        answer = caller.call(completions.with_raw_response.create, **chat)
        need(answer.headers["x-request-id"] and answer.parse().choices, answer.headers)

    def parse() -> str:
        try:
            answer = caller.call(completions.parse, **chat, response_format=JSON_SCHEMA)
        except openai.BadRequestError as error:
            need("response_format" in str(error), error)
            return "400"
        except openai.LengthFinishReasonError:
            return "cut by max_tokens"
        return str(as_schema(answer) or "works")

    check(f"{name}: models", models)
    check(f"{name}: with_raw_response", raw)
    check(f"{name}: parse", parse)
    no_model = chat | {"model": "nobody"}
    missing = openai.NotFoundError
    check(
        f"{name}: an unknown model",
        lambda: raises(missing, lambda: caller.call(completions.create, **no_model)),
    )
    check(
        f"{name}: another route (responses)",
        lambda: raises(missing, lambda: caller.call(api.responses.create, model=model, input="x")),
    )


def many(api: Any, chat: dict[str, Any]) -> Any:
    async def ask() -> None:
        answers = await asyncio.gather(*(api.chat.completions.create(**chat) for _ in range(32)))
        need(all(text(answer) for answer in answers), "an empty answer")

    return ask()


def leave(api: openai.OpenAI, chat: dict[str, Any]) -> None:
    """Close a stream after its first chunk; the next request is answered as ever."""
    with api.chat.completions.create(**chat | {"max_tokens": 500}, stream=True) as streamed:
        next(iter(streamed))
    api.chat.completions.create(**chat)


def helper(api: openai.OpenAI, chat: dict[str, Any]) -> None:
    with api.chat.completions.stream(**chat) as events:
        kinds = {event.type for event in events}
    need({"chunk", "content.delta"} <= kinds, kinds)


def main() -> None:
    url, model = arguments()
    chat = {"model": model, "messages": MESSAGES, "max_completion_tokens": 8, "temperature": 0}
    plain = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    loop = asyncio.new_event_loop()
    options: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0}
    asynchronous = openai.AsyncOpenAI(**options)
    callers = (
        Caller("sync", openai.OpenAI(**options), None),
        Caller("async", asynchronous, loop),
    )
    for caller in callers:
        api = caller.api
        for method, base, cases in (
            (api.chat.completions.create, chat, CHAT),
            (api.completions.create, plain, TEXT),
        ):
            parameters(caller, method, base, cases)
            kind = f"{caller.name} {'chat' if base is chat else 'completions'}"
            check(f"{kind}: stream", lambda m=method, b=base, c=caller: streams(c, m, b))
            check(f"{kind}: usage goes on", lambda m=method, b=base, c=caller: counts_on(c, m, b))
        rest(caller, model, chat)
    check("sync: the stream helper", lambda: helper(callers[0].api, chat))
    check("sync: leaves a stream", lambda: leave(callers[0].api, chat))
    check("async: 32 at once", lambda: loop.run_until_complete(many(asynchronous, chat)))
    loop.run_until_complete(asynchronous.close())
    loop.close()


if __name__ == "__main__":
    main()
