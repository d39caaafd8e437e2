"""Answers that may call tools: streamed as deltas of calls, or collected into a message's calls."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from blitzgw.api.calls import CallParser, Delta
from blitzgw.api.chunks import ChoiceFormat, ChunkFormat, Extras, Tally
from blitzgw.api.collect import Collector
from blitzgw.api.generation import Generation, Options
from blitzgw.api.sse import EventStream
from blitzgw.api.tools import ToolUse
from blitzgw.core.request import FinishReason, TokenEvent

TOOL_CALLS = "tool_calls"


class _Answer:
    """One choice's answer, taken apart as it grows."""

    __slots__ = ("_parser", "_request_id", "_use")

    def __init__(self, use: ToolUse, request_id: str) -> None:
        self._use, self._request_id = use, request_id
        self._parser = CallParser(use.dialect, use.names)

    def take(self, generation: Generation, text: str) -> list[Delta]:
        """Return what more text adds, and at the end what was held back."""
        deltas = self._parser.feed(text)
        if generation.choice.finish is not None:
            deltas += self._parser.finish()
        return [d for d in deltas if not (self._use.single and d.call)]

    def finish(self, reason: FinishReason) -> str:
        """Return why the answer has ended, as OpenAI has it."""
        called = self._parser.calls and not self._parser.cut
        return TOOL_CALLS if called and reason is FinishReason.STOP else reason

    def head(self, delta: Delta) -> dict[str, Any]:
        """Return a call without its arguments."""
        return {
            "id": self._id(delta.call),
            "type": "function",
            "function": {"name": delta.name, "arguments": ""},
        }

    def _id(self, call: int | None) -> str:
        """Return a call's id: Mistral's templates take nine letters and digits only."""
        digest = hashlib.blake2b(f"{self._request_id}/{call}".encode(), digest_size=12).hexdigest()
        return digest[:9] if self._use.dialect.lists else f"call_{digest}"


class ToolStream(EventStream):
    """A stream of chat chunks with `tool_calls`. What is held back sends no chunk."""

    __slots__ = ("_answers", "_use")

    def __init__(
        self,
        use: ToolUse,
        options: Options,
        chunks: ChunkFormat,
        tally: Tally,
        open_choices: int,
        max_unsent: int,
    ) -> None:
        super().__init__(options, chunks, tally, open_choices, max_unsent)
        self._plain = False
        self._use = use
        self._answers: dict[int, _Answer] = {}

    def _step(
        self, known: ChoiceFormat, generation: Generation, text: str, event: TokenEvent
    ) -> bytes:
        index, finish = generation.choice.index, generation.choice.finish
        if index not in self._answers:
            self._answers[index] = _Answer(self._use, generation.request.id)
        answer = self._answers[index]
        deltas = [_delta(answer, delta) for delta in answer.take(generation, text)]
        if finish is None and not deltas and self._options.plain:
            return b""
        extras = self._extras(generation, event)
        if finish is not None:
            extras = replace(extras, finish=answer.finish(finish))
            deltas.append({})
        *before, last = deltas or [{}]
        plain = Extras(usage=extras.usage)
        return b"".join(known.delta(delta, plain) for delta in before) + known.delta(last, extras)


class ToolCollector(Collector):
    """Collects all choices of a response, their tool calls apart from their text."""

    def __init__(self, use: ToolUse, options: Options, open_choices: int) -> None:
        super().__init__(options, open_choices)
        self._use = use
        self._answers: dict[int, _Answer] = {}
        self._deltas: dict[int, list[Delta]] = {}

    def deliver(self, generation: Generation, text: str, event: TokenEvent) -> None:
        """Keep what one step added to one choice."""
        index = generation.choice.index
        if index not in self._answers:
            self._answers[index] = _Answer(self._use, generation.request.id)
            self._deltas[index] = []
        self._deltas[index] += self._answers[index].take(generation, text)
        super().deliver(generation, text, event)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        item = super()._choice(generation)
        index, finish = generation.choice.index, generation.choice.finish
        answer, calls = self._answers[index], list[dict[str, Any]]()
        content: list[str] = []
        for delta in self._deltas[index]:
            if delta.name is not None:
                calls.append(answer.head(delta))
            elif delta.call is None:
                content.append(delta.text)
            else:
                calls[delta.call]["function"]["arguments"] += delta.text
        if calls:
            item["message"] |= {"content": "".join(content) or None, "tool_calls": calls}
        if finish is not None:
            item["finish_reason"] = answer.finish(finish)
        return item


def _delta(answer: _Answer, delta: Delta) -> dict[str, Any]:
    """Return a delta as a chunk has it."""
    if delta.call is None:
        return {"content": delta.text}
    grown = {"function": {"arguments": delta.text}} if delta.name is None else answer.head(delta)
    return {"tool_calls": [{"index": delta.call, **grown}]}
