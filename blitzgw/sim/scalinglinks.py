"""Peer links between simulated nodes: ordered, delayed, cut by partitions, broken by crashes.

What is sent into a partition or to who has ended is lost, and so is what is on its way when a link
breaks; each end is told `LinkLost` some time after, as the production links do that notice a
silent or a reset connection.
"""

from __future__ import annotations

import random
from typing import Any, Protocol

from blitzgw.sim.heap import EventHeap

LATENCY_S = (0.0003, 0.002)
"""One way, with two passes through an event loop."""

RESET_S = (0.0, 0.1)
"""Until an end of a broken link whose other end is well, or has crashed, notices."""

SILENCE_S = (0.3, 2.0)
"""Until an end of a link that is cut notices: nothing comes, nothing is acknowledged."""


class Peer(Protocol):
    """A process as links see it."""

    boot: str
    index: int
    running: bool

    def hear(self, boot: str, message: Any) -> None:
        """Take a message."""

    def link_lost(self, boot: str) -> None:
        """Take the news that messages may have been lost."""


class PeerLinks:
    """All links. `peers` are all processes that have ever been, by boot id."""

    def __init__(self, heap: EventHeap, rng: random.Random, peers: dict[str, Any]) -> None:
        self._heap, self._rng, self._peers = heap, rng, peers
        self._sides: list[frozenset[int]] = []
        self._delays: dict[int, float] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._breaks: dict[tuple[str, str], int] = {}
        self._warned: set[tuple[str, str]] = set()
        self.sent = 0

    # What goes wrong.

    def connected(self, one: int, other: int) -> bool:
        """Whether two nodes (by index) are on the same side of every partition."""
        return all((one in side) == (other in side) for side in self._sides)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return not self._sides

    def split(self, side: frozenset[int]) -> None:
        """Cut some nodes off from all others."""
        self._sides.append(side)
        for one, other in sorted(self._pairs()):
            if (self._peers[one].index in side) != (self._peers[other].index in side):
                self._break(one, other, SILENCE_S)

    def heal(self, side: frozenset[int]) -> None:
        """End a partition."""
        self._sides.remove(side)

    def slow(self, index: int, delay_s: float) -> None:
        """Delay what a node says and hears by so much from now on."""
        self._delays[index] = delay_s

    def delay_s(self, index: int) -> float:
        """Return how slow a node is."""
        return self._delays.get(index, 0.0)

    def lose(self, one: str, other: str) -> None:
        """Break the link of two processes, if they have one."""
        if (min(one, other), max(one, other)) in self._pairs():
            self._break(one, other, RESET_S)

    def ended(self, boot: str) -> None:
        """Break all links of a process that has ended."""
        for one, other in sorted(self._pairs()):
            if boot in (one, other):
                self._break(one, other, RESET_S)
        self._last = {way: at for way, at in self._last.items() if boot not in way}

    def _pairs(self) -> set[tuple[str, str]]:
        return {(min(way), max(way)) for way in self._last}

    def _break(self, one: str, other: str, within_s: tuple[float, float]) -> None:
        for way in ((one, other), (other, one)):
            self._breaks[way] = self._breaks.get(way, 0) + 1
            self._warn(way, within_s)

    def _warn(self, way: tuple[str, str], within_s: tuple[float, float]) -> None:
        if way not in self._warned:
            self._warned.add(way)
            self._heap.after(self._rng.uniform(*within_s), self._tell_lost, way)

    def _tell_lost(self, way: tuple[str, str]) -> None:
        self._warned.discard(way)
        peer = self._peers[way[0]]
        if peer.running:
            peer.link_lost(way[1])

    # Messages.

    def send(self, sender: Peer, boot: str, message: Any) -> None:
        """Send a message to a process; to the sender itself it takes no time."""
        self.sent += 1
        if boot == sender.boot:
            self._heap.after(0.0, self._hear_self, sender, message)
            return
        way = (sender.boot, boot)
        peer = self._peers.get(boot)
        if peer is None or not peer.running:
            self._warn(way, RESET_S)
        elif not self.connected(sender.index, peer.index):
            self._warn(way, SILENCE_S)
        else:
            low, high = LATENCY_S
            delay_s = low + (high - low) * self._rng.random()
            if self._delays:
                delay_s += self.delay_s(sender.index) + self.delay_s(peer.index)
            now = self._heap.now
            at_s = max(self._last.get(way, 0.0), now + delay_s)
            self._last[way] = at_s
            self._heap.at(at_s, self._deliver, peer, way, self._breaks.get(way, 0), message)

    def _hear_self(self, sender: Peer, message: Any) -> None:
        if sender.running:
            sender.hear(sender.boot, message)

    def _deliver(self, peer: Peer, way: tuple[str, str], breaks: int, message: Any) -> None:
        if peer.running and self._breaks.get(way, 0) == breaks:
            peer.hear(way[0], message)
