"""Roads: parcels of hidden states and KV on their way from one simulated worker to another.

As on a real road one `Send` goes after the other, hidden states before KV; here the KV of all
layers of a `Send` is one flow of the network, and arrives as one parcel. Where hidden states come
while it flows, the rest of it goes after them: a real road has a parcel for each layer, between
which they fit. Bytes of requests go before weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blitzgw.core.parcels import Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Send
from blitzgw.core.transfer import TrafficClass
from blitzgw.sim.cluster.flows import Parcel as Flow

if TYPE_CHECKING:
    from blitzgw.sim.cluster.world import ClusterWorld


@dataclass(frozen=True, slots=True)
class RoadEnd:
    """A worker at one end: on which node, how to tell it something, what its parcels weigh."""

    node: int
    told: Callable[[Any], None]
    hidden_bytes: int
    kv_layer_bytes: float


@dataclass(slots=True)
class _Parcel:
    parcel: Parcel
    begun_s: float
    last: bool
    size: float = 0.0
    sent: float = 0.0


@dataclass(slots=True)
class _Road:
    source: RoadEnd | None = None
    target: RoadEnd | None = None
    hidden: deque[_Parcel] = field(default_factory=deque)
    kv: deque[_Parcel] = field(default_factory=deque)
    present: _Parcel | None = None
    flow: Flow | None = None
    closed: bool = False


class Roads:
    """All roads of a cluster, by name."""

    def __init__(self, world: ClusterWorld) -> None:
        self._heap, self._network = world.heap, world.network
        self._roads: dict[str, _Road] = {}
        self.sent_bytes = 0.0

    def open(self, name: str, end: RoadEnd, *, sends: bool) -> None:
        """Open one end; parcels go once the other is open."""
        road = self._roads.setdefault(name, _Road())
        if sends:
            road.source = end
        else:
            road.target = end
        self._go_on(name, road)

    def close(self, name: str) -> None:
        """Close a road at either end: what is on it is lost."""
        road = self._roads.pop(name, None)
        if road is not None:
            road.closed = True

    def send(self, send: Send) -> None:
        """Queue what a step sends."""
        road = self._roads.get(send.edge)
        if road is None:
            return  # it has ended, which its sender is being told
        now, kv = self._heap.now, len(send.span) > 0
        if send.hidden:
            at = Span(send.span.stop, send.span.stop)
            parcel = Parcel(send.ticket, at, send.start, send.stop)
            road.hidden.append(_Parcel(parcel, now, last=not kv))
        if kv:
            parcel = Parcel(send.ticket, send.span, send.start, send.stop)
            road.kv.append(_Parcel(parcel, now, last=True))
        self._go_on(send.edge, road)

    def drop(self, name: str, tickets: tuple[int, ...]) -> None:
        """Forget what is still to be sent by these tickets."""
        road = self._roads.get(name)
        if road is not None:
            road.hidden = deque(p for p in road.hidden if p.parcel.ticket not in tickets)
            road.kv = deque(p for p in road.kv if p.parcel.ticket not in tickets)

    def _go_on(self, name: str, road: _Road) -> None:
        source, target = road.source, road.target
        if source is None or target is None:
            return
        self._make_way(road)
        if road.present is not None or not (road.hidden or road.kv):
            return
        next_ = road.present = road.hidden.popleft() if road.hidden else road.kv.popleft()
        parcel = next_.parcel
        positions = parcel.stop - parcel.start
        if parcel.is_hidden:
            next_.size, lane = float(positions * source.hidden_bytes), TrafficClass.ACTIVATIONS
        else:
            next_.size = positions * len(parcel.span) * source.kv_layer_bytes
            lane = TrafficClass.KV
        if not next_.sent:
            self.sent_bytes += next_.size
        done = _Arrival(self, name, road, next_)
        left = next_.size - next_.sent
        road.flow = self._network.send(source.node, target.node, left, lane, done)

    @staticmethod
    def _make_way(road: _Road) -> None:
        """Have KV that flows wait for hidden states that have come."""
        present, flow = road.present, road.flow
        if present is None or flow is None or present.parcel.is_hidden or not road.hidden:
            return
        flow.cancel()
        present.sent += flow.position
        road.kv.appendleft(present)
        road.present = road.flow = None

    def arrived(self, name: str, road: _Road, sent: _Parcel) -> None:
        """Tell both ends of a parcel that is there."""
        if road.closed or road.source is None or road.target is None:
            return
        road.present = road.flow = None
        parcel = sent.parcel
        road.target.told(ParcelArrived(name, parcel))
        if sent.last and not road.closed:
            seconds = self._heap.now - sent.begun_s
            road.source.told(ParcelsSent(name, parcel.ticket, int(sent.size), seconds))
        if not road.closed:
            self._go_on(name, road)


@dataclass(frozen=True, slots=True)
class _Arrival:
    roads: Roads
    name: str
    road: _Road
    sent: _Parcel

    def __call__(self) -> None:
        self.roads.arrived(self.name, self.road, self.sent)
