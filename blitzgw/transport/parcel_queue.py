"""What waits on a road: calls of parcels, and whose turn is next."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from blitzgw.transport.parcel import MAX_QUEUED_PARCELS, Outgoing, Sent

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Call:
    """Parcels that were given together, and who is told of them."""

    sent: Sent
    began_at: float
    left: int
    """Parcels that have been neither written nor dropped."""
    size_bytes: int = 0

    def tell(self, reason: str = "") -> None:
        """Say what has become of it; the queue does so once."""
        try:
            self.sent(self.size_bytes, time.monotonic() - self.began_at, reason)
        except Exception:
            log.exception("road_news_lost")


@dataclass(eq=False, slots=True)
class Item:
    """One parcel of a call. One that is forgotten does not count for its call any more."""

    call: Call
    outgoing: Outgoing
    forgotten: bool = False


class ParcelQueue:
    """Hidden states before KV, else in order. Not thread-safe, and tells nobody by itself.

    What is taken by `next` is the present parcel until `written` or `failed`.
    """

    def __init__(self) -> None:
        self._hidden: deque[Item] = deque()
        self._kv: deque[Item] = deque()
        self._present: Item | None = None

    def __len__(self) -> int:
        return len(self._hidden) + len(self._kv)

    def add(self, outgoing: Sequence[Outgoing], sent: Sent) -> str:
        """Append a call; return why not, where there are too many."""
        if len(self) + len(outgoing) > MAX_QUEUED_PARCELS:
            return f"{len(self)} parcels wait already"
        call = Call(sent, time.monotonic(), len(outgoing))
        for one in outgoing:
            (self._hidden if one.parcel.is_hidden else self._kv).append(Item(call, one))
        return ""

    def next(self) -> Item | None:
        """Take the parcel whose turn it is."""
        waiting = self._hidden or self._kv
        self._present = waiting.popleft() if waiting else None
        return self._present

    def written(self, size_bytes: int) -> Call | None:
        """Count the present parcel; return its call where that is done and is to be told."""
        item, self._present = self._present, None
        if item is None or item.forgotten:
            return None
        item.call.size_bytes += size_bytes
        item.call.left -= 1
        return item.call if item.call.left == 0 else None

    def failed(self) -> Call | None:
        """Drop the present parcel and the rest of its call; return that where it is to be told."""
        item, self._present = self._present, None
        if item is None:
            return None
        call, told = item.call, item.call.left > 0
        self._keep(lambda other: other.call is not call)
        call.left = 0
        return call if told else None

    def drop(self, tickets: Collection[int]) -> None:
        """Forget parcels by their tickets, the present one too: it is sent, and counts no more."""
        gone = frozenset(tickets)
        present = self._present
        for item in [*self._hidden, *self._kv, *([present] if present else [])]:
            if item.outgoing.parcel.ticket in gone and not item.forgotten:
                item.forgotten = True
                item.call.left -= 1
        self._keep(lambda item: not item.forgotten)

    def clear(self) -> list[Call]:
        """Forget everything; return the calls to be told, in order of their parcels."""
        items = [*([self._present] if self._present else []), *self._hidden, *self._kv]
        self._present = None
        self._keep(lambda _: False)
        return list(dict.fromkeys(item.call for item in items if item.call.left > 0))

    def _keep(self, keep: Callable[[Item], bool]) -> None:
        self._hidden = deque(filter(keep, self._hidden))
        self._kv = deque(filter(keep, self._kv))
