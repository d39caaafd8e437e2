"""CUDA itself: events, copies and captures. All of the engine that no CPU can stand in for.

No GPU has run this yet: unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

import torch


class Fetch(Protocol):
    """Numbers on their way to the host, and with them the end of all that was launched before."""

    def is_ready(self) -> bool:
        """Say whether they are there."""

    def wait(self) -> list[int]:
        """Return them once they are; raises what has gone wrong on the device."""


class Fence(Protocol):
    """The end of copies whose source is to be written again."""

    def mark(self) -> None:
        """Mark what has been launched so far."""

    def wait(self) -> None:
        """Wait until what was marked last is over; at once where nothing was."""


class Shell(Protocol):
    """What a captured decode step needs of its device."""

    def fence(self) -> Fence:
        """Return a fence."""

    def fetch(self, numbers: torch.Tensor) -> Fetch:
        """Begin to copy integers to the host."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` launches, without running it; return what runs it.

        It reads and writes the memory that it has read and written in `work`.
        """


class CudaShell:
    """`Shell` on a GPU: pinned memory, events, CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def fence(self) -> Fence:
        """Return a fence."""
        return _CudaFence()

    def fetch(self, numbers: torch.Tensor) -> Fetch:
        """Begin to copy integers to the host."""
        return _CudaFetch(numbers)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` launches; other threads and what the device computes go on.

        `torch.cuda.graph` would wait for the device, and give its free memory back. A pool goes
        with the last graph in it, and torch takes its handle for no other one.
        """
        graph, sharing = torch.cuda.CUDAGraph(), next(iter(self._living), None)
        pool = torch.cuda.graph_pool_handle() if sharing is None else sharing.pool()
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
                graph.capture_end()
            except BaseException:  # the capture is void; the first error says why
                with suppress(RuntimeError):
                    graph.capture_end()
                with suppress(RuntimeError):  # else torch takes it to go on, and frees no memory
                    torch._C._cuda_endAllocateToPool(self._device.index, pool)
                raise
        here.wait_stream(self._stream)
        self._living.add(graph)
        replay: Callable[[], None] = graph.replay
        return replay


class _CudaFence:
    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        """Mark what has been launched so far."""
        self._event.record()

    def wait(self) -> None:
        """Wait until it is over."""
        self._event.synchronize()


class _CudaFetch:
    def __init__(self, numbers: torch.Tensor) -> None:
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host.copy_(numbers, non_blocking=True)
        self._over = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._over.record()

    def is_ready(self) -> bool:
        """Say whether they are there."""
        return bool(self._over.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[int]:
        """Return them once they are."""
        self._over.synchronize()  # bounded by the steps that were launched before
        numbers: list[int] = self._host.tolist()
        return numbers
