"""Which of very many slots comes first, without looking at all of them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Rank = tuple[int, int]
"""(stamp, index) of a slot: the smaller one goes first."""


class Ranking:
    """A heap of ranks that may be out of date: those are dropped when they come to its top.

    A rank is put in whenever a slot comes to have it; `current` tells whether it still has it.
    """

    def __init__(self, slots: int, current: Callable[[Rank], bool]) -> None:
        self._current = current
        self._heap: list[Rank] = [(0, index) for index in range(slots)]
        self._most = 4 * slots

    def put(self, rank: Rank) -> None:
        """Note that a slot has come to have a rank."""
        heappush(self._heap, rank)
        if len(self._heap) > self._most:
            self._heap = list(filter(self._current, set(self._heap)))
            heapify(self._heap)

    def first(self, *, but: set[int]) -> int | None:
        """Return the index of the slot with the smallest rank that is none of `but`, or None."""
        heap, passed = self._heap, []
        found = None
        while heap and found is None:
            rank = heap[0]
            if not self._current(rank):
                heappop(heap)
            elif rank[1] in but:
                passed.append(heappop(heap))
            else:
                found = rank[1]
        for rank in passed:
            heappush(heap, rank)
        return found
