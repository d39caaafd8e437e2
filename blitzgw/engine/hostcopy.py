"""Tensors as bytes in host memory, and back: what travels between engines.

On a GPU a copy has a stream of its own, so that steps go on while it runs. (The GPU's side is
tested for its results; its speed has not been measured.)
"""

from __future__ import annotations

import threading

import torch


class HostCopies:
    """Copies device memory into host memory; any thread may ask for one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None

    def take(self, source: torch.Tensor) -> memoryview:
        """Return a copy of a tensor's elements, row major, in memory of its own.

        On a GPU it is pinned, and holds what all steps have computed that were begun before.
        """
        if not source.is_cuda:
            target = torch.empty(source.shape, dtype=source.dtype)
            return bytes_of(target.copy_(source.detach()))
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        with self._lock:  # one at a time: the link to the host is one
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            with torch.cuda.stream(self._stream):
                target.copy_(source.contiguous(), non_blocking=True)
            self._stream.synchronize()  # bounded by the copy, and the steps it waits for
        return bytes_of(target)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory; they keep it alive."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def tensor_of(data: bytes | memoryview, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as a flat tensor: their own memory, where it is writable and aligned.

    They are a whole number of elements. Bytes that came by a socket may begin anywhere.
    """
    if not len(data):
        return torch.empty(0, dtype=dtype)
    if memoryview(data).readonly:
        data = memoryview(bytearray(data))
    flat = torch.frombuffer(data, dtype=torch.uint8)
    return (flat if flat.data_ptr() % dtype.itemsize == 0 else flat.clone()).view(dtype)
