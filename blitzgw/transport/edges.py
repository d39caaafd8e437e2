"""The edges of a worker: threads that stream the blobs of its stores to and from its peers.

One thread per end of an edge (sender.py, receiver.py) and one that listens for receivers: a relay's
two threads meet in its store. How bytes travel is a channel's matter (base.py), whose turn it is
to write the governor's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from blitzgw.core.parcels import PARCELS
from blitzgw.core.transfer import (
    BlobStore,
    DataNetwork,
    EdgeClosed,
    EdgeProgress,
    EdgeTerms,
    OpenReceive,
    OpenSend,
    TrafficClass,
    TrafficReport,
)
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import Bypasses
from blitzgw.transport.digests import PieceDigests
from blitzgw.transport.ends import EdgeEnd, FindStore
from blitzgw.transport.governor import Cap, Governor
from blitzgw.transport.listener import Listener
from blitzgw.transport.parcel import Outgoing, RoadEnded, Sent, TakeParcel
from blitzgw.transport.parcel_receiver import RoadReceiver
from blitzgw.transport.parcel_sender import RoadSender
from blitzgw.transport.probe import probe_store
from blitzgw.transport.receiver import Receiver
from blitzgw.transport.sender import Sender

log = logging.getLogger(__name__)

MAX_EDGES = 128
"""Ends of edges at one time: each is a thread. Operations open one or two per worker; more is a
runaway plan, whose edges close at once."""

RATE_WINDOW_S = 0.5
"""What the rates of traffic are taken over, at least."""


class Edges:
    """All edges of this process. Every call returns at once and may come from any thread.

    `stores` finds the store of a manifest's root; an edge waits a few seconds for one that is not
    there yet. A probe's store is made for it. `tell` is called on the edges' threads, `EdgeClosed`
    exactly once for each end (a process that has both ends of an edge is told twice). It must not
    raise, nor wait for edges.
    `bypasses` offer payloads another way, and belong to the caller. Raises OSError where a
    network's address cannot be listened on.
    An edge of `core.parcels.PARCELS` is a road: `parcels` takes what arrives, and may wait for
    room until `road_ended` (parcel.py); without it there is none. A road's connection is not
    dialled again.
    """

    def __init__(
        self,
        networks: Sequence[DataNetwork],
        stores: Callable[[str], BlobStore | None],
        tell: Callable[[EdgeProgress | EdgeClosed], None],
        *,
        weight_bytes_per_s: float = 0.0,
        bypasses: Bypasses | None = None,
        parcels: TakeParcel | None = None,
        road_ended: RoadEnded | None = None,
    ) -> None:
        self._stores, self._tell, self._bypasses = stores, tell, bypasses
        self._parcels, self._road_ended = parcels, road_ended
        self._lock = threading.Lock()
        self._ends: dict[tuple[type[EdgeEnd], str], EdgeEnd] = {}
        self._threads: set[threading.Thread] = set()
        self._names: dict[bytes, Sender | RoadSender] = {}
        self._digests: dict[tuple[str, int], _SharedDigests] = {}
        self._cap = Cap(weight_bytes_per_s)
        self._governors = {network.name: Governor(self._cap) for network in networks}
        self._meter = _Meter(list(self._governors.values()))
        self._stopped = False
        self._listener = Listener(networks, self._governors, self._names.get)

    @property
    def ports(self) -> dict[str, int]:
        """The port of each network, by its name."""
        return dict(self._listener.ports)

    def open_send(self, message: OpenSend) -> None:
        """Expect the receiver of an edge, and stream to it what it lacks."""
        if message.edge.weights == PARCELS:
            road = OpenSend(replace(message.edge, lane=TrafficClass.KV))
            self._open(RoadSender, road.edge, lambda _: RoadSender(road, self._tell))
            return
        self._open(
            Sender,
            message.edge,
            lambda d: Sender(
                message, self._find(message.edge, True), d, self._tell, self._bypasses
            ),
        )

    def open_receive(self, message: OpenReceive) -> None:
        """Dial the sender of an edge, and take what the store lacks."""
        governor = self._governor(message.edge.network)
        if message.edge.weights == PARCELS:
            self._open(RoadReceiver, message.edge, lambda _: self._road_receiver(message, governor))
            return
        self._open(
            Receiver,
            message.edge,
            lambda d: Receiver(
                message, self._find(message.edge, False), d, self._tell, governor, self._bypasses
            ),
        )

    def send_parcels(self, edge: str, outgoing: Sequence[Outgoing], sent: Sent) -> None:
        """Send parcels on a road when their turn comes: hidden states before KV, else in order.

        `sent` is called once, on any thread (this one, where nothing can be sent): when the last
        of them has been written, or with the reason when they cannot be, or no more. It must not
        raise. It is not called where all that is left of them is dropped.
        """
        with self._lock:
            road = self._ends.get((RoadSender, edge))
        if not isinstance(road, RoadSender):
            sent(0, 0.0, "there is no such road")
            return
        road.send(outgoing, sent)

    def drop_parcels(self, edge: str, tickets: Collection[int]) -> None:
        """Forget what is still to be sent by these tickets; a parcel that has begun is finished."""
        with self._lock:
            road = self._ends.get((RoadSender, edge))
        if isinstance(road, RoadSender):
            road.drop(tickets)

    def close(self, edge: str) -> None:
        """End an edge; nothing happens where it is not known."""
        with self._lock:
            ends = [end for (_, name), end in self._ends.items() if name == edge]
        for end in ends:
            end.close()

    def cap(self, bytes_per_s: float) -> None:
        """Send weights at most at this rate, on all networks together; 0: as fast as it goes."""
        self._cap.set(bytes_per_s)

    def traffic(self) -> TrafficReport:
        """Return the rates at which this process sends now, by class."""
        return self._meter.report()

    def stop(self) -> None:
        """End every edge and listen no more; `EdgeClosed` still follows for each."""
        with self._lock:
            self._stopped = True
            ends = list(self._ends.values())
        self._listener.stop()
        for end in ends:
            end.close()

    def join(self, timeout_s: float) -> bool:
        """Wait until all threads have ended after `stop`; return whether they have."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = [self._listener.thread, *self._threads]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _road_receiver(self, message: OpenReceive, governor: Governor) -> RoadReceiver:
        if self._parcels is None:
            raise ProtocolError("nobody takes parcels here")
        road = replace(message, edge=replace(message.edge, lane=TrafficClass.KV))
        return RoadReceiver(road, self._tell, governor, self._parcels, self._road_ended)

    def _governor(self, network: str) -> Governor:
        """Return a network's governor; of one that we do not listen on, one of its own."""
        return self._governors.get(network) or Governor(self._cap)

    def _find(self, terms: EdgeTerms, sends: bool) -> FindStore:
        """Return how an end finds its store; raises ProtocolError for a probe without sense."""
        probe = probe_store(terms, sends=sends)
        return self._stores if probe is None else lambda _weights: probe

    def _open(
        self, kind: type[EdgeEnd], terms: EdgeTerms, make: Callable[[PieceDigests], EdgeEnd]
    ) -> None:
        key = (kind, terms.id)
        with self._lock:
            if key in self._ends:
                log.warning("edge_known edge=%s", terms.id)
                return
            refusal = self._refusal()
            end = None if refusal else self._make(key, terms, make)
            if end is not None:
                self._threads = {thread for thread in self._threads if thread.is_alive()}
                self._threads.add(end.start(lambda: self._ended(key)))
                return
        self._tell(EdgeClosed(terms.id, refusal or "the terms make no sense", 0, 0.0))

    def _refusal(self) -> str:
        if self._stopped:
            return "this worker is stopping"
        return "too many edges" if len(self._ends) >= MAX_EDGES else ""

    def _make(
        self,
        key: tuple[type[EdgeEnd], str],
        terms: EdgeTerms,
        make: Callable[[PieceDigests], EdgeEnd],
    ) -> EdgeEnd | None:
        shared = self._digests.setdefault((terms.weights, terms.seed), _SharedDigests(terms.seed))
        shared.n_users += 1
        try:
            end = make(shared.digests)
        except ProtocolError as e:
            log.warning("edge_refused edge=%s error=%r", terms.id, str(e))
            self._release_digests(terms)
            return None
        self._ends[key] = end
        if isinstance(end, Sender | RoadSender):
            self._names[end.gate.name] = end
        return end

    def _ended(self, key: tuple[type[EdgeEnd], str]) -> None:
        """Forget an end; from its thread, before it says that it has closed."""
        with self._lock:
            end = self._ends.pop(key)
            self._release_digests(end.terms)
            if isinstance(end, Sender | RoadSender):
                self._names.pop(end.gate.name, None)

    def _release_digests(self, terms: EdgeTerms) -> None:
        shared = self._digests[terms.weights, terms.seed]
        shared.n_users -= 1
        if shared.n_users == 0:
            del self._digests[terms.weights, terms.seed]


