"""The pairs of a GPU: made on demand, lent to one edge at a time, kept for the next.

A communicator serialises what goes by it, and both ends must launch in one order. So there is one
for each (peer, direction, class of traffic) and one edge at a time uses it, whose heads give the
order; a second edge between the same two goes inline meanwhile.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.core.transfer import TrafficClass
from blitzgw.transport.base import ChannelLost
from blitzgw.transport.nccl_launcher import Launcher
from blitzgw.transport.nccl_library import NcclFailed, Role
from blitzgw.transport.nccl_pair import Pair, PairState
from blitzgw.transport.nccl_words import TOKEN_BYTES

log = logging.getLogger(__name__)

MAX_PAIRS = 32
"""Pairs kept: each has some tens of megabytes of buffers on the GPU. More peers at a time than so
many go inline."""

IDLE_S = 300.0
"""How long a pair is kept without use: scaling comes in bursts, and a new one takes 0.2 to 0.6 s
that TCP bridges anyway."""

COOLDOWN_S = 30.0
"""How long no new pair is made with a peer after one has failed: what was wrong mostly still is."""

_Key = tuple[bytes, Role, TrafficClass]


@dataclass(eq=False)
class Lease:
    """A pair in the hands of one edge, or on the shelf."""

    key: _Key
    name: bytes
    pair: Pair
    n_pieces: int = 0
    """How many went by it. Where the ends disagree a piece was cut off, and may lie in a buffer."""
    is_lent: bool = True
    used_at: float = 0.0


class Pairs:
    """All pairs of one launching thread. Thread-safe; nothing here waits."""

    def __init__(self, launcher: Launcher, clock: Callable[[], float] = time.monotonic) -> None:
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.launcher, self._clock = launcher, clock
        self._lock = threading.Lock()
        self._leases: dict[_Key, Lease] = {}
        self._cool_until: dict[_Key, float] = {}

    def lend(self, peer: bytes, kind: TrafficClass) -> Lease | None:
        """Lend the pair by which to send to a peer; None where there is none to be had now."""
        key = (peer, Role.SENDS, kind)
        with self._lock:
            lease = self._kept(key)
            if lease is not None:
                return None if lease.is_lent else self._lent(lease)
            return self._make(key)

    def join(
        self, peer: bytes, kind: TrafficClass, name: bytes, n_pieces: int, *, is_new: bool
    ) -> Lease | None:
        """Lend the pair that a sender has named; None where it is not here and not to be had."""
        key = (peer, Role.RECEIVES, kind)
        with self._lock:
            lease = self._kept(key)
            if lease is not None and lease.is_lent:
                return None
            if lease is not None and (lease.name, lease.n_pieces) == (name, n_pieces):
                return self._lent(lease)
            if lease is not None:
                self._forget(lease, "the sender has another")
            return self._make(key, name) if is_new else None

    def give_back(self, lease: Lease) -> None:
        """Keep a pair, on which nothing is under way, for the next edge."""
        with self._lock:
            lease.is_lent, lease.used_at = False, self._clock()

    def drop(self, lease: Lease, why: str, *, cool: bool = True) -> None:
        """Abort a pair; `cool` makes no new one with this peer for a while."""
        with self._lock:
            if self._leases.get(lease.key) is lease:
                self._forget(lease, why)
            else:
                self.launcher.abort(lease.pair, why)
            if cool:
                self._cool_until[lease.key] = self._clock() + COOLDOWN_S

    def _kept(self, key: _Key) -> Lease | None:
        """Return what there is under a key that still works."""
        self._tidy()
        lease = self._leases.get(key)
        if lease is not None and lease.pair.state is PairState.BROKEN and not lease.is_lent:
            self._cool_until[key] = self._clock() + COOLDOWN_S
            self._forget(lease, lease.pair.why)
            return None
        return lease

    def _lent(self, lease: Lease) -> Lease:
        lease.is_lent = True
        return lease

    def _make(self, key: _Key, name: bytes = b"") -> Lease | None:
        """Begin to warm a new pair, under a new name without one; None where it must not be."""
        if key in self._cool_until or not self._has_room():
            return None
        try:
            name = name or self.launcher.library.unique_id()
            pair = self.launcher.connect(name, key[1])
        except (ChannelLost, NcclFailed) as e:
            log.info("nccl_no_pair error=%r", str(e))
            return None
        lease = self._leases[key] = Lease(key, name, pair)
        return lease

    def _has_room(self) -> bool:
        """Make room for one more; return whether there is."""
        idle = [lease for lease in self._leases.values() if not lease.is_lent]
        if len(self._leases) >= MAX_PAIRS and idle:
            self._forget(min(idle, key=lambda lease: lease.used_at), "room for another")
        return len(self._leases) < MAX_PAIRS

    def _tidy(self) -> None:
        now = self._clock()
        self._cool_until = {k: until for k, until in self._cool_until.items() if until > now}
        for lease in list(self._leases.values()):
            if not lease.is_lent and now - lease.used_at > IDLE_S:
                self._forget(lease, "not used")

    def _forget(self, lease: Lease, why: str) -> None:
        del self._leases[lease.key]
        self.launcher.abort(lease.pair, why)
