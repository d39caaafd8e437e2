"""Weights on their way between simulated workers: edge by edge, blob by blob, at the ports' rates.

A blob takes its bytes over the lesser share of both ports, which the edges that are open at a port
have in equal parts, as it is when the blob begins. A relay passes a blob on when it has all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blitzgw.core.transfer import EdgeClosed, EdgeProgress, EdgeTerms
from blitzgw.scaling.events import WorkerSaid
from blitzgw.sim.heap import EventHeap
from blitzgw.sim.scalingdevice import SimDevice

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode

PORT_BYTES_PER_S = 3e9
"""Of every node, in each direction: 25 Gbit/s."""

LOCAL_BYTES_PER_S = 8e9
"""Between workers of a node, and from host memory."""

DIAL_S = 1.5
"""For how long an end of an edge waits for the other one."""

LOST_S = 1.0
"""Until the ends of an edge that is cut give it up."""

LOOK_S = 0.02
"""Between two looks at whether a blob has come to its source."""

SETUP_S = 0.005
"""From both ends being told to the first byte."""

End = tuple["SimNode", SimDevice, int]


@dataclass(slots=True, eq=False)
class Flow:
    """An edge. An end is known by its node, device, and that device's life when it was opened."""

    terms: EdgeTerms
    source: End | None = None
    target: End | None = None
    next: int = 0
    sent: int = 0
    began_s: float = 0.0
    over: bool = False


class Flows:
    """All edges that are open. `sizes` are those of blobs, by the root of the weights."""

    def __init__(
        self,
        heap: EventHeap,
        connected: Callable[[int, int], bool],
        sizes: dict[str, tuple[int, ...]],
    ) -> None:
        self._heap, self._connected, self._sizes = heap, connected, sizes
        self.open: dict[str, Flow] = {}
        self._out: Counter[int] = Counter()
        self._in: Counter[int] = Counter()
        self.bytes = 0

    def begin(self, terms: EdgeTerms, node: SimNode, device: SimDevice, *, sends: bool) -> None:
        """Open one end of an edge."""
        flow = self.open.get(terms.id)
        if flow is None:
            flow = self.open[terms.id] = Flow(terms)
            self._heap.after(DIAL_S, self._expire, flow)
        end = node, device, device.life
        if sends:
            flow.source = end
        else:
            flow.target = end
        if flow.source is not None and flow.target is not None:
            self._out[flow.source[0].index] += 1
            self._in[flow.target[0].index] += 1
            flow.began_s = self._heap.now
            self._heap.after(SETUP_S, self._step, flow)

    def close(self, edge: str) -> None:
        """Close an edge at the word of one of its nodes."""
        flow = self.open.get(edge)
        if flow is not None:
            self._finish(flow, "closed")

    def close_at(self, device: SimDevice, reason: str) -> None:
        """Close all edges of a device whose store is gone."""
        for flow in list(self.open.values()):
            if any(end is not None and end[1] is device for end in (flow.source, flow.target)):
                self._finish(flow, reason)

    def cut(self) -> None:
        """Close the edges whose ends cannot reach each other any more."""
        for flow in list(self.open.values()):
            ends = flow.source, flow.target
            if ends[0] is None or ends[1] is None:
                continue
            if not self._connected(ends[0][0].index, ends[1][0].index):
                self._finish(flow, "the connection was lost", delay_s=LOST_S)

    def _expire(self, flow: Flow) -> None:
        if flow.source is None or flow.target is None:
            self._finish(flow, "nobody has come")

    def _step(self, flow: Flow) -> None:
        if flow.over or flow.source is None or flow.target is None:
            return
        weights, blobs = flow.terms.weights, flow.terms.blobs
        there = flow.target[1].blobs(weights)
        while flow.next < len(blobs) and blobs[flow.next] in there:
            flow.next += 1
        if flow.next == len(blobs):
            self._finish(flow, "")
        elif not self._connected(flow.source[0].index, flow.target[0].index):
            self._finish(flow, "the connection was lost", delay_s=LOST_S)
        elif blobs[flow.next] in flow.source[1].blobs(weights):
            size = self._sizes[weights][blobs[flow.next]]
            self._heap.after(size / self._rate(flow), self._land, flow, blobs[flow.next], size)
        else:
            self._heap.after(LOOK_S, self._step, flow)

    def _rate(self, flow: Flow) -> float:
        assert flow.source is not None
        assert flow.target is not None
        here, there = flow.source[0].index, flow.target[0].index
        if here == there:
            return LOCAL_BYTES_PER_S
        return PORT_BYTES_PER_S / max(self._out[here], self._in[there])

    def _land(self, flow: Flow, blob: int, size: int) -> None:
        if flow.over or flow.target is None:
            return
        flow.next += 1
        flow.sent += size
        self.bytes += size
        node, device, life = flow.target
        node.tell_steward(WorkerSaid(device.id, EdgeProgress(flow.terms.id, flow.sent)))
        node.premises.arrive(device, life, flow.terms.weights, blob)
        self._step(flow)

    def _finish(self, flow: Flow, reason: str, delay_s: float = 0.001) -> None:
        if flow.over:
            return
        flow.over = True
        del self.open[flow.terms.id]
        if flow.source is not None and flow.target is not None:
            self._out[flow.source[0].index] -= 1
            self._in[flow.target[0].index] -= 1
        seconds = self._heap.now - flow.began_s
        for end in (flow.source, flow.target):
            if end is not None:
                node, device, _ = end
                closed = EdgeClosed(flow.terms.id, reason, flow.sent, seconds)
                self._heap.after(delay_s, node.tell_steward, WorkerSaid(device.id, closed))
