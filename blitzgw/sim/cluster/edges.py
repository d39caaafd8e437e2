"""Edges of plans between simulated workers: both ends are told, they connect, a stream runs.

source's node ── OpenSend ──┐
target's node ── OpenReceive ┴── connect_s, first_byte_s ──► Stream ──► EdgeClosed, at both ends
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blitzgw.core.transfer import EdgeClosed, EdgeProgress, EdgeTerms
from blitzgw.scaling.events import WorkerSaid
from blitzgw.sim.cluster.streams import Store, Stream

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode
    from blitzgw.sim.cluster.world import ClusterWorld

DIAL_S = 1.5
"""For how long an end of an edge waits for the other one."""

TELL_S = 0.2
"""Between two reports of an edge's progress: the owner passes no more on."""


@dataclass(slots=True, eq=False)
class End:
    """An end of an edge: a device of a node."""

    node: SimNode
    device: str


@dataclass(slots=True, eq=False)
class Edge:
    """An edge that is open at one end at least."""

    terms: EdgeTerms
    source: End | None = None
    target: End | None = None
    stream: Stream | None = None
    told_s: float = 0.0
    over: bool = False

    def ends(self) -> Sequence[End]:
        """Return the ends that are open."""
        return [end for end in (self.source, self.target) if end is not None]


class Edges:
    """All edges that are open, by id."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world, self._heap = world, world.heap
        took = world.latencies
        self._connect_s = max(0.0, took.connect_s - took.message_s) + took.first_byte_s
        self._open: dict[str, Edge] = {}

    def begin(self, terms: EdgeTerms, node: SimNode, device: str, *, sends: bool) -> None:
        """Open one end of an edge."""
        edge = self._open.get(terms.id)
        if edge is None:
            edge = self._open[terms.id] = Edge(terms)
            self._heap.after(DIAL_S, self._expire, edge)
        if sends:
            edge.source = End(node, device)
        else:
            edge.target = End(node, device)
        if edge.source is not None and edge.target is not None:
            self._heap.after(self._connect_s, self._connected, edge)

    def close(self, name: str) -> None:
        """Close an edge at the word of one of its nodes."""
        edge = self._open.get(name)
        if edge is not None:
            self._end(edge, "closed")

    def node_gone(self, node: SimNode) -> None:
        """Close the edges of a process that has crashed."""
        for edge in [*self._open.values()]:
            if any(end.node is node for end in edge.ends()):
                self._end(edge, "the connection was lost")

    def _expire(self, edge: Edge) -> None:
        if edge.source is None or edge.target is None:
            self._end(edge, "nobody has come")

    def _connected(self, edge: Edge) -> None:
        if edge.over or edge.source is None or edge.target is None:
            return
        weights = edge.terms.weights
        source = self._store(edge.source, weights)
        target = self._store(edge.target, weights)
        if source is None or target is None:
            self._end(edge, "the weights are not there")
            return
        network = self._world.network
        stream = edge.stream = Stream(
            network,
            network.way(edge.source.node.index, edge.target.node.index),
            edge.terms.blobs,
            target,
            lambda _, reason: self._end(edge, reason),
            source=source,
            told=lambda _: self._progress(edge),
        )
        stream.open()

    @staticmethod
    def _store(end: End, weights: str) -> Store | None:
        return end.node.premises.store(end.device, weights) if end.node.running else None

    def _progress(self, edge: Edge) -> None:
        """Tell the target's node how much has come, now and then."""
        now = self._heap.now
        if edge.target is not None and edge.stream is not None and now >= edge.told_s:
            edge.told_s = now + TELL_S
            said = EdgeProgress(edge.terms.id, int(edge.stream.received()))
            self._tell(edge.target, said)

    def _end(self, edge: Edge, reason: str) -> None:
        if edge.over:
            return
        edge.over = True
        del self._open[edge.terms.id]
        stream, sent, seconds = edge.stream, 0, 0.0
        if stream is not None:
            stream.close(reason)
            sent = int(stream.sent)
            seconds = self._heap.now - stream.began_s if stream.began_s >= 0 else 0.0
        for end in edge.ends():
            self._tell(end, EdgeClosed(edge.terms.id, reason, sent, seconds))

    def _tell(self, end: End, said: EdgeProgress | EdgeClosed) -> None:
        self._heap.after(0.0, end.node.tell_steward, WorkerSaid(end.device, said))
