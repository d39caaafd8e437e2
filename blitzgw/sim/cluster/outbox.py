"""Tokens on their way to whoever asked for them: handed over late, with the moment of the last one.

Between its first token and its last nobody looks at how far an answer is, so what comes in between
is gathered: one event for a request instead of one for each step. What is told of a request's first
token, of its end, and of its loss finds all gathered before it handed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blitzgw.core.request import TokenEvent

if TYPE_CHECKING:
    from blitzgw.sim.cluster.serving import Serving


class Outbox:
    """Of one device."""

    def __init__(self, serving: Serving) -> None:
        self._gate, self._wire = serving.gate, serving.wire
        self._gathered: dict[str, tuple[TokenEvent, float]] = {}

    def put(self, events: Iterable[TokenEvent], at_s: float) -> None:
        """Take what was sampled at a moment."""
        gathered = self._gathered
        notable = []
        for event in events:
            name = event.request_id
            before = gathered.get(name)
            if before is not None and before[0].attempt == event.attempt and event.finish is None:
                before[0].tokens += event.tokens
                gathered[name] = (before[0], at_s)
                continue
            if before is not None:
                self._hand_over([gathered.pop(name)[0]], before[1])
            if event.finish is None and event.queued_s is None and not event.route:
                gathered[name] = (event, at_s)
            else:
                notable.append(event)
        if notable:
            self._hand_over(notable, at_s)

    def flush(self) -> None:
        """Hand over what is gathered."""
        gathered, self._gathered = self._gathered, {}
        for event, at_s in gathered.values():
            self._hand_over([event], at_s)

    def _hand_over(self, events: list[TokenEvent], at_s: float) -> None:
        self._wire.told_s = at_s
        self._gate.on_tokens(events)
        self._wire.told_s = -1.0
