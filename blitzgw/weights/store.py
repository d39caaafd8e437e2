"""The bytes of one model's weights on a worker: a prefix of every blob, and what has been checked.

Whoever brings bytes (an edge, a disk, a host copy) becomes the blob's only filler, writes them
behind its prefix and then moves the prefix: nothing is written where bytes are resident. A thread
of the store's own hashes along behind all prefixes, so that the digest of a blob is nearly there
when its last byte is. Only it says that a blob is right.

    resident   0 ────────────── advance ──────────────► size    forwarded piece by piece
    hashed     0 ──────── the store's thread ─────────► size    checked; or damaged: both 0 again
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Sequence

from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import StoreClosed
from blitzgw.weights.agenda import Agenda
from blitzgw.weights.blobstate import HASH_BYTES, BlobState, Turn
from blitzgw.weights.hashes import GrowingHashes

__all__ = ["HASH_BYTES", "WeightStore"]

log = logging.getLogger(__name__)


class WeightStore:
    """A `BlobStore` over memory that somebody else owns.

    `buffer(index)` gives a blob's bytes, all of them, writable; it is called on any thread each
    time that somebody looks, and never under the store's lock. `on_checked(index)` is called once
    for each blob whose bytes are those of the manifest, `on_damaged(index, source)` each time that
    they are not, after the blob was emptied; both on the store's thread. `source` is who brought
    the blob's last bytes. The thread ends with `close`. Raises ValueError for an empty blob.
    """

    def __init__(
        self,
        weights: str,
        blobs: Sequence[BlobDigest],
        buffer: Callable[[int], memoryview],
        on_checked: Callable[[int], None],
        on_damaged: Callable[[int, str], None],
    ) -> None:
        if any(blob.size_bytes <= 0 for blob in blobs):
            raise ValueError("a blob without bytes")
        self._weights = weights
        self._blobs = [BlobState(blob) for blob in blobs]
        self._buffer = buffer
        self._on_checked, self._on_damaged = on_checked, on_damaged
        self._lock = threading.Lock()
        self._agenda = Agenda(self._blobs)
        self._has_work = threading.Condition(self._lock)
        self._idle = True
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"check-{weights[:8]}", daemon=True)
        self._thread.start()

    @property
    def weights(self) -> str:
        """The root of the manifest."""
        return self._weights

    @property
    def checked(self) -> frozenset[int]:
        """The blobs whose bytes are those of the manifest."""
        with self._lock:
            return frozenset(i for i, blob in enumerate(self._blobs) if blob.checked)

    @property
    def is_complete(self) -> bool:
        """Whether all blobs are checked."""
        return self._agenda.n_checked == len(self._blobs)

    def is_proven(self, index: int) -> bool:
        """Whether a blob's own digest has been taken, not only the sum that it was announced by."""
        blob = self._blobs[index]
        return blob.checked and (blob.proven or not blob.gated)

    def size_bytes(self, index: int) -> int:
        """Return the size of a blob."""
        return self._blobs[index].digest.size_bytes

    def view(self, index: int) -> memoryview:
        """Return a blob's bytes, writable; only its filler may write, and only behind the prefix.

        The memory stays for as long as the view, also beyond `close`. Raises StoreClosed.
        """
        if self._closed:
            raise StoreClosed(self._weights)
        return self._buffer(index)

    def resident_bytes(self, index: int) -> int:
        """Return how many bytes of a blob are resident, from its start."""
        return self._blobs[index].resident

    def wait(self, index: int, beyond: int, timeout_s: float) -> int:
        """Wait until more than `beyond` bytes of a blob are resident; return how many there are.

        Returns what there is after `timeout_s`, and at once, then mostly 0, when the blob is found
        damaged and emptied meanwhile. Raises StoreClosed.
        """
        blob = self._blobs[index]
        if blob.resident > beyond and not self._closed:  # no lock where nobody need wait
            return blob.resident
        deadline = time.monotonic() + timeout_s
        with self._lock:
            began = blob.round
            while not self._closed and blob.resident <= beyond and blob.round == began:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                if blob.changed is None:
                    blob.changed = threading.Condition(self._lock)
                blob.changed.wait(left_s)
            if self._closed:
                raise StoreClosed(self._weights)
            return blob.resident

    def is_free(self, index: int) -> bool:
        """Say whether a blob lacks bytes that nobody brings."""
        blob = self._blobs[index]
        return blob.filler is None and not blob.is_whole

    def begin(self, index: int, source: str = "", *, anew: bool = False) -> bool:
        """Let `source` fill a blob; return False where somebody else does, or it is whole.

        `anew`: in any order and from its first byte, so that it is emptied of its prefix. Whoever
        forwards that waits for it to come again. Raises StoreClosed.
        """
        blob = self._blobs[index]
        with self._lock:
            self._check_open()
            if blob.filler is not None or blob.is_whole:
                return False
            blob.filler = source
            if anew and blob.resident:
                self._agenda.empty(index)
            return True

    def end(self, index: int, source: str = "") -> None:
        """Let others fill a blob, where `source` does; its prefix stays."""
        blob = self._blobs[index]
        with self._lock:
            if blob.filler == source:
                blob.filler = None

    def advance(self, index: int, start: int, stop: int, source: str = "") -> None:
        """Make `[start, stop)` of a blob resident; `start` is where the prefix ends.

        Raises ValueError for any other `start` or a `stop` that is not behind it in the blob, and
        where `source` does not fill it, StoreClosed.
        """
        blob = self._blobs[index]
        with self._lock:
            self._check_move(index, start, stop, source)
            self._move(index, blob, stop, source)

    def filled(self, index: int, source: str = "", *, checked: bool = False) -> None:
        """Make a whole blob resident that was written in any order, begun `anew`.

        `checked`: by whoever kept it, as in a complete host copy; it is announced without a hash.
        Raises ValueError for a blob with a prefix, or which `source` does not fill, StoreClosed.
        """
        blob = self._blobs[index]
        with self._lock:
            self._check_filled(index, source)
            blob.trusted = checked
            self._move(index, blob, blob.digest.size_bytes, source)

    def close(self) -> None:
        """Give up the store: who waits for it gets StoreClosed, and nothing more is announced.

        An announcement that is under way may end after this returns. May be called twice.
        """
        with self._lock:
            self._closed = True
            self._buffer = _no_buffer  # what it belongs to may go, and who listens
            self._on_checked, self._on_damaged = lambda _: None, lambda *_: None
            self._agenda.clear()
            self._has_work.notify()
            for blob in self._blobs:
                if blob.changed is not None:
                    blob.changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait, after `close`, for the store's thread to end; return whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(self._weights)

    def _check_move(self, index: int, start: int, stop: int, source: str) -> None:
        """Raise what `advance` raises."""
        blob = self._blobs[index]
        self._check_filler(index, blob, source)
        if start != blob.resident or not start < stop <= blob.digest.size_bytes:
            raise ValueError(
                f"[{start}, {stop}) of blob {index}: {blob.resident} of "
                f"{blob.digest.size_bytes} bytes are resident"
            )

    def _check_filled(self, index: int, source: str) -> None:
        """Raise what `filled` raises."""
        self._check_filler(index, self._blobs[index], source)
        if self._blobs[index].resident:
            raise ValueError(f"blob {index} was not begun anew")

    def _check_filler(self, index: int, blob: BlobState, source: str) -> None:
        self._check_open()
        if blob.filler != source:
            raise ValueError(f"blob {index} is filled by {blob.filler!r}, not by {source!r}")

    def _move(self, index: int, blob: BlobState, resident: int, source: str) -> None:
        blob.resident, blob.source = resident, source
        if blob.is_whole:
            blob.filler = None
        if blob.changed is not None:
            blob.changed.notify_all()
        if self._agenda.note(index) and self._idle:
            self._idle = False
            self._has_work.notify()

    def _run(self) -> None:
        hashes = GrowingHashes(self._read_back)
        while (turn := self._next()) is not None:
            try:
                is_right = self._look(hashes, turn)
            except StoreClosed:
                return
            except Exception:  # of the buffer's owner; the blob cannot be vouched for
                log.exception("blob_not_hashed weights=%s blob=%d", self._weights, turn.index)
                is_right = False
            if is_right is not None and not turn.is_gate:
                hashes.forget(turn.index)
            self._settle(turn, is_right)

    def _next(self) -> Turn | None:
        """Return what is to be looked at next; None after `close`."""
        with self._lock:
            while not self._agenda and not self._closed:
                self._idle = True
                self._has_work.wait()  # until there is something to look at, or `close`
            self._idle = False
            return None if self._closed else self._agenda.next()

    def _look(self, hashes: GrowingHashes, turn: Turn) -> bool | None:
        """Say whether a blob is right; None where there is more of it to hash."""
        if turn.is_gate:
            return self._passes_gate(turn.index)
        if turn.trusted:
            return True
        hashes.add(turn.index, turn.round, turn.start, turn.stop)
        if not turn.is_last:
            return None
        return hmac.compare_digest(hashes.digest(turn.index), self._blobs[turn.index].digest.blake3)

    def _settle(self, turn: Turn, is_right: bool | None) -> None:
        """Note what a turn has come to, and announce a blob that is checked or damaged."""
        with self._lock:
            if self._closed:
                return
            source = self._blobs[turn.index].source
            news = self._agenda.settle(turn, is_right)
        if news is not None:
            self._tell(turn.index, source, news)

    def _tell(self, index: int, source: str, is_right: bool) -> None:
        try:
            if is_right:
                self._on_checked(index)
            else:
                self._on_damaged(index, source)
        except Exception:  # its owner's mistake must not stop the checks of other blobs
            log.exception("store_callback_failed weights=%s blob=%d", self._weights, index)

    # For stores whose bytes lie elsewhere than in `buffer`.

    def _read_back(self, index: int, start: int, stop: int) -> memoryview:
        """Return bytes to be hashed; on the store's thread."""
        return self.view(index)[start:stop]

    def _gate_first(self, index: int) -> None:
        """Announce a blob by `_passes_gate`, once it is whole, and hash it afterwards."""
        with self._lock:
            self._blobs[index].gated = True

    def _passes_gate(self, index: int) -> bool:  # noqa: ARG002
        """Say whether a whole blob has the sum of the manifest; on the store's thread."""
        return False


def _no_buffer(index: int) -> memoryview:
    raise StoreClosed(f"blob {index}")
