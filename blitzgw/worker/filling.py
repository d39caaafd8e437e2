"""Fills holdings with what is on this machine: their checkpoint, and what was in a copy's file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from blitzgw.core.instance import ModelSpec
from blitzgw.core.transfer import BlobDamaged
from blitzgw.worker.devices import usable_cores
from blitzgw.worker.holding import Holding
from blitzgw.worker.holdings import Holdings
from blitzgw.worker.reads import DiskReads, Read
from blitzgw.worker.verify import Verification

log = logging.getLogger(__name__)

Post = Callable[[Callable[[], None]], None]
"""Has something called on the keeper's thread; from any thread, at once."""


class Filler:
    """Called on the keeper's thread, and calls back there.

    `failed(holding, why)`: blobs that were to be read cannot be. `spoiled(holding, blobs)`: the
    file of a complete copy is not what it says; this process's view of it goes on being filled.
    """

    def __init__(
        self,
        holdings: Holdings,
        reads: DiskReads,
        post: Post,
        tell: Callable[[Any], None],
        failed: Callable[[Holding, str], None],
        spoiled: Callable[[Holding, Sequence[int]], None],
    ) -> None:
        self._holdings, self._reads, self._post, self._tell = holdings, reads, post, tell
        self._failed, self._spoiled = failed, spoiled

    def verify(self, holding: Holding) -> None:
        """Check the blobs that were in a copy's file, before anybody uses them."""
        if holding.found:
            done = lambda *args: self._post(partial(self._verified, *args))  # noqa: E731
            Verification(holding, sorted(holding.found), done, usable_cores()).start()

    def read(self, holding: Holding, model: ModelSpec, reads: Iterable[int] | None) -> None:
        """Read blobs from disk, but for those that were found in a file. None: all of them.

        Does nothing where the model is not on this machine's disk.
        """
        if not model.path:
            return
        wanted = range(len(holding.blobs)) if reads is None else [*reads]
        holding.model = model  # where it is on disk; the rest is the same
        holding.readable.update(wanted)
        self._submit(holding, [index for index in wanted if index not in holding.found])

    def _verified(self, holding: Holding, damaged: Sequence[int]) -> None:
        """Deal with a file whose bytes are not what it says: read them again where that is ours."""
        if not damaged or not self._holdings.is_current(holding) or holding.copy is None:
            return
        for index in damaged:
            log.warning("copy_damaged weights=%s blob=%d", holding.weights, index)
            holding.copy.unmark(index)
            self._tell(BlobDamaged(holding.weights, index))
        if holding.mapped:  # a complete file is not written to: others may have mapped it
            self._spoiled(holding, damaged)
        if self._holdings.is_current(holding):
            self._submit(holding, [index for index in damaged if index in holding.readable])

    def _submit(self, holding: Holding, wanted: Sequence[int]) -> None:
        if not wanted:
            return
        store = holding.store

        def arrived(index: int) -> None:
            with suppress(ValueError):  # an edge was quicker
                store.filled(index)

        self._reads.submit(
            Read(
                holding.model,
                wanted,
                lacking=holding.lacks,
                buffer=store.view,
                arrived=arrived,
                failed=lambda why: self._post(partial(self._failed, holding, why)),
            )
        )
