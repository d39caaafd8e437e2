"""What a node has given to operations: devices on lease, and shares of its ports.

A device is free, or leased to one operation at one claim. A lease ends when its operation does, or
by itself when the owner has been silent for too long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from blitzgw.core.finite import is_rate
from blitzgw.core.live import LivePolicy
from blitzgw.core.operation import EdgeOrder
from blitzgw.core.plan import node_of
from blitzgw.core.span import Span

SLACK = 1.001
"""Of a port's rate may be promised: rounding is no reason to refuse."""


@dataclass(slots=True)
class Lease:
    """A device that an operation has claimed. `former` is the claim that it was granted upon.

    `blobs` are (root of the weights, index) that have been checked there so far.
    """

    device: str
    instance: str
    former: int
    claim: int
    ready: bool = False
    revived: bool = False
    """The instance was there with all its weights."""
    helps: tuple[str, LivePolicy] | None = None
    """The instance that it is to help while it loads, and how."""
    stage: tuple[Span, str] | None = None
    """The span that it runs for a pipeline, and the instance of the stage behind it."""
    blobs: set[tuple[str, int]] = field(default_factory=set)


def crosses(edge: EdgeOrder) -> bool:
    """Whether an edge leaves its machine: others use no port."""
    return node_of(edge.source) != node_of(edge.target)


class PortPromises:
    """Which edges have been promised how much of this node's ports, in bytes per second."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._edges: dict[str, EdgeOrder] = {}

    def promise(self, edges: Iterable[EdgeOrder]) -> None:
        """Promise edges their rates."""
        for edge in edges:
            if crosses(edge) and is_rate(edge.rate_bytes_per_s):
                self._edges[edge.id] = edge

    def keep(self, edges: frozenset[str]) -> None:
        """Take back what was promised to all other edges."""
        self._edges = {name: edge for name, edge in self._edges.items() if name in edges}

    def totals(self, without: frozenset[str] = frozenset()) -> dict[str, tuple[float, float]]:
        """Return (tx, rx) by network; the edges in `without` do not count."""
        return self._sum(edge for edge in self._edges.values() if edge.id not in without)

    def overdrawn(
        self, edges: Iterable[EdgeOrder], rates: dict[str, float], replaced: frozenset[str]
    ) -> str:
        """Return a network whose port cannot carry `edges` besides what is promised, or "".

        `rates` are the ports' own; of one that is 0 or missing nothing is known and all is granted.
        `replaced` are edges that end if these are granted.
        """
        wanted = [e for e in edges if crosses(e) and is_rate(e.rate_bytes_per_s)]
        given = self.totals(replaced | {edge.id for edge in wanted})
        for network, (tx, rx) in self._sum(wanted).items():
            had_tx, had_rx = given.get(network, (0.0, 0.0))
            rate = rates.get(network, 0.0) * SLACK
            over_tx, over_rx = tx and had_tx + tx > rate, rx and had_rx + rx > rate
            if rate > 0 and (over_tx or over_rx):
                return network
        return ""

    def __len__(self) -> int:
        return len(self._edges)

    def _sum(self, edges: Iterable[EdgeOrder]) -> dict[str, tuple[float, float]]:
        totals: dict[str, tuple[float, float]] = {}
        for edge in edges:
            tx, rx = totals.get(edge.network, (0.0, 0.0))
            if node_of(edge.source) == self._node:
                tx += edge.rate_bytes_per_s
            else:
                rx += edge.rate_bytes_per_s
            totals[edge.network] = (tx, rx)
        return totals
