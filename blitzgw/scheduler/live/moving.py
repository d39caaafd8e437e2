"""Sequences that move between complete instances: both ends of the pairings that are for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blitzgw.core.live import Move, Moved, NoRoom, Purpose, Room, Withdraw
from blitzgw.core.parcels import ParcelArrived, ParcelsSent
from blitzgw.core.request import GenerationRequest
from blitzgw.scheduler.events import Effect, MoveOut, PairingClosed, PairingOpened, Ticked
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.arriving import Arriving
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.departing import Departing
from blitzgw.scheduler.live.passages import Arrival, Departure, LeavingSide, TakingSide
from blitzgw.scheduler.live.records import Passage
from blitzgw.scheduler.sequence import Sequence

Handler = Callable[[Any, float], list[Effect]]

Build = Callable[[Lane, GenerationRequest, float], Sequence | None]
"""Makes a sequence of a request for a lane; None where it cannot run there."""


class Moving:
    """Knows which end a message about a move is for. `is_taken` tells whose ids are in use."""

    def __init__(self, books: LiveBooks, build: Build, is_taken: Callable[[str], bool]) -> None:
        self._books, self._build, self._is_taken = books, build, is_taken
        self.departing = Departing(books)
        self.arriving = Arriving(books)

    @property
    def lanes(self) -> dict[str, Lane]:
        """Return the instances, by name."""
        return self._books.planner.lanes

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to go on with, or to wait for."""
        return bool(self.departing.sides or self.arriving.arrivals)

    def handlers(self, others: dict[type, Handler]) -> dict[type, Handler]:
        """Return how events are handled: the moves' own here, all others as before."""
        own: dict[type, Callable[[Any, float], None]] = {
            PairingOpened: self._on_opened,
            PairingClosed: self._on_closed,
            ParcelArrived: self._on_arrived,
            ParcelsSent: self._on_sent,
            Withdraw: self._on_withdrawn,
            MoveOut: self._on_move_out,
            Move: self._on_move,
            Moved: self._on_moved,
            Room: self._on_room,
            NoRoom: self._on_no_room,
        }
        chosen = {kind: self._choose(handler, others.get(kind)) for kind, handler in own.items()}
        ticked = others[Ticked]

        def tick(event: Ticked, now: float) -> list[Effect]:
            self.departing.ticked(now)
            self.arriving.ticked(now)
            return ticked(event, now)

        return {**others, **chosen, Ticked: tick}

    def _choose(self, ours: Callable[[Any, float], None], other: Handler | None) -> Handler:
        def handle(event: Any, now: float) -> list[Effect]:
            if not self._concerns(event):
                return other(event, now) if other is not None else []
            ours(event, now)
            return []

        return handle

    def _concerns(self, event: Any) -> bool:
        if isinstance(event, PairingOpened):
            return event.purpose is Purpose.MOVE
        pairing = event.edge if isinstance(event, ParcelArrived | ParcelsSent) else event.pairing
        return pairing in self.departing.sides or pairing in self.arriving.sides

    # Events of these pairings.

    def _on_opened(self, event: PairingOpened, _now: float) -> None:
        if event.pairing in self.departing.sides or event.pairing in self.arriving.sides:
            return
        lane = self.lanes.get(event.here)
        if lane is None or lane.loading:
            self._books.end(event.pairing, f"instance {event.here} cannot take part")
        elif event.guest:
            leaving = LeavingSide(event.pairing, event.here, event.there)
            self.departing.sides[event.pairing] = leaving
        else:
            taking = TakingSide(event.pairing, event.here, event.there)
            self.arriving.sides[event.pairing] = taking

    def _on_closed(self, event: PairingClosed, _now: float) -> None:
        leaving = self.departing.sides.get(event.pairing)
        if leaving is not None:
            self.departing.closed(leaving)
        taking = self.arriving.sides.get(event.pairing)
        if taking is not None:
            self.arriving.closed(taking)

    def _on_arrived(self, event: ParcelArrived, now: float) -> None:
        side = self.arriving.sides.get(event.edge)
        if side is not None:
            self.arriving.arrived(side, event.parcel, now)

    def _on_sent(self, event: ParcelsSent, now: float) -> None:
        side = self.departing.sides.get(event.edge)
        if side is not None:
            self.departing.sent(side, event, now)

    def _on_withdrawn(self, withdraw: Withdraw, _now: float) -> None:
        side = self.arriving.sides.get(withdraw.pairing)
        if side is not None:
            self.arriving.withdrawn(side, withdraw)
        else:
            self.departing.withdrawn(withdraw)

    def _on_move_out(self, order: MoveOut, _now: float) -> None:
        side = self.departing.sides.get(order.pairing)
        if side is not None:
            self.departing.move_out(side, order)

    def _on_move(self, move: Move, now: float) -> None:
        side = self.arriving.sides.get(move.pairing)
        if side is not None:
            seq = None
            if not self._is_taken(move.request.id):
                seq = self._build(self.lanes[side.here], move.request, now)
            self.arriving.asked(side, move, seq, now)

    def _on_moved(self, moved: Moved, now: float) -> None:
        side = self.arriving.sides.get(moved.pairing)
        if side is not None:
            self.arriving.moved(side, moved, now)

    def _on_room(self, room: Room, _now: float) -> None:
        self.departing.room(room)

    def _on_no_room(self, refusal: NoRoom, _now: float) -> None:
        self.departing.refused(refusal)

    # What happens to a sequence on its way.

    def evicted(self, passage: Passage) -> bool:
        """Note that it has lost its memory; tell whether it does not queue here."""
        if isinstance(passage, Arrival):
            return self.arriving.evicted(passage)
        self._let_go(passage)
        return False

    def let_go(self, passage: Passage) -> None:
        """Note that it ends."""
        if isinstance(passage, Arrival):
            self.arriving.let_go(passage)
        else:
            self._let_go(passage)

    def _let_go(self, passage: Passage) -> None:
        if isinstance(passage, Departure):
            self.departing.let_go(passage)

    def failed(self, passage: Passage) -> bool:
        """Note that a worker has lost it; tell whether its ingress is another's affair."""
        if isinstance(passage, Arrival):
            return self.arriving.failed(passage)
        return isinstance(passage, Departure) and self.departing.failed(passage)

    def removed(self, instance: str) -> None:
        """End what an instance takes part in that is going."""
        self.departing.removed(instance)
        self.arriving.removed(instance)

    def adopt(self, instance: str, request: GenerationRequest, now: float) -> bool:
        """Let a submission have what comes of it; tell whether it does. Else that is dropped."""
        arrival = self.arriving.arrivals.get(request.id)
        if arrival is None or request.attempt <= arrival.seq.attempt:
            return False
        if arrival.seq.instance == instance and self.arriving.submitted(arrival, request, now):
            return True
        if not arrival.parked:
            self.arriving.give_up(arrival)
        return False
