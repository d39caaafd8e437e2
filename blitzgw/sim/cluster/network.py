"""The network of a simulated cluster at the level of flows: rates, not packets.

Every node has a full-duplex port: `tx` and `rx` are two resources; a disk and the memory for host
copies are resources too. Flows that share resources get max-min fair rates (planner/fairshare.py).
Requests' bytes go before weights at every resource: weights have what these leave. Rates are
computed anew only for the flows that a change can reach over shared resources, each class by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from blitzgw.core.transfer import PIECE_BYTES, TrafficClass
from blitzgw.scaling.planner.fairshare import fair_rates
from blitzgw.sim.cluster.flows import (
    CLASSES,
    EARLY_S,
    REQUESTS,
    WEIGHTS,
    Flow,
    Parcel,
    Resource,
)
from blitzgw.sim.heap import EventHeap

SAME_RATE = 1e-9
"""Rates that differ by less than this share of themselves are the same."""

MAX_ROUNDS = 100
"""Of one change: flows that follow others change these others' shares only through ports that they
have in common, which settles within a few rounds."""


class FlowNetwork:
    """All resources of a cluster of `nodes`, and the flows over them.

    Rates are in bytes/s, of payload: `link` of each port in each direction, `local` between workers
    of one node. What forwards weights is a piece behind what it gets, or `lag_s` at the link's rate
    where that is more. `cores` processors are shared by all that `compute` is told of.
    """

    def __init__(
        self,
        heap: EventHeap,
        nodes: int,
        *,
        link: float,
        disk: float,
        host: float,
        local: float,
        lag_s: float = 0.0,
        cores: float = inf,
    ) -> None:
        self.heap = heap
        self.link, self.local = link, local
        self.lag_bytes = max(PIECE_BYTES, lag_s * link)
        self.tx = [Resource(f"n{i} tx", link) for i in range(nodes)]
        self.rx = [Resource(f"n{i} rx", link) for i in range(nodes)]
        self.disks = [Resource(f"n{i} disk", disk) for i in range(nodes)]
        self.hosts = [Resource(f"n{i} host", host) for i in range(nodes)]
        self._processors = Resource("processors", cores)
        self._dirty: tuple[dict[Resource, None], dict[Resource, None]] = ({}, {})
        self._touched: dict[Flow, None] = {}
        self._busy = False

    # Requests.

    def send(
        self,
        source: int,
        target: int,
        size_bytes: float,
        lane: TrafficClass,
        done: Callable[[], object],
    ) -> Parcel:
        """Send bytes from a node to a node; what a message takes besides is not in it."""
        rank = WEIGHTS if lane is TrafficClass.WEIGHTS else REQUESTS
        resources, ceiling = self.way(source, target)
        parcel = Parcel(self, resources, size_bytes, done, rank, ceiling)
        self.start(parcel)
        return parcel

    def compute(self, duration_s: float, done: Callable[[], object]) -> None:
        """Have a thread of some node compute for so long, if it has a processor for itself."""
        if duration_s > 0.0:
            self.start(Parcel(self, (self._processors,), duration_s, done, ceiling=1.0))
        else:
            done()

    def way(self, source: int, target: int) -> tuple[tuple[Resource, ...], float]:
        """Return what a flow between two nodes uses, and its ceiling."""
        if source == target:
            return (), self.local
        return (self.tx[source], self.rx[target]), inf

    def rate(self, source: int, target: int) -> float:
        """Return what a flow between two nodes has if it is alone, in bytes/s."""
        if source == target:
            return self.local
        return min(self.tx[source].capacity, self.rx[target].capacity)

    def slow(self, node: int, factor: float) -> None:
        """Have a node's port go at a share of its rate from now on."""
        for resource in (self.tx[node], self.rx[node]):
            resource.capacity = self.link * factor
            for rank in (REQUESTS, WEIGHTS):
                self._dirty[rank][resource] = None
        self.mend()

    def bytes_by_link(self) -> dict[str, dict[str, float]]:
        """Return what the ports have carried that have carried anything."""
        for resource in (*self.tx, *self.rx):
            for flows in resource.flows:
                for flow in flows:
                    flow.settle()
        return {
            resource.name: dict(zip(CLASSES, resource.carried, strict=True))
            for pair in zip(self.tx, self.rx, strict=True)
            for resource in pair
            if any(resource.carried)
        }

    # Flows.

    def start(self, flow: Flow) -> None:
        """Give a flow its share from now on."""
        self.activate(flow)
        self.mend()

    def stop(self, flow: Flow) -> None:
        """End a flow for good."""
        self.deactivate(flow)
        flow.over = True
        self.mend()

    def activate(self, flow: Flow) -> None:
        """Have a flow take part, or be looked at again; `mend` gives it its rate."""
        if not flow.active:
            flow.active, flow.at_s, flow.bound = True, self.heap.now, 0.0
            for resource in flow.resources:
                resource.flows[flow.rank][flow] = None
        self.reconsider(flow)

    def deactivate(self, flow: Flow) -> None:
        """Have a flow take no part for now; `mend` gives its share to others."""
        flow.settle()
        if not flow.active:
            return
        flow.active, flow.rate = False, 0.0
        for resource in flow.resources:
            del resource.flows[flow.rank][flow]
        self._mark(flow)
        self._touched[flow] = None

    def reconsider(self, flow: Flow) -> None:
        """Note that a flow's limit, or what is due to it, may have changed; `mend` follows."""
        self._touched[flow] = None
        if not flow.active:
            return
        limit = flow.limit()
        if limit == flow.bound or (flow.rate < flow.bound and flow.rate <= limit):
            return  # it has what its ports give
        if flow.resources:
            self._mark(flow)
        else:
            flow.bound = limit
            self._assign({flow: limit})

    def _mark(self, flow: Flow) -> None:
        dirty = self._dirty[flow.rank]
        for resource in flow.resources:
            dirty[resource] = None

    def mend(self) -> None:
        """Give every flow that a change can have reached its rate, and its next moment."""
        if self._busy:
            return
        self._busy = True
        for _ in range(MAX_ROUNDS):
            if not (self._dirty[REQUESTS] or self._dirty[WEIGHTS]):
                break
            for rank in (REQUESTS, WEIGHTS):
                self._share(rank)
        self._busy = False
        for dirty in self._dirty:
            dirty.clear()  # of followers that never agree: as near as it gets
        touched, self._touched = self._touched, {}
        for flow in touched:
            self._arm(flow)

    def _share(self, rank: int) -> None:
        """Compute the rates of a class around what is dirty."""
        dirty = self._dirty[rank]
        if not dirty:
            return
        left = _left_at(rank)
        flows = self._reach(rank)
        if rank == REQUESTS:
            for flow in flows:
                for resource in flow.resources:
                    dirty[resource] = None
            self._dirty[WEIGHTS].update(dirty)  # what requests leave has changed
        dirty.clear()
        if len(flows) == 1:
            flow = flows[0]
            flow.bound = flow.limit()
            self._assign({flow: min(flow.bound, *[left(each) for each in flow.resources])})
        elif flows:
            self._assign(_fair(flows, left))

    def _reach(self, rank: int) -> list[Flow]:
        """Return the active flows of a class that are joined to what is dirty by resources."""
        found: dict[Flow, None] = {}
        seen = set(self._dirty[rank])
        waiting = [*self._dirty[rank]]
        while waiting:
            for flow in waiting.pop().flows[rank]:
                if flow in found:
                    continue
                found[flow] = None
                for resource in flow.resources:
                    if resource not in seen:
                        seen.add(resource)
                        waiting.append(resource)
        return [*found]

    def _assign(self, rates: dict[Flow, float]) -> None:
        for flow, rate in rates.items():
            if abs(rate - flow.rate) <= SAME_RATE * rate:
                continue
            flow.settle()
            flow.rate = rate
            self._touched[flow] = None
            for follower in flow.followers():
                follower.settle()
                self.reconsider(follower)

    # Moments.

    def _arm(self, flow: Flow) -> None:
        """Have a flow act when something is due; an event that comes too early looks again."""
        if flow.over:
            return
        flow.settle()
        due_s = self.heap.now + flow.due_s()
        if due_s < flow.armed_s:
            flow.armed += 1
            flow.armed_s = due_s
            self.heap.at(due_s, self._fire, flow, flow.armed)

    def _fire(self, flow: Flow, armed: int) -> None:
        if flow.over or armed != flow.armed:
            return
        flow.armed_s = inf
        flow.settle()
        if flow.due_s() <= EARLY_S:
            flow.act()
        else:
            self._arm(flow)


def _left_at(rank: int) -> Callable[[Resource], float]:
    """Return what tells how much of a resource a class can have."""
    return Resource.left if rank == WEIGHTS else lambda resource: resource.capacity


def _fair(flows: Sequence[Flow], left: Callable[[Resource], float]) -> dict[Flow, float]:
    """Return the max-min fair rates of flows that share resources."""
    numbers: dict[Resource, int] = {}
    for flow in flows:
        for resource in flow.resources:
            numbers.setdefault(resource, len(numbers))
    uses = {i: [numbers[r] for r in flow.resources] for i, flow in enumerate(flows)}
    for flow in flows:
        flow.bound = flow.limit()
    ceilings = {i: flow.bound for i, flow in enumerate(flows) if flow.bound < inf}
    rates = fair_rates(uses, [left(resource) for resource in numbers], ceilings)
    return {flow: rates[i] for i, flow in enumerate(flows)}
