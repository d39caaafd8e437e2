"""Memory that a store, an engine and edges share, until the store lets go of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from blitzgw.core.layout import BlobLayout
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import StoreClosed
from blitzgw.engine.slab import HostSlab
from blitzgw.weights.store import WeightStore


class Slab(Protocol):
    """Where the blobs of a holding lie. Thread-safe."""

    @property
    def memory(self) -> memoryview | None:
        """All of it, for an engine; None where the engine takes its own. Raises StoreClosed."""

    def attach(self, engine: Any) -> bool:
        """Offer an engine's own memory; return whether blobs come to that engine by themselves."""

    def store(
        self,
        weights: str,
        blobs: Sequence[BlobDigest],
        on_checked: Callable[[int], None],
        on_damaged: Callable[[int, str], None],
    ) -> WeightStore:
        """Return the store of what lies here; see WeightStore for the rest."""

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

    def attach(self, engine: Any) -> bool:  # noqa: ARG002
        """Do nothing: engines were given `memory`."""
        return True

    def store(
        self,
        weights: str,
        blobs: Sequence[BlobDigest],
        on_checked: Callable[[int], None],
        on_damaged: Callable[[int, str], None],
    ) -> WeightStore:
        """Return a store of what lies here."""
        return WeightStore(weights, blobs, self.buffer, on_checked, on_damaged)

    def buffer(self, index: int) -> memoryview:
        """Return the bytes of a blob. Raises StoreClosed after `release`."""
        return self._held().buffer(index)

    def release(self) -> None:
        """Let go of the memory."""
        self._slab = None

    def _held(self) -> HostSlab:
        slab = self._slab
        if slab is None:
            raise StoreClosed
        return slab
