"""The memory of a GPU's engine as a store uses it: addresses, sums, and copies from and to hosts.

Everything is queued on a stream of its own and waited for there. The stream of the engine's steps
is not waited for, and NCCL's must not be: a dead peer may block it. With tensors of the CPU all of
this is done at once, which is how it has been tested: on a GPU it has not been run or measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from blitzgw.engine.lanes import WORD_BYTES, lane_sum


class DeviceMemory:
    """Blobs, each a flat tensor of bytes, all on one device. Thread-safe where ranges differ.

    The memory stays for as long as this does. Raises ValueError for no blobs, or other tensors.
    """

    def __init__(self, blobs: Sequence[Tensor]) -> None:
        if not blobs or any(blob.dtype != torch.uint8 or blob.dim() != 1 for blob in blobs):
            raise ValueError("the memory of a device is one flat tensor of bytes for each blob")
        self._blobs = list(blobs)
        self._is_cuda = blobs[0].is_cuda
        self._stream: Any = None
        if self._is_cuda:
            self._stream = torch.cuda.Stream(blobs[0].device)  # type: ignore[no-untyped-call]

    def pointer(self, index: int, offset: int) -> int:
        """Return the device's address of a byte of a blob."""
        return self._blobs[index].data_ptr() + offset

    def lane_sum(self, index: int, start: int, stop: int) -> int:
        """Return the lane sum of `[start, stop)` as of a blob of its own; waits for the device."""
        with self._queued():
            part = self._blobs[index][start:stop]
            return lane_sum(part.clone() if start % WORD_BYTES else part)

    def put(self, index: int, start: int, source: Tensor) -> None:
        """Copy bytes of the host to a place in a blob; they are there when this returns."""
        with self._queued():
            self._blobs[index][start : start + len(source)].copy_(source, non_blocking=True)

    def fetch(self, index: int, start: int, into: Tensor) -> None:
        """Copy bytes of a blob to the host; they are there when this returns."""
        with self._queued():
            into.copy_(self._blobs[index][start : start + len(into)], non_blocking=True)

    def host_bytes(self, size_bytes: int) -> Tensor:
        """Return host memory, pinned where the device is a GPU, from which copies are fast."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._is_cuda)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Queue what is done on the stream of copies, and wait for that."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()
