"""One host copy: the file of a model's blobs in shared memory, and this process's map of it.

    0 ───────── slab (core/layout.py) ───────── total ── one byte a blob ── … ── footer ── end

The footer says what the file is for; it is written when all memory has been taken. A blob's byte
is its state, which the filler writes after the blob: what a killed process leaves is consistent,
for a file in shared memory goes through no disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress

from blitzgw.core.layout import LAYOUT_VERSION, SLAB_ALIGNMENT, BlobLayout, slab_offsets
from blitzgw.core.manifest import BlobDigest

_FOOTER = struct.Struct("<8sIIQ32s8x")
_MAGIC = b"blitzcpy"

ABSENT, FOUND, CHECKED = 0, 1, 2
"""States of a blob: not there; checked by a filler before this one, to be checked again; checked
by the one that completes the copy."""


class CopyForm:
    """What the file of some weights looks like. Raises ValueError where sizes do not agree."""

    def __init__(
        self, weights: str, layouts: Sequence[BlobLayout], digests: Sequence[BlobDigest]
    ) -> None:
        self.sizes = [layout.size_bytes for layout in layouts]
        if not digests or self.sizes != [digest.size_bytes for digest in digests]:
            raise ValueError(f"the digests of {weights} are not those of its layout")
        self.weights = weights
        self.offsets, self.slab_bytes = slab_offsets(layouts)
        identity = hashlib.blake2b(weights.encode(), digest_size=32)
        for digest in digests:
            identity.update(digest.size_bytes.to_bytes(8, "little") + digest.blake3)
        self.footer = _FOOTER.pack(
            _MAGIC, LAYOUT_VERSION, len(digests), self.slab_bytes, identity.digest()
        )
        self.file_bytes = _file_bytes(self.slab_bytes, len(digests))

    def fits(self, fd: int) -> bool:
        """Tell whether an open file has this form."""
        at = self.file_bytes - _FOOTER.size
        return (
            os.fstat(fd).st_size == self.file_bytes
            and os.pread(fd, _FOOTER.size, at) == self.footer
        )

    def take(self, fd: int) -> None:
        """Give an empty file this form and all its memory. Raises OSError, ENOSPC for one."""
        os.posix_fallocate(fd, 0, self.file_bytes)
        os.pwrite(fd, self.footer, self.file_bytes - _FOOTER.size)


def _file_bytes(slab_bytes: int, n_blobs: int) -> int:
    rest = n_blobs + _FOOTER.size
    return slab_bytes + -(-rest // SLAB_ALIGNMENT) * SLAB_ALIGNMENT


def states(fd: int) -> bytes:
    """Return the states of the blobs of any host copy; nothing where the file is none."""
    size = os.fstat(fd).st_size
    footer = os.pread(fd, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) != _FOOTER.size:
        return b""
    magic, version, n_blobs, slab_bytes, _ = _FOOTER.unpack(footer)
    if (magic, version) != (_MAGIC, LAYOUT_VERSION) or _file_bytes(slab_bytes, n_blobs) != size:
        return b""
    return os.pread(fd, n_blobs, slab_bytes)


class HostCopy:
    """A mapped host copy: complete, or this process's to fill.

    It takes over an open file of that form; one that is not complete is locked. `private`: bytes
    that are written stay in this process. Safe to use from several threads. Raises OSError.
    """

    def __init__(self, form: CopyForm, fd: int, *, private: bool) -> None:
        self._form, self._fd = form, fd
        self._lock = threading.Lock()
        self._memory: memoryview | None = None
        self._states = bytearray(states(fd))
        self._filling = not self.is_complete
        if self._filling:
            self._states = bytearray(min(state, FOUND) for state in self._states)
            os.pwrite(fd, self._states, form.slab_bytes)
        else:
            self._unlock()
        kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        slab = mmap.mmap(fd, form.slab_bytes, kind, mmap.PROT_READ | mmap.PROT_WRITE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a wish, which few tmpfs are mounted to grant
                slab.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(slab)

    @property
    def weights(self) -> str:
        """The root of the manifest."""
        return self._form.weights

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self._form.file_bytes

    @property
    def memory(self) -> memoryview:
        """The slab (core/layout.py: `slab_offsets`), writable. Raises ValueError once closed."""
        memory = self._memory
        if memory is None:
            raise ValueError(f"the host copy of {self.weights} is closed")
        return memory

    @property
    def checked(self) -> frozenset[int]:
        """The blobs that have been marked, by this process or by a filler before it.

        Those of the latter are to be checked again and marked, or unmarked: before that the copy
        does not become complete.
        """
        return frozenset(i for i, state in enumerate(self._states) if state != ABSENT)

    @property
    def is_complete(self) -> bool:
        """Whether all blobs have been checked, so that others may map the copy."""
        return self._states.count(CHECKED) == len(self._states)

    @property
    def is_removed(self) -> bool:
        """Whether its file is gone, so that nobody else will find it; True once it is closed."""
        with self._lock:
            return self._fd < 0 or not os.fstat(self._fd).st_nlink

    def buffer(self, index: int) -> memoryview:
        """Return a blob's bytes, writable. Raises ValueError once closed."""
        start = self._form.offsets[index]
        return self.memory[start : start + self._form.sizes[index]]

    def mark(self, index: int) -> bool:
        """Note in the file that a blob is there and checked; return whether that completes it.

        From then on it is not locked. Does nothing where this process does not fill the copy: it
        was complete, or it is closed.
        """
        with self._lock:
            if not self._filling:
                return False
            self._note(index, CHECKED)
            if self.is_complete:
                self._unlock()
            return self.is_complete

    def unmark(self, index: int) -> None:
        """Note in the file that a blob was found damaged, so that it is complete no more.

        `create` goes on with it then. Does nothing once it is closed.
        """
        with self._lock:
            if self._fd >= 0:
                self._note(index, ABSENT)

    def close(self) -> None:
        """Let go of the lock and the memory. May be called twice.

        Views that were handed out stay good: the map goes with the last of them.
        """
        with self._lock:
            self._memory = None
            if self._fd >= 0:
                self._unlock()
                os.close(self._fd)
                self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _note(self, index: int, state: int) -> None:
        self._states[index] = state
        os.pwrite(self._fd, bytes([state]), self._form.slab_bytes + index)

    def _unlock(self) -> None:
        # By hand: the map holds a duplicate of the descriptor, and with it the lock.
        self._filling = False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