class _SharedDigests:
    """The digests of an operation's pieces, and how many ends of edges use them."""

    def __init__(self, seed: int) -> None:
        self.digests = PieceDigests(seed)
        self.n_users = 0


class _Meter:
    """Turns the governors' counts into rates: between calls, RATE_WINDOW_S apart at least."""

    def __init__(self, governors: Sequence[Governor]) -> None:
        self._governors, self._lock = governors, threading.Lock()
        self._at, self._sent = time.monotonic(), self._count()
        self._report = TrafficReport(0.0, 0.0, 0.0)

    def report(self) -> TrafficReport:
        with self._lock:
            elapsed_s = time.monotonic() - self._at
            if elapsed_s >= RATE_WINDOW_S:
                sent = self._count()
                rates = {kind: (sent[kind] - self._sent[kind]) / elapsed_s for kind in sent}
                self._report = TrafficReport(
                    rates[TrafficClass.ACTIVATIONS],
                    rates[TrafficClass.KV],
                    rates[TrafficClass.WEIGHTS],
                )
                self._at, self._sent = time.monotonic(), sent
            return self._report

    def _count(self) -> dict[TrafficClass, int]:
        counts = [governor.sent_bytes() for governor in self._governors]
        return {kind: sum(count[kind] for count in counts) for kind in TrafficClass}
