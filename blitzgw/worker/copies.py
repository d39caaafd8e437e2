"""The host copies that a worker keeps: made from disk, from peers, or from an instance of its own.

A holding whose memory is the copy's file serves the copy by itself. An instance that has memory of
its own, or that of a file which was removed, is copied from (duplicate.py); when it goes, the file
takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from blitzgw.core.transfer import CopyFailed, CopyHeld, HoldCopy
from blitzgw.errors import HostCopyError
from blitzgw.worker.duplicate import Duplicate
from blitzgw.worker.faults import describe
from blitzgw.worker.filling import Filler, Post
from blitzgw.worker.holding import COPY, Holding
from blitzgw.worker.holdings import Holdings

log = logging.getLogger(__name__)


class Copies:
    """Called on the keeper's thread."""

    def __init__(
        self, holdings: Holdings, filler: Filler, post: Post, tell: Callable[[Any], None]
    ) -> None:
        self._holdings, self._filler = holdings, filler
        self._post, self._tell = post, tell
        self._held: dict[str, HoldCopy] = {}
        self._duplicates: dict[str, Duplicate] = {}

    def hold(self, message: HoldCopy) -> None:
        """Keep a copy; `CopyHeld` or `CopyFailed` follows, also where it is kept already."""
        weights = message.weights
        model = replace(message.model, weights=weights)
        holding = self._holdings.get(weights)
        try:
            if holding is None:
                holding = self._holdings.for_copy(model, message.blobs, message.load)
                self._filler.verify(holding)
            elif holding.copy is None or holding.copy.is_removed:
                self._duplicate(message, holding)
                return
        except (HostCopyError, OSError, ValueError, MemoryError) as error:
            self._tell(CopyFailed(weights, describe(error), message.load))
            return
        holding.users.add(COPY)
        self._held[weights] = message
        self.completed(holding)
        self._filler.read(holding, model, message.reads)

    def drop(self, weights: str) -> None:
        """Remove a copy, whole or not, also one that another worker has made."""
        self._held.pop(weights, None)
        duplicate = self._duplicates.pop(weights, None)
        if duplicate is not None:
            duplicate.cancel()
        self._remove_file(weights)
        holding = self._holdings.get(weights)
        if holding is not None and COPY in holding.users:
            self.leave(holding, COPY)

    def leave(self, holding: Holding, user: str) -> None:
        """Take a user off a holding; with the last one, memory goes back and its edges end."""
        holding.users.discard(user)
        if holding.users or not self._holdings.is_current(holding):
            return
        self._holdings.close(holding)
        duplicate = self._duplicates.get(holding.weights)
        if duplicate is not None:
            duplicate.cancel()
        again = self._held.pop(holding.weights, None)
        if again is not None:
            self.hold(again)

    def completed(self, holding: Holding) -> None:
        """Tell of a copy whose blobs have all been checked; nothing of any other holding."""
        if self._holdings.is_current(holding) and COPY in holding.users and holding.is_complete:
            load = self._held[holding.weights].load
            self._tell(CopyHeld(holding.weights, holding.size_bytes, load))

    def failed(self, holding: Holding, why: str) -> None:
        """Give up a copy that is not whole; does nothing of any other holding."""
        if COPY in holding.users:
            load = self._held[holding.weights].load
            self.drop(holding.weights)
            self._tell(CopyFailed(holding.weights, why, load))

    def spoiled(self, holding: Holding, damaged: Sequence[int]) -> None:
        """Remove a complete copy that is not what it says, so that nobody else maps it."""
        self._remove_file(holding.weights)
        self.failed(holding, f"blobs {list(damaged)} of the host copy were damaged")

    def _duplicate(self, message: HoldCopy, holding: Holding) -> None:
        weights = message.weights
        if weights in self._duplicates:
            self._duplicates[weights].message = message  # what comes of it answers the latest
            return
        if weights in self._held:
            self._held[weights] = message
            self._tell(CopyHeld(weights, holding.size_bytes, message.load))
            return
        copy = self._holdings.create_copy(holding.model, holding.blobs)
        done = lambda *args: self._post(partial(self._duplicated, *args))  # noqa: E731
        duplicate = self._duplicates[weights] = Duplicate(message, holding, copy, done)
        duplicate.start()

    def _duplicated(self, duplicate: Duplicate, why: str) -> None:
        message = duplicate.message
        weights = message.weights
        if self._duplicates.get(weights) is not duplicate:
            return
        del self._duplicates[weights]
        if why:
            self._remove_file(weights)
            self._tell(CopyFailed(weights, why, message.load))
            return
        self._held[weights] = message
        size_bytes = sum(blob.size_bytes for blob in message.blobs)
        self._tell(CopyHeld(weights, size_bytes, message.load))
        if self._holdings.get(weights) is None:  # the instance has gone meanwhile
            self.hold(self._held.pop(weights))

    def _remove_file(self, weights: str) -> None:
        if self._holdings.copies is None:
            return
        try:
            self._holdings.copies.remove(weights)
        except (HostCopyError, OSError, ValueError) as error:
            log.warning("copy_not_removed weights=%s error=%s", weights, error)
