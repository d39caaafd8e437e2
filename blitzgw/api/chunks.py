"""The bytes of streamed chunks: everything that does not change is formatted once per choice.

data: {"id":…,"choices":[{"index":0,"delta":{"content":  "text"  },"logprobs":null,…}]}⏎⏎
└──────────────── head ────────────────────────────────┘        └──────── tail ────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from blitzgw.core.request import Stage

DONE = b"data: [DONE]\n\n"
CHAT_KEY, TEXT_KEY = b'"delta":{"content":', b'"text":'
TEXT_TAIL = b',"logprobs":null,"finish_reason":null}]}\n\n'
CHAT_TAIL = b"}" + TEXT_TAIL


@dataclass(slots=True)
class Tally:
    """The tokens of one response, all its choices together."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    route: tuple[Stage, ...] = ()
    """Who ran which layers of a prompt, where not one instance ran them all."""

    def usage(self) -> dict[str, Any]:
        """Return the `usage` object."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if self.route:
            usage["blitzgw_split"] = [
                {"instance": s.instance, "layers": [s.span.start, s.span.stop]} for s in self.route
            ]
        return usage


@dataclass(frozen=True, slots=True)
class Extras:
    """What a chunk carries beside text and its place in the stream."""

    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    finish: str | None = None
    stop_reason: str | int | None = None
    usage: dict[str, Any] | None = None


NOTHING = Extras()


class ChunkFormat:
    """Formats the chunks of one response."""

    def __init__(self, response_id: str, model: str, created: int, *, chat: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        opening = {"id": response_id, "object": kind, "created": created, "model": model}
        self._opening = b"data: " + orjson.dumps(opening)[:-1] + b',"system_fingerprint":null'
        self.chat = chat

    def choice(self, index: int) -> ChoiceFormat:
        """Return the format of one choice's chunks."""
        return ChoiceFormat(self._opening + b',"choices":[{"index":%d,' % index, self.chat)

    def usage(self, tally: Tally) -> bytes:
        """Return the chunk without choices that ends a stream, if asked for."""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._opening, orjson.dumps(tally.usage()))


class ChoiceFormat:
    """Formats the chunks of one choice: `head + orjson.dumps(text) + tail` is a plain one.

    `size` is the bytes of head and tail.
    """

    __slots__ = ("_chat", "head", "size", "tail")

    def __init__(self, start: bytes, chat: bool) -> None:
        self._chat = chat
        self.head = start + (CHAT_KEY if chat else TEXT_KEY)
        self.tail = CHAT_TAIL if chat else TEXT_TAIL
        self.size = len(self.head) + len(self.tail)

    def _start(self) -> bytes:
        return self.head[: -len(CHAT_KEY if self._chat else TEXT_KEY)]

    def role(self, extras: Extras = NOTHING) -> bytes:
        """Return a chat choice's first chunk."""
        delta = b'"delta":{"role":"assistant","content":""},'
        return self._start() + delta + _ending(extras, self._chat)

    def chunk(self, text: str, extras: Extras) -> bytes:
        """Return a chunk with all that may be asked for."""
        if self._chat and not text and extras.finish is not None:
            return self._start() + b'"delta":{},' + _ending(extras, self._chat)
        separator = b"}," if self._chat else b","
        return self.head + orjson.dumps(text) + separator + _ending(extras, self._chat)

    def delta(self, delta: dict[str, Any], extras: Extras) -> bytes:
        """Return a chat chunk that adds more than text."""
        return (
            self._start() + b'"delta":' + orjson.dumps(delta) + b"," + _ending(extras, self._chat)
        )


def _ending(extras: Extras, chat: bool) -> bytes:
    fields: dict[str, Any] = {
        "logprobs": extras.logprobs,
        "finish_reason": extras.finish,
    }
    outer: dict[str, Any] = {}
    if extras.finish is not None:
        fields["stop_reason"] = extras.stop_reason
    if extras.token_ids is not None:
        fields["token_ids"] = extras.token_ids
    if extras.prompt_token_ids is not None:
        (outer if chat else fields)["prompt_token_ids"] = extras.prompt_token_ids
    if extras.usage is not None:
        outer["usage"] = extras.usage
    rest = b"," + orjson.dumps(outer)[1:] if outer else b"}"
    return orjson.dumps(fields)[1:] + b"]" + rest + b"\n\n"
