"""Contents that a node keeps between the chunks that peers fetch of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

SNAPSHOT_S = 30.0
"""How long a content is kept after its last chunk was asked for: three times a peer's patience
(network.py), after which nobody asks for the next one."""

MAX_SNAPSHOTS = 8
"""Contents kept for one peer between its chunks, of those whose names do not say what they hold; an
older one is then provided anew. Twice what a peer fetches at once."""

SHARED_BYTES = 256 << 20
"""Most bytes of contents that peers share: seven of the largest known. Beyond that the one used
least recently is provided anew."""


@dataclass(slots=True)
class _Snapshot:
    data: bytes
    used_s: float
    readers: set[str] = field(default_factory=set)


class Snapshots:
    """Contents by the fetch that began with them, and by name where the name is a digest.

    Times are seconds of the caller's clock.
    """

    def __init__(self) -> None:
        self._own: dict[str, OrderedDict[int, _Snapshot]] = {}
        self._shared: OrderedDict[str, _Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shared) + sum(map(len, self._own.values()))

    @property
    def size_bytes(self) -> int:
        """Bytes of all that is kept."""
        own = sum(len(s.data) for kept in self._own.values() for s in kept.values())
        return own + self._shared_bytes()

    def find(self, boot: str, fetch: int, name: str, now: float) -> bytes | None:
        """Return what a fetch began with, or what has this digest."""
        found = self._shared.get(name)
        if found is None and boot in self._own:
            found = self._own[boot].get(fetch)
        if found is None:
            return None
        found.used_s = now
        if name in self._shared:
            self._shared.move_to_end(name)
            found.readers.add(boot)
        return found.data

    def keep(self, boot: str, fetch: int, data: bytes, now: float) -> bytes:
        """Keep what a fetch begins with; return what was kept first, which its chunks are of."""
        kept = self._own.setdefault(boot, OrderedDict())
        snapshot = kept.setdefault(fetch, _Snapshot(data, now))
        if len(kept) > MAX_SNAPSHOTS:
            kept.popitem(last=False)
        return snapshot.data

    def share(self, boot: str, name: str, data: bytes, now: float) -> bytes:
        """Keep what has a digest for a name, once for all peers."""
        snapshot = self._shared.setdefault(name, _Snapshot(data, now))
        snapshot.readers.add(boot)
        while len(self._shared) > 1 and self._shared_bytes() > SHARED_BYTES:
            self._shared.popitem(last=False)
        return snapshot.data

    def finished(self, boot: str, fetch: int, name: str) -> None:
        """Forget a fetch; what is shared stays a while for the next peer."""
        kept = self._own.get(boot, OrderedDict())
        kept.pop(fetch, None)
        if not kept:
            self._own.pop(boot, None)
        if name in self._shared:
            self._shared[name].readers.discard(boot)

    def lost(self, boot: str) -> None:
        """Forget what only this peer was fetching."""
        self._own.pop(boot, None)
        for name, snapshot in [*self._shared.items()]:
            if boot in snapshot.readers:
                snapshot.readers.discard(boot)
                if not snapshot.readers:
                    del self._shared[name]

    def expire(self, now: float) -> None:
        """Forget what nobody has asked for in SNAPSHOT_S."""
        for boot, kept in [*self._own.items()]:
            for fetch, snapshot in [*kept.items()]:
                if now - snapshot.used_s >= SNAPSHOT_S:
                    self.finished(boot, fetch, "")
        for name, snapshot in [*self._shared.items()]:
            if now - snapshot.used_s >= SNAPSHOT_S:
                del self._shared[name]

    def _shared_bytes(self) -> int:
        return sum(len(snapshot.data) for snapshot in self._shared.values())
