"""Token events that wait for a slow peer, merged per request.

While a link's transport is full, a step's events are not put behind it as one more frame each: what
a request already has here grows by the new tokens. So the memory is bounded by the answers
themselves (`max_tokens` of each stream), there is one event per request however many steps have
passed, and a peer that catches up gets few large frames instead of thousands of small ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from blitzgw.core.request import Logprobs, TokenEvent

EVENT_BYTES = 160
"""Size of an event on the wire without its tokens: names of fields, a request id, small numbers."""

TOKEN_BYTES, LOGPROB_BYTES, ALTERNATIVE_BYTES = 5, 24, 16
"""Sizes on the wire at most: a token id, a chosen token's log-probability, an alternative."""


class Outbox:
    """Pending events by request, the longest waiting first. `size_bytes` is what they will take."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._pending: dict[str, TokenEvent] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, events: Iterable[TokenEvent]) -> None:
        """Take events. They are copied; an older attempt makes way for a newer one."""
        for event in events:
            pending = self._pending.get(event.request_id)
            if pending is None:
                self._pending[event.request_id] = _copy(event)
                self.size_bytes += weight(event)
            elif pending.attempt == event.attempt:
                _merge(pending, event)
                self.size_bytes += weight(event) - EVENT_BYTES
            elif pending.attempt < event.attempt:
                self._pending[event.request_id] = _copy(event)
                self.size_bytes += weight(event) - weight(pending)

    def take(self, limit_bytes: int) -> list[TokenEvent]:
        """Remove and return events of about `limit_bytes` in all; a long one is cut in two."""
        taken: list[TokenEvent] = []
        room = limit_bytes
        while self._pending and room > 0:
            request_id = next(iter(self._pending))
            event = self._pending[request_id]
            size = weight(event)
            if size <= room or (not taken and len(event.tokens) < 2):
                del self._pending[request_id]
                self.size_bytes -= size
            elif taken:
                break
            else:
                event = _cut(event, max(1, len(event.tokens) * room // size))
                self.size_bytes -= size - weight(self._pending[request_id])
            taken.append(event)
            room -= size
        return taken


def weight(event: TokenEvent) -> int:
    """Return about how many bytes an event takes on the wire."""
    size = EVENT_BYTES + TOKEN_BYTES * len(event.tokens)
    for known in (event.logprobs, event.prompt_logprobs):
        if known:
            size += sum(LOGPROB_BYTES + ALTERNATIVE_BYTES * len(p.top) for p in known)
    return size


def _copy(event: TokenEvent) -> TokenEvent:
    logprobs = None if event.logprobs is None else list(event.logprobs)
    return replace(event, tokens=list(event.tokens), logprobs=logprobs)


def _merge(pending: TokenEvent, event: TokenEvent) -> None:
    """Append a later event of the same attempt; what only a first event tells stays."""
    pending.tokens += event.tokens
    if event.logprobs is not None:
        if pending.logprobs is None:
            pending.logprobs = []
        pending.logprobs += event.logprobs
    pending.finish = event.finish or pending.finish
    pending.cached_tokens = pending.cached_tokens or event.cached_tokens
    if pending.queued_s is None:
        pending.queued_s, pending.prompt_logprobs = event.queued_s, event.prompt_logprobs


def _cut(event: TokenEvent, count: int) -> TokenEvent:
    """Return the first `count` tokens as an event of their own and take them off `event`."""
    logprobs: list[Logprobs] | None = None
    if event.logprobs is not None:
        logprobs = event.logprobs[:count]
        del event.logprobs[:count]
    head = replace(event, tokens=event.tokens[:count], logprobs=logprobs, finish=None)
    del event.tokens[:count]
    event.cached_tokens, event.queued_s, event.prompt_logprobs = 0, None, None
    return head
