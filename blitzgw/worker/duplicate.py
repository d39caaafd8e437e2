"""Makes a host copy of weights that an instance of the same worker has in memory of its own."""

from __future__ import annotations

import hmac
import queue
import threading
from collections.abc import Callable

from blitzgw.core.transfer import HoldCopy, StoreClosed
from blitzgw.errors import BlitzError
from blitzgw.weights.digests import blake3_digest
from blitzgw.weights.hostcopy import HostCopy
from blitzgw.worker.faults import describe
from blitzgw.worker.holding import Holding

CHUNK_BYTES = 1 << 20
"""Bytes copied at once: the interpreter stands still meanwhile, some 100 µs."""


class Duplicate:
    """Copies blobs of a holding into a file as they are checked.

    `done(self, why)` is called at the end on its own thread; `why` is empty where the copy is
    complete. The copy has been closed by then. `cancel` ends it at the next blob.
    """

    def __init__(
        self,
        message: HoldCopy,
        holding: Holding,
        copy: HostCopy,
        done: Callable[[Duplicate, str], None],
    ) -> None:
        self.message = message
        self._holding, self._copy, self._done = holding, copy, done
        self._events: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread; it ends with the last blob, or with `cancel`."""
        threading.Thread(target=self._run, name="duplicate", daemon=True).start()

    def cancel(self) -> None:
        """Give it up."""
        self._events.put(None)

    def _run(self) -> None:
        arrival = self._events.put
        self._holding.follow(arrival)
        try:
            why = self._copy_all()
        except StoreClosed:
            why = GONE
        except (BlitzError, OSError, ValueError) as error:
            why = describe(error)
        finally:
            self._holding.unfollow(arrival)
            self._copy.close()
        self._done(self, why)

    def _copy_all(self) -> str:
        for _ in self._holding.blobs:
            index = self._events.get()  # unbounded on purpose: peers may take their time
            if index is None:
                return GONE
            if not self._copy_blob(index):
                return f"blob {index} is not what the manifest says"
        return ""

    def _copy_blob(self, index: int) -> bool:
        """Copy a blob; return False where it is on a GPU, was run by its sum, and is not right."""
        source, target = self._holding.store.view(index), self._copy.buffer(index)
        for start in range(0, len(source), CHUNK_BYTES):
            target[start : start + CHUNK_BYTES] = source[start : start + CHUNK_BYTES]
        if not self._holding.store.is_proven(index):
            digest = blake3_digest(target[: len(source)])
            if not hmac.compare_digest(digest, self._holding.blobs[index].blake3):
                return False
        self._copy.mark(index)
        return True


GONE = "the instance that it was copied from has gone"
