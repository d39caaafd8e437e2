"""Memory that a store, an engine and edges share, until the store lets go of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from blitzgw.core.layout import BlobLayout
from blitzgw.core.transfer import StoreClosed
from blitzgw.engine.slab import HostSlab

ENGINE_WAIT_S = 120.0
"""Longest wait for the engine whose memory it is: a GPU's allocator is slow when memory is short,
and the first engine of a process may have to compile kernels."""

RECENT_BLOBS = 2
"""Blobs of a GPU whose bytes are kept in host memory after they were looked at: an edge looks once
for each piece, and each look would copy the blob from the device. Two edges are rarely further
apart than one blob."""


class Slab(Protocol):
    """Where the blobs of a holding lie. Thread-safe."""

    @property
    def memory(self) -> memoryview | None:
        """All of it, for an engine; None where the engine takes its own. Raises StoreClosed."""

    def attach(self, buffer: Callable[[int], memoryview]) -> bool:
        """Offer an engine's own memory; return whether blobs come to that engine by themselves."""

    def buffer(self, index: int) -> memoryview:
        """Return the bytes of a blob. Raises StoreClosed after `release`."""

    def release(self) -> None:
        """Let go of the memory. May be called twice."""


class SharedSlab:
    """All blobs of a model in host memory: taken here, or handed in (a mapped host copy).

    Nothing is unmapped by hand: pages go with the last view of them, and `release` makes sure that
    this is not the last. Raises ValueError for memory that does not fit, MemoryError.
    """

    def __init__(self, layouts: Sequence[BlobLayout], memory: memoryview | None = None) -> None:
        self._slab: HostSlab | None = HostSlab(layouts, memory)

    @property
    def memory(self) -> memoryview:
        """All of it."""
        return self._held().memory

    def attach(self, buffer: Callable[[int], memoryview]) -> bool:  # noqa: ARG002
        """Do nothing: engines were given `memory`."""
        return True

    def buffer(self, index: int) -> memoryview:
        """Return the bytes of a blob."""
        return self._held().buffer(index)

    def release(self) -> None:
        """Let go of the memory."""
        self._slab = None

    def _held(self) -> HostSlab:
        slab = self._slab
        if slab is None:
            raise StoreClosed
        return slab


class EngineSlab:
    """The memory of a GPU's engine, which shows its blobs through host memory while it is asked.

    The first engine that is attached is the one; who looks before that waits for it. Others have
    their blobs copied.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attached = threading.Event()
        self._source: Callable[[int], memoryview] | None = None
        self._recent: dict[int, memoryview] = {}  # the latest last
        self._released = False

    @property
    def memory(self) -> None:
        """Nothing: the engine takes its own."""
        if self._released:
            raise StoreClosed

    def attach(self, buffer: Callable[[int], memoryview]) -> bool:
        """Take an engine's memory unless there is one; return whether it was taken."""
        with self._lock:
            if self._released:
                raise StoreClosed
            taken = self._source is None
            self._source = self._source or buffer
            self._attached.set()
            return taken

    def buffer(self, index: int) -> memoryview:
        """Return the bytes of a blob; waits for the engine, at most ENGINE_WAIT_S."""
        self._attached.wait(ENGINE_WAIT_S)
        with self._lock:
            if self._source is None:
                raise StoreClosed
            view = self._recent.pop(index, None)
            if view is None:
                view = self._source(index)
            self._recent[index] = view
            while len(self._recent) > RECENT_BLOBS:
                del self._recent[next(iter(self._recent))]
            return view

    def release(self) -> None:
        """Let go of the engine; who waits for one gets StoreClosed."""
        with self._lock:
            self._source, self._released = None, True
            self._recent.clear()
            self._attached.set()
