"""Sequences that run on an instance before their ingress has submitted them there.

Their tokens are held back. Who submits the same request with a later attempt and no tokens that are
not the sequence's own takes it over: all that is known beyond is told at once, and it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable

from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.scheduler.live.records import Keep
from blitzgw.scheduler.sequence import Phase, Sequence

KEPT_S = 10.0
"""Nobody comes within this time: the ingress is gone, or has gone elsewhere. Resubmitting takes a
round trip; a node that finds out that another is dead takes a few seconds."""


class KeptSequences:
    """Sequences without an ingress, by the ids of their requests."""

    def __init__(self) -> None:
        self._keeps: dict[str, Keep] = {}

    def __bool__(self) -> bool:
        return bool(self._keeps)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._keeps

    def keep(self, seq: Sequence, pairing: str, now: float) -> None:
        """Hold a sequence's tokens back from now on."""
        seq.role = self._keeps[seq.id] = Keep(seq, pairing, now + KEPT_S)

    def get(self, request_id: str) -> Keep | None:
        """Return what is kept of a request."""
        return self._keeps.get(request_id)

    def count(self, instance: str) -> int:
        """Return how many an instance keeps."""
        return sum(1 for keep in self._keeps.values() if keep.seq.instance == instance)

    def all(self) -> list[Keep]:
        """Return everything kept."""
        return list(self._keeps.values())

    def hold(self, events: Iterable[TokenEvent]) -> list[TokenEvent]:
        """Return the events that may be told; keep the others."""
        told = []
        for event in events:
            keep = self._keeps.get(event.request_id)
            if keep is not None and keep.seq.attempt == event.attempt:
                keep.held.append(event)
            else:
                told.append(event)
        return told

    def forget(self, request_id: str) -> None:
        """Keep a sequence no longer."""
        keep = self._keeps.pop(request_id, None)
        if keep is not None:
            keep.seq.role = None

    def expired(self, now: float) -> list[Keep]:
        """Return what nobody has come for in time."""
        return [keep for keep in self._keeps.values() if now >= keep.until_s]

    def adopt(self, keep: Keep, request: GenerationRequest) -> TokenEvent | None:
        """Let a submission take a sequence over; return what is told at once, if anything.

        The caller has seen to it that the submission `continues` it.
        """
        seq = keep.seq
        self.forget(seq.id)
        seq.request, seq.attempt, seq.priority = request, request.attempt, request.priority
        fresh = seq.tokens[len(request.tokens) :].tolist()
        finish = keep.held[-1].finish if keep.held else None
        if not fresh and finish is None:
            return None
        event = TokenEvent(seq.id, seq.attempt, fresh)
        if fresh:
            logprobs = [one for held in keep.held for one in held.logprobs or ()]
            event.logprobs = logprobs[-len(fresh) :] or None
        if keep.held:
            first = keep.held[0]
            event.cached_tokens, event.queued_s = first.cached_tokens, first.queued_s
            event.route, event.finish = first.route, finish
        return event


def continues(keep: Keep, request: GenerationRequest) -> bool:
    """Tell whether a submission can take over what is kept.

    A sequence that has been lost or dropped meanwhile cannot go on.
    """
    seq = keep.seq
    if request.attempt <= seq.attempt or len(request.tokens) > len(seq.tokens):
        return False
    known = tuple(seq.tokens[: len(request.tokens)]) == request.tokens
    same = (request.prompt_length, request.sampling, request.choice, request.tenant) == (
        seq.request.prompt_length,
        seq.request.sampling,
        seq.request.choice,
        seq.request.tenant,
    )
    over = seq.phase is Phase.ENDED
    return known and same and (not over or bool(keep.held and keep.held[-1].finish))
