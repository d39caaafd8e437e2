"""All weights of a worker, by the root of their manifest; and the folder of host copies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from blitzgw.core.instance import ModelSpec
from blitzgw.core.layout import LAYOUT_VERSION, blob_layouts
from blitzgw.core.manifest import BlobDigest, Manifest
from blitzgw.core.transfer import BlobStore
from blitzgw.errors import HostCopyError
from blitzgw.weights.hostcache import HostCopies
from blitzgw.weights.hostcopy import HostCopy
from blitzgw.worker.holding import Holding
from blitzgw.worker.slab import SharedSlab, Slab

log = logging.getLogger(__name__)


class Holdings:
    """The registry. One thread makes and closes holdings; any thread may look for a store.

    `copies` is the folder of host copies, None where none are kept. `on_device`: weights lie in the
    engines' own memory, on a GPU, but for a host copy's: its very pages are mapped, to be pinned.
    Elsewhere what is written to a mapped copy stays in this process.
    """

    def __init__(
        self,
        copies: HostCopies | None,
        tell: Callable[[Any], None],
        damaged: Callable[[Holding, int, str], None],
        complete: Callable[[Holding], None],
        *,
        on_device: bool,
    ) -> None:
        self.copies = copies
        self._tell, self._damaged, self._complete = tell, damaged, complete
        self._on_device = on_device
        self._by_weights: dict[str, Holding] = {}

    def store(self, weights: str) -> BlobStore | None:
        """Return the store of these weights, for an edge. Thread-safe."""
        holding = self._by_weights.get(weights)
        return None if holding is None else holding.store

    def get(self, weights: str) -> Holding | None:
        """Return the holding of these weights."""
        return self._by_weights.get(weights)

    def is_current(self, holding: Holding) -> bool:
        """Say whether a holding has not been closed."""
        return self._by_weights.get(holding.weights) is holding

    def for_instance(self, model: ModelSpec, blobs: Sequence[BlobDigest], load: int = 0) -> Holding:
        """Return a new holding: a complete host copy, else memory of its own.

        Raises ValueError for blobs that do not fit the model, MemoryError.
        """
        try:
            copy = self._complete_copy(model, blobs)
        except (HostCopyError, OSError) as error:
            log.warning("copy_not_used weights=%s error=%s", model.weights, error)
            copy = None
        return self._add(model, blobs, copy, load)

    def for_copy(self, model: ModelSpec, blobs: Sequence[BlobDigest], load: int = 0) -> Holding:
        """Return a new holding that is a host copy. Raises HostCopyError, OSError, ValueError."""
        copy = self._complete_copy(model, blobs) or self.create_copy(model, blobs)
        return self._add(model, blobs, copy, load)

    def create_copy(self, model: ModelSpec, blobs: Sequence[BlobDigest]) -> HostCopy:
        """Return a copy to be filled, without a holding. Raises HostCopyError, OSError."""
        if self.copies is None:
            raise HostCopyError("this worker has no folder for host copies")
        return self.copies.create(
            model.weights, blob_layouts(model.shape, model.dtype), tuple(blobs)
        )

    def close(self, holding: Holding) -> None:
        """Give up a holding and its memory."""
        if self.is_current(holding):
            del self._by_weights[holding.weights]
        holding.close()

    def _complete_copy(self, model: ModelSpec, blobs: Sequence[BlobDigest]) -> HostCopy | None:
        """Return a complete copy of these weights, if there is one."""
        if self.copies is None:
            return None
        layouts = blob_layouts(model.shape, model.dtype)
        private = not self._on_device
        return self.copies.open(model.weights, layouts, tuple(blobs), private=private)

    def _add(
        self, model: ModelSpec, blobs: Sequence[BlobDigest], copy: HostCopy | None, load: int
    ) -> Holding:
        hears = self._tell, self._damaged, self._complete
        try:
            slab = self._slab(model, blobs, copy)
            holding = Holding(model, blobs, slab, copy, *hears, load)
        except BaseException:
            if copy is not None:
                copy.close()
            raise
        self._by_weights[holding.weights] = holding
        return holding

    def _slab(self, model: ModelSpec, blobs: Sequence[BlobDigest], copy: HostCopy | None) -> Slab:
        layouts = blob_layouts(model.shape, model.dtype)
        if [blob.size_bytes for blob in blobs] != [layout.size_bytes for layout in layouts]:
            raise ValueError("the manifest's blobs are not those of the model's shape and type")
        if copy is None and self._on_device:
            from blitzgw.worker.device_slab import DeviceSlab  # noqa: PLC0415  torch

            return DeviceSlab(len(layouts))
        return SharedSlab(layouts, None if copy is None else copy.memory)


def named(model: ModelSpec, blobs: Sequence[BlobDigest]) -> ModelSpec:
    """Return a model with the root of its manifest, where the node has not said it."""
    if model.weights or not blobs:
        return model
    manifest = Manifest(LAYOUT_VERSION, model.shape, model.dtype, tuple(blobs))
    return replace(model, weights=manifest.root())
