"""A network that loses, delays, reorders and doubles datagrams, and can be cut; from a seed.

Latency is a floor plus an exponential tail, so that packets overtake each other. A stream (the
exchanges of anti-entropy) loses nothing: a lost segment costs it a retransmission time-out, doubled
each time, and a cut makes it wait until it gives up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from math import log

from blitzgw.gossip.events import Address

LATENCY_FLOOR_S = 0.0002
"""One way between hosts of a data centre, with two passes through an event loop."""

LATENCY_TAIL_S = 0.0004
"""Mean of the exponential part: a p99 of 2 ms, as on busy hosts."""

RETRANSMIT_S = 0.2
"""Linux's least retransmission time-out of TCP; doubled at each further loss."""

RETRANSMITS = 6
"""After so many losses in a row (12.6 s) nobody still waits for an exchange."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Nothing passes from `sources` to `targets`. One direction only: a partition is two cuts."""

    sources: frozenset[Address]
    targets: frozenset[Address]


@dataclass(frozen=True, slots=True, eq=False)
class Lossy:
    """What arrives at `targets` is lost with a probability."""

    targets: frozenset[Address]
    loss: float


Fault = Cut | Lossy


class Network:
    """Decides what becomes of each datagram and each leg of a stream. Probabilities in [0, 1]."""

    def __init__(
        self,
        rng: random.Random,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        floor_s: float = LATENCY_FLOOR_S,
        tail_s: float = LATENCY_TAIL_S,
    ) -> None:
        self.loss = loss
        self.duplication = duplication
        self._random = rng.random
        self._floor_s = floor_s
        self._tail_s = tail_s
        self._cuts: list[Cut] = []
        self._lossy: list[Lossy] = []

    def calm(self) -> None:
        """Lose and double nothing from now on, and be as quick as usual; cuts stay."""
        self.loss = self.duplication = 0.0
        self._floor_s, self._tail_s = LATENCY_FLOOR_S, LATENCY_TAIL_S

    def add(self, fault: Fault) -> Fault:
        """Begin a fault; return it as the handle that ends it."""
        if isinstance(fault, Cut):
            self._cuts.append(fault)
        else:
            self._lossy.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """End a fault."""
        if isinstance(fault, Cut):
            self._cuts.remove(fault)
        else:
            self._lossy.remove(fault)

    def partition(self, one: Iterable[Address], other: Iterable[Address]) -> tuple[Fault, Fault]:
        """Cut two groups off from each other; return the two faults."""
        here, there = frozenset(one), frozenset(other)
        return self.add(Cut(here, there)), self.add(Cut(there, here))

    def open(self, source: Address, target: Address) -> bool:
        """Return whether no cut lies on the way from one address to another."""
        return not any(source in cut.sources and target in cut.targets for cut in self._cuts)

    def connected(self, one: Address, other: Address) -> bool:
        """Return whether no cut lies between two addresses in either direction."""
        return not self._cuts or (self.open(one, other) and self.open(other, one))

    def datagram(self, source: Address, target: Address) -> tuple[float, ...]:
        """Return after how many seconds a datagram arrives: once, never, or twice."""
        if self._cuts and not self.open(source, target):
            return ()
        chance = self._loss_at(target) if self._lossy else self.loss
        if chance and self._random() < chance:
            return ()
        if self.duplication and self._random() < self.duplication:
            return self._latency(), self._latency()
        return (self._latency(),)

    def leg(self, source: Address, target: Address) -> float | None:
        """Return how long one message of a stream takes; None: longer than anybody waits."""
        if not self.connected(source, target):
            return None
        delay_s = self._latency()
        lost = 1 - (1 - self._loss_at(target)) * (1 - self._loss_at(source))
        if lost:
            for attempt in range(RETRANSMITS):
                if self._random() >= lost:
                    return delay_s
                delay_s += RETRANSMIT_S * 2**attempt
            return None
        return delay_s

    def round_trip(self, source: Address, target: Address) -> float | None:
        """Return how long a handshake takes; None: longer than anybody waits."""
        there = self.leg(source, target)
        return None if there is None else there + self._latency()

    def _loss_at(self, target: Address) -> float:
        arrives = 1 - self.loss
        for fault in self._lossy:
            if target in fault.targets:
                arrives *= 1 - fault.loss
        return 1 - arrives

    def _latency(self) -> float:
        return self._floor_s - self._tail_s * log(1 - self._random())
