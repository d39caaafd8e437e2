"""Where weights and KV lie: one slab an instance, huge pages on the CPU, bytes that can arrive.

On the CPU a slab is anonymous memory: weights ask for huge pages (a decode step streams all of
them, and fewer TLB misses make it 7–14 % shorter), and so does KV where sequences fill it from the
front (kv.py); that is committed as it is touched and can be given back. Or the slab is memory that
is handed in (a mapped host copy), and tensors are views of that. On a GPU a slab is device memory,
and blobs pass through host memory: pinned staging, one piece of it a blob, or what is handed in.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from blitzgw.core.layout import BlobLayout, slab_offsets
from blitzgw.core.model import Dtype
from blitzgw.engine.slab import HostSlab, anonymous_map

__all__ = ["PAGE", "TORCH_DTYPES", "WeightSlab", "anonymous_map", "pin", "unpin"]

log = logging.getLogger(__name__)

TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}
PAGE = mmap.PAGESIZE

Bytes = NDArray[np.uint8]


class WeightSlab:
    """The blobs of one instance in blob order, each on a page of its own.

    `memory`: host memory of that layout. On the CPU the tensors are views of it, on a GPU blobs
    are copied from it. Raises ValueError where it does not fit. `buffer` may be called on any
    thread.
    """

    def __init__(
        self,
        layouts: Sequence[BlobLayout],
        dtype: Dtype,
        device: torch.device,
        memory: memoryview | None = None,
    ) -> None:
        self._layouts = layouts
        self._dtype = TORCH_DTYPES[dtype]
        offsets, total = slab_offsets(layouts)
        host = HostSlab(layouts, memory) if device.type == "cpu" or memory is not None else None
        if host is not None and device.type == "cpu":
            data = torch.frombuffer(host.memory, dtype=torch.uint8)
        else:
            data = torch.empty(total, dtype=torch.uint8, device=device)
        self._blobs = [
            data[start : start + layout.size_bytes]
            for start, layout in zip(offsets, layouts, strict=True)
        ]
        self._host: HostSlab | _Pinned | _Staging
        if host is None:
            self._host = _Staging(self._blobs)
        else:
            self._host = host if device.type == "cpu" else _Pinned(host)

    def buffer(self, index: int) -> memoryview:
        """Return the writable host bytes of a blob: where it is to arrive, or what it is."""
        return self._host.buffer(index)

    def on_device(self, index: int) -> torch.Tensor:
        """Return the bytes of a blob on the device. Who writes them itself leaves `buffer` alone.

        They are there for as long as the tensor.
        """
        return self._blobs[index]

    def tensors(self, index: int) -> dict[str, torch.Tensor]:
        """Return a blob's tensors as views, after bringing it to the device where it is not."""
        if not isinstance(self._host, HostSlab):
            arrived = self._host.arrived(index)
            if arrived is not None:
                self._blobs[index].copy_(torch.frombuffer(arrived, dtype=torch.uint8))
        blob = self._blobs[index]
        return {
            slot.name: blob[slot.offset : slot.offset + slot.size_bytes]
            .view(self._dtype)
            .view(slot.shape)
            for slot in self._layouts[index].tensors
        }


class _Staging:
    """Pinned host memory, a piece for each blob that is on its way to a GPU or is read by peers.

    A piece that has arrived lives for as long as somebody looks at it; who asks later gets the
    blob copied back. So an instance on a GPU holds no host memory for its weights.
    """

    def __init__(self, on_device: Sequence[torch.Tensor]) -> None:
        self._on_device = on_device
        self._lock = threading.Lock()
        self._arriving: dict[int, Bytes] = {}
        self._arrived: set[int] = set()
        self._read: WeakValueDictionary[int, Bytes] = WeakValueDictionary()

    def buffer(self, index: int) -> memoryview:
        """Return the piece of a blob."""
        with self._lock:
            piece = self._arriving.get(index)
            if piece is None:
                piece = self._read.get(index)
            if piece is None:
                piece = self._new(index)
            return piece.data

    def arrived(self, index: int) -> memoryview | None:
        """Return the piece of a blob that goes to the device now, and let go of it.

        None where nobody has asked for one: its bytes are on the device already.
        """
        with self._lock:
            self._arrived.add(index)
            piece = self._arriving.pop(index, None)
            if piece is None:
                return None
            self._read[index] = piece
            return piece.data

    def _new(self, index: int) -> Bytes:
        source = self._on_device[index]
        staging = torch.empty(source.shape, dtype=torch.uint8, pin_memory=source.is_cuda)
        piece: Bytes = staging.numpy()
        if index in self._arrived:
            staging.copy_(source)
            self._read[index] = piece
        else:
            self._arriving[index] = piece
        return piece


class _Pinned:
    """Host memory that was handed in; a blob of it is pinned when somebody asks where it belongs.

    That is before its bytes come: to pin what is there already takes longer than it saves.
    """

    def __init__(self, host: HostSlab) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._pinned: dict[int, bool] = {}

    def buffer(self, index: int) -> memoryview:
        """Return the bytes of a blob."""
        view = self._host.buffer(index)
        with self._lock:
            if index not in self._pinned:
                self._pinned[index] = pin(view)
        return view

    def arrived(self, index: int) -> memoryview:
        """Return the bytes of a blob that goes to the device now; peers may read them after."""
        with self._lock:
            self._pinned.setdefault(index, False)
        return self._host.buffer(index)

    def __del__(self) -> None:
        for index, pinned in self._pinned.items():
            if pinned:
                unpin(self._host.buffer(index))


def pin(buffer: memoryview) -> bool:
    """Lock a run of host memory for fast copies to a GPU; tell whether that was done.

    It begins on a page and is not a private mapping of a file, whose every page would be copied.
    What is not pinned can still be copied, at a fraction of the speed. Without CUDA: nothing.
    """
    if not torch.cuda.is_available() or not len(buffer):
        return False
    status = int(_runtime().cudaHostRegister(_address(buffer), len(buffer), 0))
    if status != 0:
        log.warning("memory_not_pinned bytes=%d cuda_error=%d", len(buffer), status)
    return status == 0


def unpin(buffer: memoryview) -> None:
    """Undo `pin` where it said yes. The memory must still be mapped."""
    _runtime().cudaHostUnregister(_address(buffer))


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _address(buffer: memoryview) -> int:
    return torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
