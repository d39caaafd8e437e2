"""A plan as flows over resources, for the simulation in predict.py.

A flow is an edge or a read, or what another operation brings to a source meanwhile. Its blobs fall
into *runs*: stretches that it gets at its source from one and the same place, in the same order, so
that within a run only one thing can hold it up. A whole chain is one run per edge, and costs a
handful of events however many blobs there are.

    supplier u   ──0────────────┬─ start+shift ─────────────── stop+shift ──►  bytes sent by u
    flow     f   ──0──┬─ start ─────────────── stop ──►                        bytes sent by f
    f may send up to (what u has sent − shift − lag), and all of the run once u has sent all of it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from blitzgw.core.plan import Edge, Holder, Links, Plan, Read, Task, node_of
from blitzgw.scaling.planner.check import resident_blobs
from blitzgw.scaling.planner.rates import read_rate, usable_tx

NEAR_BYTES = 0.5
"""Positions in a flow this close are the same."""


class State(IntEnum):
    """What a flow does."""

    WAITING = 0
    """For its source to have something to send, or for its connection."""
    BOUND = 1
    """Sends what its source gets, as it comes."""
    FREE = 2
    """Sends as fast as the resources allow."""
    DONE = 3


@dataclass(slots=True)
class Run:
    """A stretch of a flow, in bytes of the flow; `supplier` is -1 where the blobs are resident."""

    start: float
    stop: float
    supplier: int = -1
    shift: float = 0.0
    lag: float = 0.0


@dataclass(slots=True)
class Flow:
    """An edge, a read or an arrival, and how far it has got: `sent` bytes at time `at_s`."""

    index: int
    sink: str
    source: str
    blobs: tuple[int, ...]
    resources: tuple[int, ...]
    ends: list[float]
    """Where each blob ends, in bytes of the flow."""
    is_edge: bool
    begin_s: float = 0.0
    """Before then nothing of it moves."""
    runs: list[Run] = field(default_factory=list)
    followers: dict[int, None] = field(default_factory=dict)
    """The flows whose present run this one supplies."""
    run: int = 0
    state: State = State.WAITING
    sent: float = 0.0
    rate: float = 0.0
    at_s: float = 0.0
    track: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    """Times, and the bytes sent by then; the rate between two of them is constant."""
    noted: int = 0
    """So many of its blobs have arrived."""
    stamp: int = 0
    """Of its latest event; older ones are void."""

    def sent_at(self, now_s: float) -> float:
        """Return the bytes sent by then."""
        return self.sent + self.rate * (now_s - self.at_s)


class Resources:
    """Names and rates of what flows share; found by name, used by number."""

    def __init__(self, links: Links) -> None:
        """Begin with none; they are added as flows ask for them."""
        self._links = links
        self._numbers: dict[tuple[str, ...], int] = {}
        self.names: list[tuple[str, ...]] = []
        self.rates: list[float] = []

    def of_edge(self, edge: Edge) -> tuple[int, ...]:
        """Return what an edge uses; raises ValueError where nothing joins its ends."""
        source, target = node_of(edge.source), node_of(edge.target)
        if source == target:
            return (self._number(("local", source), self._links.local_bytes_per_s),)
        ends = [self._links.ports.get((node, edge.network)) for node in (source, target)]
        if ends[0] is None or ends[1] is None:
            raise ValueError(f"{edge.source} and {edge.target} share no network {edge.network!r}")
        both = (
            self._number(("tx", source, edge.network), usable_tx(ends[0])),
            self._number(("rx", target, edge.network), ends[1].rx_bytes_per_s),
        )
        most = ends[0].worker_tx_bytes_per_s
        return both if most == math.inf else (*both, self._number(("weights", edge.source), most))

    def of_read(self, read: Read) -> tuple[int, ...]:
        """Return what a read uses."""
        node = node_of(read.worker)
        rate = read_rate(self._links, node, read.tier)
        return (self._number((read.tier.value, node), rate),)

    def of_arrival(self, worker: str, rate: float) -> tuple[int, ...]:
        """Return what stands for all that another operation uses to bring a worker its blobs."""
        return (self._number(("arrival", worker), rate),)

    def _number(self, name: tuple[str, ...], rate: float) -> int:
        number = self._numbers.get(name)
        if number is None:
            if not rate > 0.0:
                raise ValueError(f"nothing is free of {' '.join(name)}")
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            self.rates.append(rate)
        return number


def flows_of(plan: Plan, task: Task, links: Links) -> tuple[list[Flow], Resources]:
    """Return the flows of a plan, cut into runs, and the resources that they share.

    Raises ValueError for a blob that arrives twice, that nobody supplies or that waits for itself.
    """
    resources = Resources(links)
    flows: list[Flow] = []
    for read in plan.reads:
        flows.append(_flow(len(flows), read.worker, "", read.blobs, task))
        flows[-1].resources = resources.of_read(read)
    for edge in plan.edges:
        flows.append(_flow(len(flows), edge.target, edge.source, edge.blobs, task))
        flows[-1].resources = resources.of_edge(edge)
        flows[-1].begin_s = links.setup_s
    sources = {edge.source for edge in plan.edges}
    for holder in task.holders:
        if holder.awaits and holder.worker in sources:
            flows.append(_arrival(len(flows), holder, task, resources))
    _Cutter(flows, task, links, resources).cut()
    return flows, resources


def _flow(index: int, sink: str, source: str, blobs: tuple[int, ...], task: Task) -> Flow:
    ends: list[float] = []
    total = 0.0
    for blob in blobs:
        total += max(1, task.blob_bytes[blob])  # an empty blob takes a byte's time, and an order
        ends.append(total)
    return Flow(index, sink, source, blobs, (), ends, is_edge=bool(source))


def _arrival(index: int, holder: Holder, task: Task, resources: Resources) -> Flow:
    """Return what another operation brings to a source, as a flow of one rate.

    That is right for the last blob, and for the first one unless that rate brings it later:

        due_s     ──────────── first ── next ─── … ── last
        the flow  ── begin_s ────────────────────────────►
    """
    due_s = holder.due_s
    blobs = tuple(sorted(_coming(holder), key=due_s.__getitem__))
    flow = _flow(index, holder.worker, "", blobs, task)
    first_s, last_s, size = due_s[blobs[0]], due_s[blobs[-1]], flow.ends[-1]
    if last_s > first_s:
        flow.begin_s = max(0.0, first_s - flow.ends[0] * (last_s - first_s) / (size - flow.ends[0]))
    flow.resources = resources.of_arrival(holder.worker, size / (last_s - flow.begin_s))
    return flow


def _coming(holder: Holder) -> list[int]:
    return [blob for blob, due_s in enumerate(holder.due_s) if due_s > 0.0]


class _Cutter:
    """Cuts flows into runs."""

    def __init__(self, flows: list[Flow], task: Task, links: Links, resources: Resources) -> None:
        self._flows = flows
        self._task = task
        self._links = links
        self._rates = resources.rates
        self._supply: dict[tuple[str, int], tuple[int, int]] = {}

    def cut(self) -> None:
        resident = resident_blobs(self._task)
        for holder in self._task.holders:
            if holder.awaits:
                resident[holder.worker] -= set(_coming(holder))
        for flow in self._flows:
            for place, blob in enumerate(flow.blobs):
                if (flow.sink, blob) in self._supply or blob in resident.get(flow.sink, ()):
                    raise ValueError(f"{flow.sink} gets blob {blob} twice")
                self._supply[flow.sink, blob] = (flow.index, place)
        suppliers = [self._suppliers(flow, resident) for flow in self._flows]
        breaks = self._find_breaks(suppliers)
        for flow in self._flows:
            self._cut_one(flow, suppliers[flow.index], breaks[flow.index])

    def _suppliers(self, flow: Flow, resident: dict[str, set[int]]) -> list[tuple[int, int]]:
        """Return for each blob of a flow the flow that brings it to the source, and where in it."""
        here = resident.get(flow.source, set())
        found: list[tuple[int, int]] = []
        for blob in flow.blobs:
            if not flow.is_edge or blob in here:
                found.append((-1, 0))
                continue
            supply = self._supply.get((flow.source, blob))
            if supply is None:
                raise ValueError(f"{flow.source} never has blob {blob}")
            found.append(supply)
        return found

    @staticmethod
    def _find_breaks(suppliers: list[list[tuple[int, int]]]) -> list[list[bool]]:
        """Return where runs begin: where the supplier changes, and wherever its own runs begin.

        Walks from each blob to its origin, so it also finds blobs that wait for themselves.
        """
        breaks = [[False] * len(supplies) for supplies in suppliers]
        state = [bytearray(len(supplies)) for supplies in suppliers]  # 1 on the way, 2 known
        for index, supplies in enumerate(suppliers):
            for place in range(len(supplies)):
                way: list[tuple[int, int]] = []
                at = (index, place)
                while at[0] >= 0 and state[at[0]][at[1]] != 2:
                    if state[at[0]][at[1]] == 1:
                        raise ValueError("a blob waits for itself")
                    state[at[0]][at[1]] = 1
                    way.append(at)
                    at = suppliers[at[0]][at[1]]
                for flow, blob in reversed(way):
                    state[flow][blob] = 2
                    breaks[flow][blob] = _begins(suppliers[flow], blob, breaks)
        return breaks

    def _cut_one(self, flow: Flow, supplies: list[tuple[int, int]], breaks: list[bool]) -> None:
        for place, (supplier, there) in enumerate(supplies):
            start = flow.ends[place - 1] if place else 0.0
            size = flow.ends[place] - start
            if breaks[place]:
                flow.runs.append(Run(start, flow.ends[place], supplier))
                if supplier >= 0:
                    other = self._flows[supplier]
                    flow.runs[-1].shift = (other.ends[there - 1] if there else 0.0) - start
            run = flow.runs[-1]
            run.stop = flow.ends[place]
            if supplier >= 0:
                run.lag = max(run.lag, min(size, self._links.piece_bytes))
        for run in flow.runs:
            if run.supplier >= 0 and self._links.hop_s:
                fastest = min(self._rates[r] for r in self._flows[run.supplier].resources)
                run.lag += self._links.hop_s * fastest


def _begins(supplies: list[tuple[int, int]], place: int, breaks: list[list[bool]]) -> bool:
    if place == 0:
        return True
    supplier, there = supplies[place]
    before, there_before = supplies[place - 1]
    if supplier != before:
        return True
    return supplier >= 0 and (there != there_before + 1 or breaks[supplier][there])
