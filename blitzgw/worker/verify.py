"""Checks blobs that are in memory already, as those of a mapped host copy.

In blob order and several at a time, so that the first layers are announced after milliseconds.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Sequence

from blitzgw.core.transfer import StoreClosed
from blitzgw.weights.digests import blake3_digest
from blitzgw.worker.holding import FOUND, Holding

MAX_THREADS = 4
"""Threads of one check: BLAKE3 takes 3.4 GB/s of one core, and memory is not much faster than a
few of them."""


class Verification:
    """Hashes blobs of a holding, which were begun for it, and makes those resident that are right.

    `done` gets those that are not, on one of the threads, after the last blob; never where the
    holding is closed meanwhile. The threads end with the work or with the store.
    """

    def __init__(
        self,
        holding: Holding,
        blobs: Sequence[int],
        done: Callable[[Holding, list[int]], None],
        threads: int,
    ) -> None:
        self._holding, self._done = holding, done
        self._blobs: Iterator[int] = iter(blobs)
        self._damaged: list[int] = []
        self._lock = threading.Lock()
        self._running = max(1, min(threads, MAX_THREADS, len(blobs)))

    def start(self) -> None:
        """Start the threads."""
        for i in range(self._running):
            threading.Thread(target=self._run, name=f"verify-{i}", daemon=True).start()

    def _run(self) -> None:
        try:
            while (index := self._next()) is not None:
                self._check(index)
        except StoreClosed:
            return
        with self._lock:
            self._running -= 1
            last = not self._running
        if last:
            self._done(self._holding, sorted(self._damaged))

    def _next(self) -> int | None:
        with self._lock:
            return next(self._blobs, None)

    def _check(self, index: int) -> None:
        store = self._holding.store
        digest = blake3_digest(store.view(index))
        if hmac.compare_digest(digest, self._holding.blobs[index].blake3):
            store.filled(index, FOUND, checked=True)
        else:
            store.end(index, FOUND)
            with self._lock:
                self._damaged.append(index)
