"""A timer of an event loop that follows a deadline on the injected clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from blitzgw.core.clock import Clock

SHORTEST_WAIT_S = 0.001
"""Between two alarms, so that a deadline in the past cannot occupy the processor. A timer that
goes off a rounding error early counts as punctual within this."""

LONGEST_WAIT_S = 3600.0
"""The same upwards: event loops do not take an infinite delay."""


class Alarm:
    """Calls `on_due(deadline)` when a deadline has come; it must be set anew each time."""

    def __init__(self, clock: Clock, dilation: float, on_due: Callable[[float], None]) -> None:
        self._clock, self._dilation, self._on_due = clock, dilation, on_due
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float | None) -> None:
        """Go off at `due` on the clock instead of what was set before; None: never."""
        due = math.inf if due is None else due
        if due == self._due and self._timer is not None:
            return
        self.cancel()
        self._due = due
        wait_s = max((due - self._clock.now()) * self._dilation, SHORTEST_WAIT_S)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(wait_s, LONGEST_WAIT_S), self._go_off)

    def cancel(self) -> None:
        """Do not go off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_off(self) -> None:
        self._timer = None
        if self._due - self._clock.now() > SHORTEST_WAIT_S:
            self.set(self._due)  # it was further away than LONGEST_WAIT_S
        else:
            self._on_due(self._due)
