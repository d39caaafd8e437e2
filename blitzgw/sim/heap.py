"""Virtual time: what is to happen, in order. Of equal moments, what was put in first comes first.

The order of insertion decides every tie and nothing iterates over a set, so a seed gives the same
run, byte for byte, whatever the hashes of strings are.

What happens later than within the present grain (`GRAINS_PER_S`) waits unsorted, by its grain: a
large cluster has tens of thousands of events ahead, and to sift one through all of them is to look
at a dozen that the caches have long forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

GRAINS_PER_S = 1024.0
"""A power of two: grains begin where a float says that they do. In a cluster of thousands of nodes
some fifty events are in one."""

FAR_S = 1e12
"""What is later than this, never for instance, is all in one grain."""

FAR_GRAIN = int(FAR_S * GRAINS_PER_S)

Entry = tuple[float, int, Callable[..., object], tuple[Any, ...]]


class EventHeap:
    """A clock that jumps from event to event. Seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handled = 0
        self._order = 0
        self._near: list[Entry] = []
        """A heap of what is up to the end of the grain `_reached`."""
        self._reached = -1
        self._later: dict[int, list[Entry]] = {}
        self._grains: list[int] = []
        """A heap of those that something waits in."""

    def __len__(self) -> int:
        return len(self._near) + sum(map(len, self._later.values()))

    def at(self, moment_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Let `call(*arguments)` happen at a moment; one that is past means now."""
        now = self.now
        self._put(moment_s if moment_s > now else now, call, arguments)

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Let `call(*arguments)` happen after a delay."""
        self._put(self.now + delay_s, call, arguments)

    def _put(
        self, moment_s: float, call: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        self._order += 1
        grain = int(moment_s * GRAINS_PER_S) if moment_s < FAR_S else FAR_GRAIN
        if grain <= self._reached:
            heappush(self._near, (moment_s, self._order, call, arguments))
            return
        there = self._later.get(grain)
        if there is None:
            self._later[grain] = [(moment_s, self._order, call, arguments)]
            heappush(self._grains, grain)
        else:
            there.append((moment_s, self._order, call, arguments))

    def run_until(self, moment_s: float, until: Callable[[], bool] | None = None) -> bool:
        """Let everything happen that is due up to a moment, then make it the present.

        It ends earlier, after the event with which `until` has come true; return whether it has.
        """
        near = self._near
        if until is not None and until():
            return True
        while near or self._reach(moment_s):
            if near[0][0] > moment_s:
                break
            self.now, _, call, arguments = heappop(near)
            self.handled += 1
            call(*arguments)
            if until is not None and until():
                return True
        self.now = max(self.now, moment_s)
        return False

    def _reach(self, moment_s: float) -> bool:
        """Go on to the next grain in which something waits, if it begins by a moment."""
        if not self._grains or self._grains[0] > moment_s * GRAINS_PER_S:
            return False
        self._reached = heappop(self._grains)
        self._near += self._later.pop(self._reached)
        heapify(self._near)
        return True
