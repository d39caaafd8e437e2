"""Virtual time: what is to happen, in order. Of equal moments, what was put in first comes first.

The order of insertion decides every tie and nothing iterates over a set, so a seed gives the same
run, byte for byte, whatever the hashes of strings are.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class EventHeap:
    """A clock that jumps from event to event. Seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handled = 0
        self._waiting: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def at(self, moment_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Let `call(*arguments)` happen at a moment; one that is past means now."""
        self._order += 1
        moment_s = max(moment_s, self.now)
        heappush(self._waiting, (moment_s, self._order, call, arguments))

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Let `call(*arguments)` happen after a delay."""
        self._order += 1
        heappush(self._waiting, (self.now + delay_s, self._order, call, arguments))

    def run_until(self, moment_s: float, until: Callable[[], bool] | None = None) -> bool:
        """Let everything happen that is due up to a moment, then make it the present.

        It ends earlier, after the event with which `until` has come true; return whether it has.
        """
        waiting = self._waiting
        if until is not None and until():
            return True
        while waiting and waiting[0][0] <= moment_s:
            self.now, _, call, arguments = heappop(waiting)
            self.handled += 1
            call(*arguments)
            if until is not None and until():
                return True
        self.now = max(self.now, moment_s)
        return False
