"""All blobs of an instance in host memory: taken here, or handed in. No torch."""

from __future__ import annotations

import mmap
import platform
from collections.abc import Sequence

from blitzgw.core.layout import BlobLayout, slab_offsets

_LINUX = 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0
_NORESERVE = getattr(mmap, "MAP_NORESERVE", _LINUX)
"""Python has a name for it from 3.13 on. Without it the kernel refuses what exceeds the memory of
the machine, though only a part of that will be touched."""


def anonymous_map(size_bytes: int) -> mmap.mmap:
    """Return private memory that is committed when touched. Raises MemoryError."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        return mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE), flags=flags)
    except OSError as e:
        raise MemoryError(f"cannot reserve {size_bytes} bytes: {e}") from e


class HostSlab:
    """The blobs in blob order, each on a page of its own.

    `memory` has the layout of `slab_offsets`, and may be longer; None: anonymous memory is taken.
    Nothing here closes memory: it goes with the last tensor and view of it. Raises ValueError for
    memory that does not fit, MemoryError.
    """

    def __init__(self, layouts: Sequence[BlobLayout], memory: memoryview | None = None) -> None:
        self.offsets, self.size_bytes = slab_offsets(layouts)
        self._sizes = [layout.size_bytes for layout in layouts]
        self.memory = _anonymous(self.size_bytes) if memory is None else memory.cast("B")
        if self.memory.readonly or len(self.memory) < self.size_bytes:
            raise ValueError(
                f"weights need {self.size_bytes} writable bytes, not {len(self.memory)}"
            )

    def buffer(self, index: int) -> memoryview:
        """Return the writable bytes of a blob."""
        start = self.offsets[index]
        return self.memory[start : start + self._sizes[index]]


def _anonymous(size_bytes: int) -> memoryview:
    taken = anonymous_map(size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        taken.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(taken)
