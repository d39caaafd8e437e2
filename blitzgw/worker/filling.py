"""Fills holdings with what is on this machine: their checkpoint, and what was in a copy's file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from blitzgw.core.instance import ModelSpec
from blitzgw.core.transfer import BlobDamaged, StoreClosed
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
        self._left: dict[Holding, set[int]] = {}

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

    def again(self) -> None:
        """Read what was left to others that were filling it, and that they have let go of."""
        left, self._left = self._left, {}
        for holding, blobs in left.items():
            if self._holdings.is_current(holding):
                self._submit(holding, sorted(blobs - holding.store.checked))

    def _verified(self, holding: Holding, damaged: Sequence[int]) -> None:
        """Deal with a file whose bytes are not what it says: read them again where that is ours."""
        if not damaged or not self._holdings.is_current(holding) or holding.copy is None:
            return
        for index in damaged:
            log.warning("copy_damaged weights=%s blob=%d", holding.weights, index)
            holding.copy.unmark(index)
            self._tell(BlobDamaged(holding.weights, index, load=holding.load))
        holding.found -= frozenset(damaged)
        if holding.mapped:  # a complete file is not written to: others may have mapped it
            self._spoiled(holding, damaged)
        if self._holdings.is_current(holding):
            self._submit(holding, [index for index in damaged if index in holding.readable])

    def _submit(self, holding: Holding, wanted: Sequence[int]) -> None:
        if not wanted:
            return
        filling = _Filling(holding, wanted)

        def failed(why: str) -> None:
            filling.failed()
            self._post(partial(self._failed, holding, why))

        def over() -> None:
            left = filling.over()
            if left:
                self._post(lambda: self._left.setdefault(holding, set()).update(left))

        self._reads.submit(
            Read(
                holding.model,
                wanted,
                lacking=filling.lacking,
                buffer=holding.store.view,
                arrived=filling.arrived,
                failed=failed,
                begin=filling.begin,
                over=over,
            )
        )


class _Filling:
    """One job's part in a store: the blobs that it fills now, and those that it has not filled."""

    def __init__(self, holding: Holding, wanted: Sequence[int]) -> None:
        self._store, self._left = holding.store, set(wanted)
        self._lock = threading.Lock()
        self._begun: set[int] = set()

    def lacking(self, index: int) -> bool:
        """Say whether a blob may be had: not where it is there, or somebody brings it."""
        return self._store.is_free(index)

    def begin(self, index: int) -> bool:
        """Become the filler of a blob, if nobody else is."""
        try:
            begun = self._store.begin(index, anew=True)
        except StoreClosed:
            return False
        with self._lock:
            if begun:
                self._begun.add(index)
        return begun

    def arrived(self, index: int) -> None:
        """Hand over a blob that has been read."""
        self._store.filled(index)
        with self._lock:
            self._begun.discard(index)
        self._left.discard(index)

    def failed(self) -> None:
        """Leave nothing to be read again: what cannot be read is told, once."""
        self._left.clear()

    def over(self) -> set[int]:
        """Let go of what has been begun; return the blobs that others are to bring."""
        with self._lock:
            begun, self._begun = self._begun, set()
        for index in begun:
            self._store.end(index)
        return self._left
