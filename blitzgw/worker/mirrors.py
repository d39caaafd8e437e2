"""Host memory for blobs of a GPU that pass through it: on their way there, or back for peers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

from blitzgw.core.transfer import StoreClosed
from blitzgw.worker.spans import Spans

RECENT_BLOBS = 2
"""Mirrors that are kept after they were looked at: an edge looks once for each piece, and each new
mirror is to be pinned and filled. Two edges are rarely further apart than one blob."""

Key = tuple[int, int]
"""A blob, and how often it was emptied: what is known of one round is true of that one only."""


class Mirror:
    """A blob's place on the host, and which of its bytes are there. Thread-safe.

    A view of it stays valid for as long as somebody holds it, whatever becomes of the mirror.
    """

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self.view: memoryview = host.numpy().data
        self._lock = threading.Lock()
        self._there = Spans()

    def wrote(self, start: int, stop: int) -> None:
        """Note bytes that were written here."""
        with self._lock:
            self._there.add(start, stop)

    def bring(self, start: int, stop: int, fetch: Callable[[int, Tensor], None]) -> None:
        """Fetch what is not here of a run: `fetch(start, into)` for each gap."""
        with self._lock:
            for first, last in self._there.missing(start, stop):
                fetch(first, self.host[first:last])
                self._there.add(first, last)


class Mirrors:
    """The mirrors of a store. Thread-safe.

    One that is filled is kept until it has arrived; of the others those that were used last.
    """

    def __init__(self, make: Callable[[Key], Mirror]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._arriving: dict[Key, Mirror] = {}
        self._recent: dict[Key, Mirror] = {}  # the latest last

    def arriving(self, key: Key) -> Mirror:
        """Return the mirror of a blob that is being filled."""
        with self._lock:
            mirror = self._arriving.get(key)
            if mirror is None:
                known = self._recent.pop(key, None)
                mirror = self._arriving[key] = known or self._make(key)
            return mirror

    def find(self, key: Key) -> Mirror:
        """Return the mirror of a blob, to be read."""
        with self._lock:
            mirror = self._arriving.get(key)
            if mirror is None:
                known = self._recent.pop(key, None)
                mirror = self._keep(key, known or self._make(key))
            return mirror

    def arrived(self, key: Key) -> None:
        """Keep a mirror no longer than any other: nobody fills it now."""
        with self._lock:
            mirror = self._arriving.pop(key, None)
            if mirror is not None:
                self._keep(key, mirror)

    def close(self) -> None:
        """Forget all of them; who asks for one from now on gets StoreClosed."""
        with self._lock:
            self._make = _none  # it may be of somebody whose memory is to go
            self._arriving.clear()
            self._recent.clear()

    def _keep(self, key: Key, mirror: Mirror) -> Mirror:
        self._recent[key] = mirror
        while len(self._recent) > RECENT_BLOBS:
            del self._recent[next(iter(self._recent))]
        return mirror


def _none(key: Key) -> Mirror:
    raise StoreClosed(f"blob {key[0]}")
