"""What moves in a simulated cluster, and what it shares: flows of bytes, and resources of a rate.

position(t) = position(at_s) + rate · (t − at_s)        until something changes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blitzgw.sim.cluster.network import FlowNetwork

REQUESTS, WEIGHTS = 0, 1
"""Classes of flows: the lower has what it can use before the higher gets anything."""

CLASSES = ("requests", "weights")
"""What the classes are called in records."""

EARLY_S = 1e-9
"""What is due within this is due now: less than any latency, more than what sums are off by."""


class Resource:
    """Something of a rate that flows share. `carried` counts bytes by class."""

    __slots__ = ("capacity", "carried", "flows", "name")

    def __init__(self, name: str, capacity: float) -> None:
        self.name, self.capacity = name, capacity
        self.flows: tuple[dict[Flow, None], dict[Flow, None]] = ({}, {})
        self.carried = [0.0, 0.0]

    def left(self) -> float:
        """Return what requests leave to weights."""
        requests = self.flows[REQUESTS]
        if not requests:
            return self.capacity
        return max(0.0, self.capacity - sum(flow.rate for flow in requests))


class Flow:
    """Bytes on their way over some resources, at most at `ceiling` bytes/s.

    While `active` it has a share. Subclasses say when something is due (`due_s`) and what happens
    then (`act`).
    """

    __slots__ = (
        "active", "armed", "armed_s", "at_s", "bound", "ceiling", "network", "over", "position",
        "rank", "rate", "resources",
    )  # fmt: skip

    def __init__(
        self, network: FlowNetwork, resources: tuple[Resource, ...], rank: int, ceiling: float = inf
    ) -> None:
        self.network, self.resources, self.rank, self.ceiling = network, resources, rank, ceiling
        self.rate = self.position = 0.0
        self.bound = 0.0
        """The limit that its rate was computed with."""
        self.at_s = network.heap.now
        self.active = self.over = False
        self.armed, self.armed_s = 0, inf

    def settle(self) -> None:
        """Bring the position up to the present."""
        now = self.network.heap.now
        if self.rate > 0.0 and now > self.at_s:
            moved = self.rate * (now - self.at_s)
            self.position += moved
            for resource in self.resources:
                resource.carried[self.rank] += moved
        self.at_s = now

    def followers(self) -> Iterable[Flow]:
        """Return the flows whose own ceiling, or next moment, depends on this one's rate."""
        return ()

    def limit(self) -> float:
        """Return the rate that it can use at most now."""
        return self.ceiling

    def due_s(self) -> float:
        """Return in how many seconds something happens to it, if rates stay; settled before."""
        raise NotImplementedError

    def act(self) -> None:
        """Do what is due."""
        raise NotImplementedError


class Parcel(Flow):
    """So many bytes of a request; `done` is called when the last one is there."""

    __slots__ = ("_done", "_size")

    def __init__(
        self,
        network: FlowNetwork,
        resources: tuple[Resource, ...],
        size_bytes: float,
        done: Callable[[], object],
        rank: int = REQUESTS,
        ceiling: float = inf,
    ) -> None:
        super().__init__(network, resources, rank, ceiling)
        self._size, self._done = size_bytes, done

    def due_s(self) -> float:
        """Return when the last byte is there, at the present rate."""
        left = self._size - self.position
        if left <= 0.0:
            return 0.0
        return left / self.rate if self.rate > 0.0 else inf

    def act(self) -> None:
        """Arrive."""
        self.network.stop(self)
        self._done()

    def cancel(self) -> None:
        """Send no more; `done` is not called."""
        if not self.over:
            self.network.stop(self)
