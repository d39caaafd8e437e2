"""The memory of a GPU's engine, as a holding has it until it lets go of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import StoreClosed
from blitzgw.worker.device_memory import DeviceMemory
from blitzgw.worker.device_store import DeviceWeightStore

ENGINE_WAIT_S = 120.0
"""Longest wait for the engine whose memory it is: a GPU's allocator is slow when memory is short,
and the first engine of a process may have to compile kernels."""


class DeviceSlab:
    """The blobs of the first engine that is attached; who looks before that waits for it.

    Others have their blobs copied. Whatever device `blob_memory` of the engine is on will do.
    """

    def __init__(self, n_blobs: int) -> None:
        self._n_blobs = n_blobs
        self._lock = threading.Lock()
        self._attached = threading.Event()
        self._device: DeviceMemory | None = None
        self._released = False

    @property
    def memory(self) -> None:
        """Nothing: the engine takes its own. Raises StoreClosed."""
        if self._released:
            raise StoreClosed

    def attach(self, engine: Any) -> bool:
        """Take an engine's memory unless there is one; return whether it was taken."""
        with self._lock:
            if self._released:
                raise StoreClosed
            taken = self._device is None
            if taken:
                blobs = [engine.blob_memory(index) for index in range(self._n_blobs)]
                self._device = DeviceMemory(blobs)
            self._attached.set()
            return taken

    def store(
        self,
        weights: str,
        blobs: Sequence[BlobDigest],
        on_checked: Callable[[int], None],
        on_damaged: Callable[[int, str], None],
    ) -> DeviceWeightStore:
        """Return a store of what lies here."""
        return DeviceWeightStore(weights, blobs, self.device, on_checked, on_damaged)

    def device(self) -> DeviceMemory:
        """Return the engine's memory; waits for it, at most ENGINE_WAIT_S. Raises StoreClosed."""
        self._attached.wait(ENGINE_WAIT_S)
        with self._lock:
            if self._device is None:
                raise StoreClosed
            return self._device

    def release(self) -> None:
        """Let go of the engine; who waits for one gets StoreClosed. May be called twice."""
        with self._lock:
            self._device, self._released = None, True
            self._attached.set()
