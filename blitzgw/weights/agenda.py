"""What a store's thread is to look at next, and what comes of it. No I/O, no lock of its own.

prefix grows ──► due ──► hashed bit by bit ──► right: checked · wrong: emptied
whole and gated ──► summed at once, before all hashing ──► right: checked, and hashed later
                                                       └─► wrong: emptied
"""

from __future__ import annotations

from collections.abc import Sequence

from blitzgw.weights.blobstate import HASH_BYTES, BlobState, Turn


class Agenda:
    """Of the blobs of one store, under its lock."""

    def __init__(self, blobs: Sequence[BlobState]) -> None:
        self._blobs = blobs
        self._due: dict[int, None] = {}  # ordered sets: at most one entry for each blob
        self._gates: dict[int, None] = {}
        self.n_checked = 0

    def __bool__(self) -> bool:
        return bool(self._due or self._gates)

    def note(self, index: int) -> bool:
        """Look at a blob whose prefix has grown; return whether there is anything to do of it."""
        blob = self._blobs[index]
        if blob.awaits_gate:
            self._gates[index] = None
        if blob.is_due:
            self._due[index] = None
        return blob.is_due

    def next(self) -> Turn:
        """Return a turn at what has been due for longest; what is to be announced goes first."""
        if self._gates:
            index = next(iter(self._gates))
            blob = self._blobs[index]
            return Turn(index, blob.round, 0, blob.resident, is_last=True, is_gate=True)
        waiting = (index for index in self._due if not self._blobs[index].checked)
        index = next(waiting, next(iter(self._due)))
        blob = self._blobs[index]
        size, start = blob.digest.size_bytes, blob.hashed
        stop = size if blob.trusted else min(blob.resident, start + HASH_BYTES)
        return Turn(index, blob.round, start, stop, stop == size, blob.trusted)

    def settle(self, turn: Turn, is_right: bool | None) -> bool | None:
        """Note what a turn has come to; return what is to be announced: right, wrong, or nothing.

        None: there is more to hash.
        """
        index, blob = turn.index, self._blobs[turn.index]
        if blob.round != turn.round:
            return None
        if turn.is_gate:
            del self._gates[index]
        else:
            blob.hashed, blob.proven = turn.stop, is_right is True
            if is_right is not None or not blob.is_due:
                del self._due[index]
        if is_right is None or (is_right and blob.checked):
            return None
        if is_right:
            blob.checked = True
            self.n_checked += 1
            self._gates.pop(index, None)
        else:
            self.empty(index)
        return is_right

    def empty(self, index: int) -> None:
        """Empty a blob: there is nothing to do of it any more."""
        self._due.pop(index, None)
        self._gates.pop(index, None)
        self.n_checked -= self._blobs[index].checked
        self._blobs[index].empty()

    def clear(self) -> None:
        """Forget all there is to do."""
        self._due.clear()
        self._gates.clear()
