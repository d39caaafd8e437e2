"""Parcels at a worker: what has arrived by a road waits here, what is sent goes out from here.

A road's thread brings what arrives, and is kept waiting while there is too much of it; the main
thread takes it out, in the order in which steps and drops were posted.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from blitzgw.core.parcels import DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.step import Send
from blitzgw.transport.parcel import Outgoing, Sent
from blitzgw.worker.faults import Cancelled

log = logging.getLogger(__name__)

INBOX_BYTES = 1 << 30
"""What may wait to be imported, of all roads: the KV of 8,000 tokens of a model of 8B parameters.
A road of which nothing waits may bring one parcel more, so that no road stops another."""

ENDED_S = 30.0
"""How long parcels of a road that has ended stay when others want their room: a step that imports
them follows at once, or never."""

MAX_ROADS = 1024
"""Roads that are remembered of which nothing waits: their ends, for a parcel that is just being
brought, and their dropped tickets. Far more than are open at one time (transport/edges.py)."""

MAX_DROPPED_TICKETS = 1 << 16
"""Tickets of a road that are remembered as dropped, the latest; a road's parcels are in order, so
that one which still comes is of a late ticket."""


@dataclass(slots=True)
class _Road:
    """What waits of one road, by ticket, and what is not wanted any more."""

    waiting: dict[int, list[tuple[Parcel, memoryview]]] = field(default_factory=dict)
    dropped: OrderedDict[int, None] = field(default_factory=OrderedDict)
    ended_at: float | None = None


class Inbox:
    """The parcels that have arrived. Calls come from any thread; only `put` waits.

    `tell` takes `ParcelArrived`, on the thread that calls `put`. `now` gives seconds.
    """

    def __init__(
        self,
        tell: Callable[[Any], None],
        now: Callable[[], float],
        limit_bytes: int = INBOX_BYTES,
    ) -> None:
        self._tell, self._now, self._limit = tell, now, limit_bytes
        self._changed = threading.Condition()
        self._roads: OrderedDict[str, _Road] = OrderedDict()
        self._size = 0
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """What waits to be imported."""
        return self._size

    def put(self, edge: str, parcel: Parcel, data: memoryview) -> None:
        """Keep a parcel and tell of it; one that was dropped is forgotten.

        Waits for room, until the road's end or `close`: raises Cancelled then.
        """
        with self._changed:
            while not self._has_room(edge, len(data)):
                self._changed.wait(ENDED_S)
            if self._is_dropped(edge, parcel.ticket):
                return
            self._road(edge).waiting.setdefault(parcel.ticket, []).append((parcel, data))
            self._size += len(data)
        self._tell(ParcelArrived(edge, parcel))

    def take(self, edge: str, ticket: int) -> list[tuple[Parcel, memoryview]]:
        """Take out all that has arrived by a ticket, in that order; nothing where none has."""
        with self._changed:
            road = self._roads.get(edge)
            return [] if road is None else self._take(road, ticket)

    def drop(self, edge: str, tickets: Sequence[int]) -> None:
        """Forget what has arrived or still arrives by these tickets."""
        with self._changed:
            road = self._road(edge)
            for ticket in tickets:
                self._take(road, ticket)
                if road.ended_at is None:
                    road.dropped[ticket] = None
            while len(road.dropped) > MAX_DROPPED_TICKETS:
                road.dropped.popitem(last=False)
            self._changed.notify_all()

    def end(self, edge: str) -> None:
        """Wake whoever brings a parcel of a road that has ended; what has arrived stays."""
        with self._changed:
            road = self._road(edge)
            road.dropped.clear()
            road.ended_at = self._now()
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget all that has arrived: nobody is left to import it."""
        with self._changed:
            for road in self._roads.values():
                road.waiting.clear()
            self._size = 0
            self._changed.notify_all()

    def close(self) -> None:
        """Forget everything, and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.clear()

    def _has_room(self, edge: str, size: int) -> bool:
        """Say whether a parcel is to be dealt with now. Raises Cancelled where it cannot be."""
        road = self._road(edge)
        if self._closed or road.ended_at is not None:
            raise Cancelled
        if self._size + size <= self._limit or not road.waiting:
            return True
        self._sweep()
        return self._size + size <= self._limit

    def _sweep(self) -> None:
        """Forget what is left of roads that ended long ago."""
        latest = self._now() - ENDED_S
        for edge, road in self._roads.items():
            if road.waiting and road.ended_at is not None and road.ended_at <= latest:
                log.warning("parcels_abandoned edge=%s tickets=%d", edge, len(road.waiting))
                for ticket in list(road.waiting):
                    self._take(road, ticket)

    def _is_dropped(self, edge: str, ticket: int) -> bool:
        return ticket in self._road(edge).dropped

    def _road(self, edge: str) -> _Road:
        """Return a road, a new one where it is not known; the oldest may be forgotten for it."""
        road = self._roads.get(edge)
        if road is not None:
            return road
        if len(self._roads) >= MAX_ROADS:
            first = next((e for e, known in self._roads.items() if not known.waiting), None)
            if first is not None:
                del self._roads[first]
        road = self._roads[edge] = _Road()
        return road

    def _take(self, road: _Road, ticket: int) -> list[tuple[Parcel, memoryview]]:
        parcels = road.waiting.pop(ticket, [])
        if parcels:
            self._size -= sum(len(data) for _, data in parcels)
            self._changed.notify_all()
        return parcels


class ParcelEdges(Protocol):
    """The part of a worker's edges that sends parcels (transport/edges.py)."""

    def send_parcels(self, edge: str, outgoing: Sequence[Outgoing], sent: Sent) -> None:
        """Send parcels when their turn comes; `sent` is told once."""

    def drop_parcels(self, edge: str, tickets: Sequence[int]) -> None:
        """Forget what is still to be sent by these tickets."""


class Roads:
    """What the main thread does with parcels, beside computing: `executor.ParcelPort`."""

    def __init__(
        self,
        inbox: Inbox,
        edges: ParcelEdges,
        tell: Callable[[ParcelsSent], None],
        now: Callable[[], float],
    ) -> None:
        self._inbox, self._edges, self._tell, self._now = inbox, edges, tell, now

    def take(self, edge: str, ticket: int) -> list[tuple[Parcel, memoryview]]:
        """Take out all that has arrived by a ticket."""
        return self._inbox.take(edge, ticket)

    def send(self, send: Send, outgoing: Sequence[Outgoing]) -> None:
        """Queue the parcels of a `Send`; `ParcelsSent` follows, unless they are dropped."""
        began = self._now()

        def sent(size_bytes: int, _seconds: float, reason: str) -> None:
            seconds = self._now() - began
            self._tell(ParcelsSent(send.edge, send.ticket, size_bytes, seconds, reason))

        self._edges.send_parcels(send.edge, outgoing, sent)

    def drop(self, message: DropParcels) -> None:
        """Forget what came, or comes, or is still to go by some tickets of a road."""
        self._edges.drop_parcels(message.edge, message.tickets)
        self._inbox.drop(message.edge, message.tickets)
