"""Pipelines as the live scheduler sees them: which events are theirs, and the books of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blitzgw.core.live import (
    NoRoom,
    Pass,
    Purpose,
    Reserve,
    Reserved,
    Return,
    Sampled,
    StageReady,
    Withdraw,
    pairing_of,
)
from blitzgw.core.parcels import ParcelArrived, ParcelsSent
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    PairingClosed,
    PairingOpened,
    StageAssigned,
    StageResident,
)
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.kept import KeptSequences
from blitzgw.scheduler.live.lead import Lead
from blitzgw.scheduler.live.returning import Returning
from blitzgw.scheduler.live.stagebooks import StageBooks
from blitzgw.scheduler.live.stages import Stages
from blitzgw.scheduler.sequence import Sequence

Handler = Callable[[Any, float], list[Effect]]


class Pipelines:
    """The stages of a worker. `end` lets a sequence go that has its last token."""

    def __init__(
        self, books: LiveBooks, kept: KeptSequences, end: Callable[[Sequence], None]
    ) -> None:
        self.books = StageBooks(books)
        self.returning = Returning(self.books)
        self.lead = Lead(self.books, self.returning, kept, end)
        self.stages = Stages(self.books, self.lead, self.returning)

    def handlers(self, others: dict[type, Handler]) -> dict[type, Handler]:
        """Return how events are handled: the pipelines' own here, all others as before."""
        stages = self.stages
        shared: dict[type, Handler] = {
            PairingOpened: self._act(stages.opened),
            PairingClosed: self._act(lambda event: stages.closed(event.pairing, event.reason)),
            ParcelArrived: self._act(lambda event: stages.arrived(event.edge, event.parcel)),
            ParcelsSent: self._act(stages.sent),
            Withdraw: self._act(stages.withdrawn),
            NoRoom: self._act(stages.refused),
        }
        own: dict[type, Handler] = {
            StageAssigned: self._act(stages.assigned),
            StageResident: self._act(lambda event: stages.resident(event.instance)),
            StageReady: self._act(stages.ready),
            Reserve: self._act(stages.reserve),
            Reserved: self._on_reserved,
            Pass: self._act(stages.passed),
            Return: self._act(stages.returned),
            Sampled: self._on_sampled,
        }
        choices = {
            kind: self._choose(handler, others.get(kind)) for kind, handler in shared.items()
        }
        return {**others, **own, **choices}

    def _choose(self, ours: Handler, other: Handler | None) -> Handler:
        def handle(event: Any, now: float) -> list[Effect]:
            if self._concerns(event):
                return ours(event, now)
            return other(event, now) if other is not None else []

        return handle

    def _concerns(self, event: Any) -> bool:
        if isinstance(event, PairingOpened):
            lane = self.books.live.planner.lanes.get(event.here)
            return lane is not None and event.purpose is Purpose.STAGE
        parcels = isinstance(event, ParcelArrived | ParcelsSent)
        if parcels and self.returning.takes(event.edge):
            return False
        pairing = pairing_of(event.edge) if parcels else event.pairing
        return pairing in self.books.hosts or pairing in self.books.guests

    def _act(self, act: Callable[[Any], None]) -> Handler:
        def handle(event: Any, _now: float) -> list[Effect]:
            act(event)
            return []

        return handle

    def _on_reserved(self, event: Reserved, now: float) -> list[Effect]:
        self.stages.reserved(event, now)
        return []

    def _on_sampled(self, event: Sampled, _now: float) -> list[Effect]:
        events = self.stages.sampled(event)
        return [EmitTokens(events)] if events else []

    def compose(self, lane: Lane) -> Batch | None:
        """Put the next step of a stage together; None if there is nothing, or not its turn.

        A stage that is complete takes turns with what it serves by itself.
        """
        if not lane.relays or (lane.relayed_last and (lane.decoding or lane.prefilling)):
            lane.relayed_last = False
            return None
        batch = self.stages.compose(lane)
        lane.relayed_last = bool(batch)
        return batch if batch else None
