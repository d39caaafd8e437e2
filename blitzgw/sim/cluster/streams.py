"""Weights on their way: stores, and streams that fill them over the network, from disk or memory.

A stream carries blobs in order, cut through: it forwards a blob while that arrives at its source,
one piece behind. So it is as quick as its ports let it be or, where it has caught up with what
comes in, as quick as that.

    idle ── a first piece is at the source ──► sending ── caught up ──► following its leader
                                                   ▲                        │
                                                   └─── the blob is whole ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf

from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.sim.cluster.flows import EARLY_S, WEIGHTS, Flow, Resource
from blitzgw.sim.cluster.network import FlowNetwork

NEAR_BYTES = 1e-3
"""Positions that differ by less are the same: more than sums of gigabytes are off by."""


class Store:
    """The bytes of one model's weights on one worker.

    `whole` blobs are all there; of others a prefix may be. One stream at a time fills a blob.
    `landed` is told of each blob that has become whole; what it does, it does by the heap.
    """

    __slots__ = ("_prefix", "_waiting", "filling", "landed", "sizes", "streams", "whole")

    def __init__(self, sizes: Sequence[int], landed: Callable[[int], object]) -> None:
        self.sizes, self.landed = sizes, landed
        self.whole: set[int] = set()
        self.filling: dict[int, Stream] = {}
        self.streams: dict[Stream, None] = {}
        """Those that take from here, and those that bring something."""
        self._prefix: dict[int, float] = {}
        self._waiting: dict[int, dict[Stream, None]] = {}

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return len(self.whole) == len(self.sizes)

    def prefix(self, blob: int) -> float:
        """Return how many bytes there are of a blob that nobody fills."""
        return self._prefix.get(blob, 0.0)

    def begin(self, blob: int, stream: Stream) -> None:
        """Let a stream fill a blob from where its prefix ends."""
        self.filling[blob] = stream
        stream.position = self._prefix.pop(blob, 0.0)
        self._wake(blob)

    def land(self, blob: int) -> None:
        """Have a blob that was filled whole."""
        del self.filling[blob]
        self.whole.add(blob)
        self.landed(blob)
        self._wake(blob)

    def leave(self, blob: int, position: float) -> None:
        """Let others fill a blob of which not all has come; whole pieces of it stay."""
        del self.filling[blob]
        self._prefix[blob] = position // PIECE_BYTES * PIECE_BYTES
        self._wake(blob)

    def wait(self, blob: int, stream: Stream) -> None:
        """Have a stream look again when something becomes of a blob."""
        self._waiting.setdefault(blob, {})[stream] = None

    def close(self, reason: str) -> None:
        """End all that goes from here or comes."""
        for stream in [*self.streams]:
            stream.close(reason)

    def _wake(self, blob: int) -> None:
        for stream in self._waiting.pop(blob, ()):
            stream.look()


class Stream(Flow):
    """Fills `target` with blobs, in order, from `source`; None: from what has all of them.

    `told` is called with its first byte and with each blob, `ended` at its end: with "" when all of
    it has gone. Both are told at once, as `Store.landed`.
    """

    __slots__ = (
        "_ended", "_leader", "_leads", "_next", "_sending", "_told", "began_s", "blobs", "sent",
        "source", "target",
    )  # fmt: skip

    def __init__(
        self,
        network: FlowNetwork,
        way: tuple[tuple[Resource, ...], float],
        blobs: Sequence[int],
        target: Store,
        ended: Callable[[Stream, str], object],
        *,
        source: Store | None = None,
        told: Callable[[Stream], object] | None = None,
    ) -> None:
        super().__init__(network, way[0], WEIGHTS, way[1])
        self.blobs, self.source, self.target = blobs, source, target
        self._told, self._ended = told, ended
        self.began_s, self.sent = -1.0, 0.0
        self._next, self._sending = 0, False
        self._leader: Stream | None = None
        """What brings the blob to the source that is sent, or is to be sent next."""
        self._leads: dict[Stream, None] = {}
        """Those of which this is the leader."""

    def open(self) -> None:
        """Begin as soon as there is something to be sent."""
        for store in (self.source, self.target):
            if store is not None:
                store.streams[self] = None
        self.look()
        self.network.mend()

    def close(self, reason: str) -> None:
        """End; what has come stays."""
        if not self.over:
            self._break_off()
            self._finish(reason)
            self.network.mend()

    def received(self) -> float:
        """Return how many bytes have come by now."""
        self.settle()
        return self.sent + (self.position if self._sending else 0.0)

    # What the network asks.

    def followers(self) -> Iterable[Flow]:
        """Return the streams that send on what this one brings."""
        return (*self._leads,)

    def limit(self) -> float:
        """Return its ceiling, or the rate of the leader with which it has caught up."""
        if self._leader is None or self._lead(self._leader) > NEAR_BYTES:
            return self.ceiling
        return min(self.ceiling, self._leader.rate)

    def due_s(self) -> float:
        """Return when the first piece is there, when it catches up, or when its blob is there."""
        leader = self._leader
        if not self._sending:
            return inf if leader is None else _time_s(-self._lead(leader), leader.rate)
        due_s = _time_s(self._size() - self.position, self.rate)
        if leader is None:
            return due_s
        lead, closing = self._lead(leader), self.rate - leader.rate
        if closing <= EARLY_S * self.rate or (lead <= NEAR_BYTES and self.rate <= self.limit()):
            return inf  # with the leader's blob it has no leader any more
        return _time_s(lead, closing)

    def act(self) -> None:
        """Begin, follow, or go on with the next blob."""
        leader = self._leader
        if not self._sending:
            self.look()
        elif leader is not None:
            self.position = leader.position - self._behind()
            self.network.reconsider(self)
        else:
            self._land()
        self.network.mend()

    # Blobs.

    def look(self) -> None:
        """Begin with the next blob if there is something of it; the network is to mend then."""
        if self.over or self._sending:
            return
        target = self.target
        while self._next < len(self.blobs) and self.blobs[self._next] in target.whole:
            self._next += 1
        if self._next == len(self.blobs):
            self._finish("")
        elif self._can_begin(self.blobs[self._next]):
            self._begin(self.blobs[self._next])
        else:
            self.network.deactivate(self)
            self.network.reconsider(self)

    def _can_begin(self, blob: int) -> bool:
        """Whether there is something to be sent; where not, it looks again when there may be."""
        source, target = self.source, self.target
        self._follow(None)
        if blob in target.filling:
            target.wait(blob, self)
            return False
        if source is None or blob in source.whole:
            return True
        leader = source.filling.get(blob)
        self._follow(leader)
        if leader is None:
            source.wait(blob, self)
            return False
        self.position = target.prefix(blob)
        # by time: a few bytes may be nearer than any later moment that a float can tell
        return _time_s(-self._lead(leader), leader.rate) <= EARLY_S

    def _begin(self, blob: int) -> None:
        if self.began_s < 0.0:
            self.began_s = self.network.heap.now
        if self._told is not None:
            self._told(self)
        self.settle()
        self._sending = True
        self.target.begin(blob, self)
        self.sent -= self.position
        self.network.activate(self)

    def _land(self) -> None:
        """Have a blob whole at the target, and go on."""
        self.position = float(self._size())
        self.sent += self.position
        self._sending = False
        blob = self.blobs[self._next]
        leads, self._leads = self._leads, {}
        self.target.land(blob)
        for stream in leads:
            stream.lead_ended()
        self.look()

    def lead_ended(self) -> None:
        """Go on alone: the blob is whole at the source."""
        self.settle()
        self._leader = None
        if self._sending:
            self.network.reconsider(self)
        else:
            self.look()

    def _break_off(self) -> None:
        """Leave the present blob as it is; those that send it on break off too."""
        self.settle()
        if self._sending:
            self._sending = False
            self.sent += self.position
            self._follow(None)
            leads, self._leads = self._leads, {}
            for stream in leads:
                stream._leader = None
                stream._break_off()
            self.target.leave(self.blobs[self._next], self.position)
            for stream in leads:
                stream.look()

    def _follow(self, leader: Stream | None) -> None:
        if self._leader is not None:
            self._leader._leads.pop(self, None)
        self._leader = leader
        if leader is not None:
            leader._leads[self] = None

    def _finish(self, reason: str) -> None:
        self._follow(None)
        self.network.deactivate(self)
        self.over = True
        for store in (self.source, self.target):
            if store is not None:
                store.streams.pop(self, None)
        self._ended(self, reason)

    def _size(self) -> int:
        return self.target.sizes[self.blobs[self._next]]

    def _behind(self) -> float:
        """Return how far it stays behind its leader: a whole blob, where that is small."""
        return float(min(self.network.lag_bytes, self._size()))

    def _lead(self, leader: Stream) -> float:
        """Return what there is to be sent of what the leader has brought by now."""
        leader.settle()
        self.settle()
        return leader.position - self._behind() - self.position


def _time_s(size_bytes: float, rate: float) -> float:
    """Return how long so many bytes take."""
    if size_bytes <= NEAR_BYTES:
        return 0.0
    return size_bytes / rate if rate > 0.0 else inf
