"""Responses that are not streamed: texts are collected and sent as one JSON object."""

from __future__ import annotations

import asyncio
from typing import Any

from blitzgw.api.chunks import Tally
from blitzgw.api.generation import Generation, Options
from blitzgw.core.request import TokenEvent
from blitzgw.errors import RequestError


class _Collected:
    __slots__ = ("logprobs", "texts", "token_ids")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[dict[str, Any]] = []


class Collector:
    """Collects all choices of a response; an `Output` of its batch."""

    def __init__(self, options: Options, open_choices: int) -> None:
        self._options = options
        self._collected: dict[int, _Collected] = {}
        self._open_choices = open_choices
        self.error: RequestError | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(self, generation: Generation, text: str, event: TokenEvent) -> None:
        """Keep what one step added to one choice."""
        choice = generation.choice
        kept = self._collected.setdefault(choice.index, _Collected())
        kept.texts.append(text)
        if self._options.token_ids:
            kept.token_ids.extend(event.tokens[: choice.used])
        logprobs = generation.logprobs(event)
        if logprobs is not None:
            kept.logprobs.append(logprobs)
        if choice.finish is not None:
            self._open_choices -= 1
            if not self._open_choices and not self.done.done():
                self.done.set_result(None)

    def fail(self, error: RequestError) -> None:
        """Keep the error that is the answer."""
        self.error = error
        if not self.done.done():
            self.done.set_result(None)

    def body(
        self, opening: dict[str, Any], generations: list[Generation], tally: Tally
    ) -> dict[str, Any]:
        """Return the response object; `opening` holds id, created and model."""
        chat = self._options.chat
        body = opening | {
            "object": "chat.completion" if chat else "text_completion",
            "choices": [self._choice(generation) for generation in generations],
            "usage": tally.usage(),
            "system_fingerprint": None,
        }
        if chat and self._options.token_ids:
            body["prompt_token_ids"] = generations[0].prompt.tokens
        return body

    def _choice(self, generation: Generation) -> dict[str, Any]:
        choice, options = generation.choice, self._options
        kept = self._collected[choice.index]
        text = "".join(kept.texts)
        formatter = generation.formatter
        item: dict[str, Any] = {"index": choice.index}
        if options.chat:
            item["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            item["text"] = (generation.prompt.text or "") + text if options.echo else text
        item["logprobs"] = None if formatter is None else formatter.join(kept.logprobs)
        item["finish_reason"] = None if choice.finish is None else choice.finish.value
        item["stop_reason"] = choice.stop_reason
        if options.token_ids:
            item["token_ids"] = kept.token_ids
            if not options.chat:
                item["prompt_token_ids"] = generation.prompt.tokens
        return item
