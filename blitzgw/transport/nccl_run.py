"""A link under way, as the launching thread alone sees it: from its first call to its last.

A link that is aborted *drains*: its transfers end, with an error, when the device has left their
memory alone, so that whoever fetches the same bytes another way is not overwritten afterwards.
"""

from __future__ import annotations

import logging
from collections import deque

from blitzgw.transport.base import STALL_S
from blitzgw.transport.nccl_library import Link, Mark, NcclFailed
from blitzgw.transport.nccl_pair import Pair, PairState, Transfer

log = logging.getLogger(__name__)

WARM_S = 10.0
"""Patience for the peer's end of a new link. Many are made at a time when an operation begins."""

TRANSFER_S = STALL_S
"""Patience for a transfer from its launch: the one of a connection for a byte. The sender may have
launched a few pieces ahead, a second's worth on a slow link."""

DRAIN_S = 2.0
"""Patience for the device to leave memory alone after an abort; kernels look every few µs. Beyond
it the GPU is wedged, and NCCL is not used any more in this process."""


class Run:
    """A link under way, on the launching thread.

    waiting → launched, until the link has settled → running, until its mark has passed
    """

    def __init__(self, pair: Pair, link: Link, now: float) -> None:
        self.pair, self._link = pair, link
        self._deadline = now + WARM_S
        self._waiting: deque[Transfer] = deque()
        self._launched: Transfer | None = None
        self._running: deque[tuple[Transfer, Mark, float]] = deque()
        self._last_mark: Mark | None = None
        self.is_over = self.is_wedged = False

    @property
    def is_warming(self) -> bool:
        """Whether its first call has not taken effect yet."""
        return self.pair.state is PairState.WARMING

    @property
    def is_busy(self) -> bool:
        """Whether it is to be asked again soon."""
        busy = self._waiting or self._launched or self._running
        return self.pair.state is not PairState.READY or bool(busy)

    def add(self, transfer: Transfer) -> None:
        """Launch a transfer as soon as those before it have been."""
        if self.pair.state is PairState.BROKEN:
            transfer.end(self.pair.why)
        else:
            self._waiting.append(transfer)

    def look(self, now: float) -> None:
        """Go as far as it goes without waiting."""
        if self.pair.state is PairState.BROKEN:
            self._drain(now)
            return
        try:
            self._advance(now)
        except NcclFailed as e:
            self.end(str(e), now)

    def end(self, why: str, now: float) -> None:
        """Abort the link; what it carries ends once it has drained."""
        if self.pair.state is PairState.BROKEN:
            return
        log.info("nccl_pair_ended role=%s why=%r", self.pair.role.name, why)
        self._link.abort()
        self._last_mark = self._try_mark()
        self._deadline = now + DRAIN_S
        self.pair.move(PairState.BROKEN, why)

    def _advance(self, now: float) -> None:
        settled = self._link.settled()
        if settled and self.is_warming:
            self.pair.move(PairState.READY)
        if settled and self._launched is not None:
            self._running.append((self._launched, self._link.mark(), self._deadline))
            self._launched = None
        if settled and self._waiting:
            self._launch(self._waiting.popleft(), now)
        while self._running and self._running[0][1].passed():
            self._running.popleft()[0].end()
        if now > self._due():
            raise NcclFailed("the peer does not answer in time")

    def _launch(self, transfer: Transfer, now: float) -> None:
        self._launched = transfer
        self._deadline = now + TRANSFER_S
        self._link.launch(transfer.pointer, transfer.size_bytes)

    def _due(self) -> float:
        """Return when the first thing that is under way is late."""
        if self._running:
            return self._running[0][2]
        if self.is_warming or self._launched is not None:
            return self._deadline
        return float("inf")

    def _try_mark(self) -> Mark | None:
        """Mark what may still touch memory: behind it nothing is launched after an abort."""
        if self._launched is None and not self._running:
            return None
        try:
            return self._link.mark()
        except NcclFailed:  # the device's context is gone, and with it who would write
            return None

    def _drain(self, now: float) -> None:
        try:
            drained = self._last_mark is None or self._last_mark.passed()
        except NcclFailed:  # the device's context is gone, and with it who would write
            drained = True
        if not drained and now <= self._deadline:
            return
        if not drained:
            self.is_wedged = True
            log.error("nccl_wedged role=%s after_s=%g", self.pair.role.name, DRAIN_S)
        late = [transfer for transfer, _, _ in self._running]
        for transfer in [*late, *([self._launched] if self._launched else []), *self._waiting]:
            transfer.end(self.pair.why, is_wedged=not drained)
        self._running.clear()
        self._waiting.clear()
        self._launched = None
        self.is_over = True
