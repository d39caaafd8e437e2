"""When something is to be done: a heap of timers, any of which can be cancelled."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

Action = Callable[[Any, float], None]
"""Called with the timer's subject and the present time."""


class Timer:
    """An appointment. `action` is None once it has been kept or cancelled."""

    __slots__ = ("action", "subject")

    def __init__(self, action: Action, subject: Any) -> None:
        self.action: Action | None = action
        self.subject = subject

    def cancel(self) -> None:
        """Do not keep the appointment; the agenda drops it when it comes across it."""
        self.action = None


class Agenda:
    """Timers in the order of their time; O(log n) each."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0

    def at(self, when_s: float, action: Action, subject: Any = None) -> Timer:
        """Call `action(subject, now)` at that time or soon after."""
        timer = Timer(action, subject)
        self._number += 1
        heapq.heappush(self._heap, (when_s, self._number, timer))
        return timer

    def deadline(self) -> float:
        """Return the time of the first appointment; infinity if there is none."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def keep(self, now: float) -> None:
        """Do all that is due, also what comes due by that; periods are longer than 0."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            if timer.action is not None:
                action, timer.action = timer.action, None
                action(timer.subject, now)

    def clear(self) -> None:
        """Cancel everything."""
        for _, _, timer in self._heap:
            timer.cancel()
        self._heap.clear()
