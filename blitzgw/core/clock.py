"""The one clock, injected everywhere, with a dilation factor.

Under a dilation of 4 everything that is a duration (timers, paced compute, patience) takes four
times as long on the wall, and `now()` runs at a quarter of its speed: code that measures and waits
through the clock cannot tell.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What deciders' shells, and nobody else, read the time from."""

    def now(self) -> float:
        """Return seconds on a monotonic axis, in undilated units."""

    async def sleep(self, duration_s: float) -> None:
        """Wait for a duration in undilated seconds."""


class MonotonicClock:
    """The machine's monotonic clock, slowed by `dilation` (1.0: real time)."""

    def __init__(self, dilation: float = 1.0) -> None:
        if dilation <= 0:
            raise ValueError(f"dilation must be positive, not {dilation}")
        self.dilation = dilation

    def now(self) -> float:
        """Return monotonic seconds divided by the dilation."""
        return time.monotonic() / self.dilation

    async def sleep(self, duration_s: float) -> None:
        """Wait `duration_s × dilation` seconds of wall time."""
        await asyncio.sleep(duration_s * self.dilation)


def until_tick_s(now: float, every_s: float) -> float:
    """Return the seconds to a multiple of a duration: all who tick alike are woken by one timer.

    It is the next but one where that comes within half the duration: timers end a little early.
    """
    left_s = every_s - now % every_s
    return left_s if left_s >= every_s / 2 else left_s + every_s
