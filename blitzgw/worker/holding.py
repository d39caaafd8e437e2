"""The weights of one model on a worker: their memory, their store, and who uses them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from blitzgw.core.instance import ModelSpec
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import BlobChecked, BlobDamaged
from blitzgw.errors import HostCopyError
from blitzgw.weights.hostcopy import HostCopy
from blitzgw.worker.slab import Slab

log = logging.getLogger(__name__)

COPY = "\0copy"
"""The user that stands for a host copy; no instance is called so."""

FOUND = "\0found"
"""Who fills the blobs that were in a host copy's file: the check that they are right."""

Arrival = Callable[[int], None]

LAST_CHECK_S = 2.0
"""Longest wait for a store's thread to end: it hashes 4 MiB at most, or tells of one blob."""


class Holding:
    """One model's weights. `users` are instances, and COPY; the keeper's thread alone knows them.

    `copy` is the file that the memory belongs to, None where it is this process's own; `found` are
    the blobs that were in it and are not known to be damaged, which nobody fills before they have
    been verified; `readable` are those that may be read from disk. `damaged` is called with
    (blob, edge) on the store's thread, after the node was told; `complete` once, when all blobs
    have been checked. `load` is the number of what it was made for, which its news say. Raises
    ValueError for a blob without bytes.
    """

    def __init__(
        self,
        model: ModelSpec,
        blobs: Sequence[BlobDigest],
        slab: Slab,
        copy: HostCopy | None,
        tell: Callable[[Any], None],
        damaged: Callable[[Holding, int, str], None],
        complete: Callable[[Holding], None],
        load: int,
    ) -> None:
        self.load = load
        self.weights, self.model, self.blobs, self.copy = model.weights, model, tuple(blobs), copy
        self.mapped = copy is not None and copy.is_complete
        self.found = frozenset[int]() if copy is None else copy.checked
        self.readable: set[int] = set()
        self.users: set[str] = set()
        self._tell, self._on_damaged, self._on_complete = tell, damaged, complete
        self._lock = threading.Lock()
        self._checked: dict[int, None] = {}  # an ordered set
        self._arrivals: list[Arrival] = []
        self.slab = slab
        self.store = slab.store(model.weights, blobs, self._blob_checked, self._blob_damaged)
        for index in self.found:
            self.store.begin(index, FOUND)

    @property
    def size_bytes(self) -> int:
        """The size of all blobs together."""
        return sum(blob.size_bytes for blob in self.blobs)

    @property
    def in_memory(self) -> frozenset[int]:
        """The blobs that are in the host copy by now; none where it is no host copy."""
        if self.copy is None:
            return frozenset()
        with self._lock:
            return self.found.union(self._checked)

    @property
    def is_complete(self) -> bool:
        """Whether all blobs have been checked, and whoever listens was told of each."""
        with self._lock:
            return len(self._checked) == len(self.blobs)

    def follow(self, arrival: Arrival) -> None:
        """Call `arrival(index)` for each checked blob: those before now here, at once.

        Once for each, and again for one that was found damaged after all and has come again.

        It is called on the store's thread and must not block or raise.
        """
        with self._lock:
            for index in self._checked:
                arrival(index)
            self._arrivals.append(arrival)

    def unfollow(self, arrival: Arrival) -> None:
        """Call it no more."""
        with self._lock:
            self._arrivals = [known for known in self._arrivals if known != arrival]

    def lacks(self, index: int) -> bool:
        """Say whether not all bytes of a blob are here; False as well once it is closed."""
        return self.store.resident_bytes(index) < self.store.size_bytes(index)

    def close(self) -> None:
        """Give up store and memory: edges that use them end, pages go with their last view."""
        self.store.close()
        self.store.join(LAST_CHECK_S)
        self.slab.release()
        with self._lock:
            self._arrivals.clear()
        if self.copy is not None:
            self.copy.close()

    def _blob_checked(self, index: int) -> None:
        if self.copy is not None and not self.mapped:
            try:
                self.copy.mark(index)
            except (HostCopyError, OSError, ValueError) as error:
                log.warning("copy_not_marked weights=%s error=%s", self.model.weights, error)
        self._tell(BlobChecked(self.model.weights, index, self.load))
        with self._lock:
            self._checked[index] = None
            for arrival in self._arrivals:
                arrival(index)
            complete = len(self._checked) == len(self.blobs)
        if complete:
            self._on_complete(self)

    def _blob_damaged(self, index: int, source: str) -> None:
        log.warning(
            "blob_damaged weights=%s blob=%d source=%s", self.model.weights, index, source or "disk"
        )
        with self._lock:
            self._checked.pop(index, None)  # on a GPU it may have been announced by its lane sum
        self._tell(BlobDamaged(self.model.weights, index, source, self.load))
        self._on_damaged(self, index, source)
