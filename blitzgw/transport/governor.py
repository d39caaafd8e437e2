"""Who may write on a network now: weights stand back for requests, and keep below a cap.

Each writer has a lane and asks for its turn before every chunk. While a message of a more urgent
class is being written anywhere on the network, the turn does not come: the urgent message finds at
most one chunk of each weight stream, and what the sockets have buffered, before it. What that cost
either side is counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blitzgw.core.transfer import TrafficClass
from blitzgw.transport.base import CHUNK_BYTES, CHUNK_S, MAX_CHUNK_BYTES, ChannelLost

MAX_YIELD_S = 1.0
"""After so long a wait one chunk goes although others are more urgent: the receiver would take a
silence of base.STALL_S for our death."""

MIN_CAP_BYTES_PER_S = 4096.0
"""A lower cap counts as this: below, chunks of a sensible size are further apart than a receiver's
patience."""

BURST_S = 0.05
"""A capped stream may catch up by so much of its rate: less than the queue of a usual switch port,
more than the scheduler's delays."""

_SMOOTHING = 0.1
"""The weight of the latest chunk in what a lane takes for a byte: a socket's empty buffer takes the
first few at once, whatever the link is."""

_SLICE_S = 0.25
"""The longest sleep before a closed lane is noticed."""


class Cap:
    """A token bucket that all lanes of weights share, on all networks. Thread-safe."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._tokens, self._filled_at = 0.0, clock()
        self.rate = 0.0
        self.chunk_bytes = CHUNK_BYTES
        self.set(bytes_per_s)

    def set(self, bytes_per_s: float) -> None:
        """Change the cap; 0: none."""
        with self._lock:
            self.rate = max(bytes_per_s, MIN_CAP_BYTES_PER_S) if bytes_per_s > 0 else 0.0
            burst = self.rate * BURST_S
            self.chunk_bytes = max(1, min(CHUNK_BYTES, int(burst))) if burst else CHUNK_BYTES
            self._tokens, self._filled_at = 0.0, self._clock()

    def take(self, size: int) -> float:
        """Take tokens for a chunk and return 0, or the seconds after which to ask again."""
        with self._lock:
            if self.rate == 0:
                return 0.0
            now = self._clock()
            burst = max(self.rate * BURST_S, size)
            self._tokens = min(burst, self._tokens + (now - self._filled_at) * self.rate)
            self._filled_at = now
            if self._tokens < size:
                return (size - self._tokens) / self.rate
            self._tokens -= size
            return 0.0


class Governor:
    """The turns of all writers on one network. Thread-safe."""

    def __init__(self, cap: Cap, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap, self._clock = cap, clock
        self._changed = threading.Condition()
        self._writing = dict.fromkeys(TrafficClass, 0)
        self._lanes: set[Lane] = set()
        self._sent = dict.fromkeys(TrafficClass, 0)
        """By lanes that are closed."""
        self._urgent = 0
        self._urgent_since, self._urgent_s = 0.0, 0.0

    def lane(self, kind: TrafficClass) -> Lane:
        """Return a lane for one writer; it is to be closed."""
        lane = Lane(self, kind)
        with self._changed:
            self._lanes.add(lane)
        return lane

    def sent_bytes(self) -> dict[TrafficClass, int]:
        """Return how many bytes of each class have been written so far."""
        with self._changed:
            sent = dict(self._sent)
            for lane in self._lanes:
                sent[lane.kind] += lane.sent_bytes
            return sent

    def chunk_bytes(self, lane: Lane) -> int:
        """Return how much a lane may write in its next turn."""
        if lane.kind is not TrafficClass.WEIGHTS:
            return CHUNK_BYTES if self._writing[TrafficClass.ACTIVATIONS] else lane.pace_bytes
        return self._cap.chunk_bytes if self._urgent or self._cap.rate else lane.pace_bytes

    @property
    def capped(self) -> bool:
        """Whether weights may be written at a certain rate only."""
        return self._cap.rate > 0

    def enter(self, kind: TrafficClass) -> None:
        """Begin a message: those less urgent stand back until `leave`."""
        if kind is TrafficClass.WEIGHTS:
            return  # nobody stands back for them
        with self._changed:
            self._writing[kind] += 1
            if self._urgent == 0:
                self._urgent_since = self._clock()
            self._urgent += 1

    def leave(self, kind: TrafficClass) -> None:
        """End a message."""
        if kind is TrafficClass.WEIGHTS:
            return
        with self._changed:
            self._writing[kind] -= 1
            self._urgent -= 1
            if self._urgent == 0:
                self._urgent_s += self._clock() - self._urgent_since
            self._changed.notify_all()

    def urgent_s(self) -> float:
        """Return for how long, so far, messages more urgent than weights have been written.

        Without the lock where there is none.
        """
        if self._urgent == 0:
            return self._urgent_s
        with self._changed:
            open_s = self._clock() - self._urgent_since if self._urgent else 0.0
            return self._urgent_s + open_s

    def turn(self, lane: Lane, size: int) -> None:
        """Wait until a lane may write `size` bytes; raises ChannelLost once it is closed."""
        if self._contended(lane.kind):
            self._stand_back(lane)
        if lane.kind is TrafficClass.WEIGHTS and self._cap.rate:
            self._pay(lane, size)
        if lane.closed:
            raise ChannelLost("closed")

    def close(self, lane: Lane) -> None:
        """Forget a lane; whoever waits for its turn is told."""
        with self._changed:
            lane.closed = True
            if lane in self._lanes:
                self._lanes.remove(lane)
                self._sent[lane.kind] += lane.sent_bytes
            self._changed.notify_all()

    def _contended(self, kind: TrafficClass) -> bool:
        if self._urgent == 0 or kind is TrafficClass.ACTIVATIONS:
            return False
        return kind is TrafficClass.WEIGHTS or self._writing[TrafficClass.ACTIVATIONS] > 0

    def _stand_back(self, lane: Lane) -> None:
        began = self._clock()
        with self._changed:
            self._changed.wait_for(
                lambda: lane.closed or not self._contended(lane.kind), MAX_YIELD_S
            )
        lane.yielded_s += self._clock() - began

    def _pay(self, lane: Lane, size: int) -> None:
        while not lane.closed and (wait_s := self._cap.take(size)):
            with self._changed:
                self._changed.wait_for(lambda: lane.closed, min(wait_s, _SLICE_S))


class Lane:
    """One writer of a class. Its own thread alone uses it; `close` may come from any."""

    def __init__(self, governor: Governor, kind: TrafficClass) -> None:
        self._governor, self.kind = governor, kind
        self.closed = False
        self.sent_bytes = 0
        self._byte_s = CHUNK_S / CHUNK_BYTES
        self._began = self._urgent_s = 0.0
        self.yielded_s = 0.0
        """For how long this lane has stood back for more urgent ones."""
        self.delayed_s = 0.0
        """For how long this lane, of weights, was writing while others had urgent bytes."""

    @contextmanager
    def message(self) -> Iterator[None]:
        """Tell the others that a message of this class is being written."""
        self._governor.enter(self.kind)
        try:
            yield
        finally:
            self._governor.leave(self.kind)

    @property
    def pace_bytes(self) -> int:
        """How much the link takes in CHUNK_S, by the rate so far, within the limits of a chunk."""
        return max(CHUNK_BYTES, min(MAX_CHUNK_BYTES, int(CHUNK_S / self._byte_s)))

    @property
    def is_fast(self) -> bool:
        """Whether the link takes the largest chunks now."""
        return self._governor.chunk_bytes(self) >= MAX_CHUNK_BYTES

    def begin(self, size: int) -> int:
        """Wait for the turn; return how many of `size` bytes may be written now."""
        chunk = min(size, self._governor.chunk_bytes(self))
        self._governor.turn(self, chunk)
        self._urgent_s, self._began = self._governor.urgent_s(), time.perf_counter()
        return chunk

    def finish(self, size: int) -> None:
        """Count what was written since `begin`."""
        seconds = time.perf_counter() - self._began
        self._byte_s += _SMOOTHING * (seconds / size - self._byte_s)
        self.sent_bytes += size
        if self.kind is TrafficClass.WEIGHTS:
            self.delayed_s += self._governor.urgent_s() - self._urgent_s

    @property
    def is_capped(self) -> bool:
        """Whether it may write at a certain rate only."""
        return self.kind is TrafficClass.WEIGHTS and self._governor.capped

    def close(self) -> None:
        """Give the lane up; a turn that is waited for raises ChannelLost."""
        self._governor.close(self)
