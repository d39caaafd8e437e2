"""Where weights and KV lie: one slab an instance, huge pages on the CPU, bytes that can arrive.

On the CPU a slab is anonymous memory: weights ask for huge pages (a decode step streams all of
them, and fewer TLB misses make it 7–14 % shorter), KV is committed page by page as it is touched
and can be given back. On a GPU a slab is device memory and arriving blobs pass through a host
buffer each.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from blitzgw.core.layout import BlobLayout
from blitzgw.core.model import Dtype

TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}
PAGE = mmap.PAGESIZE
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0)


def anonymous_map(size_bytes: int) -> mmap.mmap:
    """Return private memory that is committed when touched. Raises MemoryError."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        return mmap.mmap(-1, max(size_bytes, PAGE), flags=flags)
    except OSError as e:
        raise MemoryError(f"cannot reserve {size_bytes} bytes: {e}") from e


class WeightSlab:
    """The blobs of one instance in blob order, each on a page of its own."""

    def __init__(self, layouts: Sequence[BlobLayout], dtype: Dtype, device: torch.device) -> None:
        self._layouts = layouts
        self._dtype = TORCH_DTYPES[dtype]
        self._offsets = []
        total = 0
        for layout in layouts:
            self._offsets.append(total)
            total += -(-layout.size_bytes // PAGE) * PAGE
        self._staging: dict[int, torch.Tensor] = {}
        self._map: mmap.mmap | None = None
        if device.type == "cpu":
            self._map = anonymous_map(total)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        else:
            self._bytes = torch.empty(total, dtype=torch.uint8, device=device)

    def buffer(self, index: int) -> memoryview:
        """Return the writable host bytes of a blob."""
        size = self._layouts[index].size_bytes
        if self._map is not None:
            start = self._offsets[index]
            return memoryview(self._map)[start : start + size]
        staging = self._staging.setdefault(
            index, torch.empty(size, dtype=torch.uint8, pin_memory=True)
        )
        return staging.numpy().data

    def tensors(self, index: int) -> dict[str, torch.Tensor]:
        """Return a blob's tensors as views, after bringing it to the device where it is not."""
        layout = self._layouts[index]
        start = self._offsets[index]
        staging = self._staging.pop(index, None)
        if staging is not None:
            self._bytes[start : start + layout.size_bytes].copy_(staging)
        return {
            slot.name: self._bytes[start + slot.offset : start + slot.offset + slot.size_bytes]
            .view(self._dtype)
            .view(slot.shape)
            for slot in layout.tensors
        }
