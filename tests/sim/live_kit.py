"""The best that a home and one helper can do, by trying out everything."""

from __future__ import annotations

Reached = tuple[int, ...]
"""The layers that the requests of the queue have reached, in ascending order."""


class Optimum:
    """The least sum of completion times for bursts of a model of `layers` layers.

    Time goes in units, since all durations are whole numbers. In each the helper runs one resident
    layer of one request: it is never better for it to do nothing, as it can be interrupted after
    every unit, and a request that has come further can do whatever another one can. The home may
    wait, or take any request at the layer it has reached; then it runs it to its end. Whoever is
    in the queue costs one for each unit that it is there.
    """

    def __init__(self, layers: int, load: int) -> None:
        self._layers, self._load = layers, load
        self._complete_at = (layers - 1) * load
        self._known: dict[tuple[int, int, Reached], int] = {}
        self._advanced: dict[tuple[int, Reached], list[Reached]] = {}

    def total(self, requests: int) -> int:
        """Return the least sum of completion times."""
        return self._least(0, 0, (0,) * requests)

    def _least(self, now: int, busy: int, queue: Reached) -> int:
        """Return the least cost from `now` on, where the home is busy for `busy` more units."""
        if not queue:
            return 0
        now = min(now, self._complete_at)
        state = now, busy, queue
        known = self._known.get(state)
        if known is not None:
            return known
        best = self._helped(now, max(0, busy - 1), queue)
        if not busy:
            for i, reached in enumerate(queue):
                if not i or reached != queue[i - 1]:
                    left = self._layers - reached
                    rest = queue[:i] + queue[i + 1 :]
                    best = min(best, left + self._helped(now, left - 1, rest))
        self._known[state] = best
        return best

    def _helped(self, now: int, busy: int, queue: Reached) -> int:
        """Return the least cost when the helper, too, has chosen what to do in this unit."""
        if not queue:
            return 0
        resident = min(self._layers, now // self._load + 1)
        key = resident, queue
        choices = self._advanced.get(key)
        if choices is None:
            choices = self._advanced[key] = self._advance(resident, queue)
        return len(queue) + min([self._least(now + 1, busy, rest) for rest in choices])

    def _advance(self, resident: int, queue: Reached) -> list[Reached]:
        """Return what the queue may look like after one unit of the helper's work."""
        choices = []
        for i, reached in enumerate(queue):
            if reached < resident and (not i or reached != queue[i - 1]):
                further = (reached + 1,) if reached + 1 < self._layers else ()
                choices.append(tuple(sorted(queue[:i] + further + queue[i + 1 :])))
        return choices or [queue]
