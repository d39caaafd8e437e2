"""Tells deciders that time has passed, each when it wants to be told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from blitzgw.core.clock import Clock
from blitzgw.scaling.events import TimePassed

log = logging.getLogger(__name__)

Deadline = tuple[float | None, Callable[[TimePassed], None]]
"""When a decider wants to be told, on the decider's clock (None: never), and how."""

LATE_S = 0.001
"""How much later than asked for a timer is set: uvloop's end up to a millisecond early, and nothing
would be due yet."""


class Alarm:
    """One timer of the event loop for all deciders. `dilation` is the clock's."""

    def __init__(
        self, clock: Clock, dilation: float, deadlines: Callable[[], Sequence[Deadline]]
    ) -> None:
        self._clock, self._dilation, self._deadlines = clock, dilation, deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def arm(self) -> None:
        """Go off when the first decider wants it; call it whenever that may have changed."""
        due = [at_s for at_s, _ in self._deadlines() if at_s is not None]
        self._cancel()
        if due and not self._closed:
            delay_s = max(0.0, min(due) - self._clock.now()) * self._dilation + LATE_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._go_off)

    def close(self) -> None:
        """Tell nobody any more."""
        self._closed = True
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_off(self) -> None:
        self._timer = None
        now, event = self._clock.now(), TimePassed()
        for due_s, tell in self._deadlines():
            if due_s is not None and due_s <= now:
                try:
                    tell(event)
                except Exception:  # the other deciders' time must not stand still
                    log.exception("time_not_told")
        self.arm()
