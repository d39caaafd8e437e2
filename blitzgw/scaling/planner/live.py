"""What live scaling gains: the mean completion of a home's backlog, by policy, walked in advance.

The unit of work is one layer of one request, `layer_s`. A helper may run a layer from its arrival
on. By `stop` helpers take requests once they are complete. By `zigzag` (ALGORITHMS.md §3) the walk
goes from decision to decision in the order of time, at equal times the home first:

    helper   pulls requests from the queue, so many at once, and runs one layer of the earliest
             whose next layer is there
    home     takes the earliest that an incomplete helper has, at the layer k that it has reached,
             or else the head of the queue, and runs the rest

What is handed over crosses the home's link one after another: the home waits for the hidden states
and then computes [k, L) while the KV of [0, k) comes; the request is complete with both. Weights
flow the other way and cost nothing. No steps are batched, nobody else arrives, and nothing is sent
ahead, so that a handoff is counted a little dearer than it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

IN_FLIGHT, LATE_IN_FLIGHT = 4, 2
"""Requests of a helper at once, and from the moment that LATE of its layers are there: what helpers
pull (core/live.py)."""

LATE = 0.75
"""The part of the layers from which a helper's loading nears its end."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits at a home: so many requests of one size. Seconds for each of them."""

    requests: int
    layer_s: float
    """Of compute in one layer."""
    hidden_s: float = 0.0
    """Of the hidden states on the link."""
    kv_layer_s: float = 0.0
    """Of one layer's KV on the link."""


class _Helper:
    """A loading instance. `layer` and `at` of a request: reached, and since when."""

    def __init__(self, arrivals: Sequence[float]) -> None:
        self.usable: list[float] = []
        for at in arrivals:
            self.usable.append(max(at, self.usable[-1] if self.usable else 0.0))
        self.flight: dict[int, tuple[int, float]] = {}
        self.next_s = self.usable[0]
        self.busy_s = 0.0
        """Until when it computes; it decides then or, if it waits for a layer, at `next_s`."""

    def complete(self, now: float) -> bool:
        return now >= self.usable[-1]

    def limit(self, now: float, in_flight: int) -> int:
        if self.complete(now):
            return 1
        late = now >= self.usable[int(LATE * (len(self.usable) - 1))]
        return min(in_flight, LATE_IN_FLIGHT) if late else in_flight


class _Walk:
    """One backlog by zigzag."""

    def __init__(
        self, arrivals: Sequence[Sequence[float]], backlog: Backlog, in_flight: int
    ) -> None:
        self._backlog, self._in_flight = backlog, in_flight
        self._layers = len(arrivals[0])
        self._queue = deque(range(backlog.requests))
        self._helpers = [_Helper(each) for each in arrivals]
        self._home_s, self._hidden_s, self._kv_s = 0.0, 0.0, 0.0
        self.done: dict[int, float] = {}

    def run(self) -> dict[int, float]:
        """Return when each request is complete."""
        while len(self.done) < self._backlog.requests:
            helper = min(self._helpers, key=lambda each: each.next_s)
            if self._home_s <= helper.next_s:
                self._home(self._home_s)
            else:
                self._help(helper, helper.next_s)
        return self.done

    def _home(self, now: float) -> None:
        having = [each for each in self._helpers if each.flight and not each.complete(now)]
        if having:
            helper = min(having, key=lambda each: min(each.flight))
            self._take(helper, min(helper.flight), now)
        elif self._queue:
            self._finish(self._queue.popleft(), now + self._layers * self._backlog.layer_s)
        else:
            self._home_s = float("inf")  # what is left is with complete helpers, which keep it

    def _take(self, helper: _Helper, request: int, now: float) -> None:
        """Let the home go on with a request of a helper, which pulls another in its place."""
        layer, at = helper.flight.pop(request)
        start = max(now, at)
        helper.next_s = min(helper.next_s, max(now, helper.busy_s))
        if layer:
            self._hidden_s = start = max(start, self._hidden_s) + self._backlog.hidden_s
            self._kv_s = max(start, self._kv_s) + layer * self._backlog.kv_layer_s
        end = start + (self._layers - layer) * self._backlog.layer_s
        self._finish(request, end)
        if layer:
            self.done[request] = max(end, self._kv_s)

    def _finish(self, request: int, end: float) -> None:
        self.done[request] = self._home_s = end

    def _help(self, helper: _Helper, now: float) -> None:
        """Let a helper that is free run one layer, or wait for one."""
        flight, limit = helper.flight, helper.limit(now, self._in_flight)
        free = [len(each.flight) for each in self._helpers if each.next_s <= now]
        limit = min(limit, min(free) + 1)  # what is pulled is dealt out evenly
        while self._queue and len(flight) < limit:
            flight[self._queue.popleft()] = (0, now)
        able = [r for r, (layer, _) in flight.items() if helper.usable[layer] <= now]
        if not able:
            waits = (helper.usable[layer] for layer, _ in flight.values())
            helper.next_s = min(waits, default=float("inf"))
            return
        request, end = min(able), now + self._backlog.layer_s
        layer = flight[request][0] + 1
        helper.next_s = helper.busy_s = end
        flight[request] = (layer, end)
        if layer == self._layers:
            del flight[request]
            self.done[request] = end


def zigzag(
    arrivals: Sequence[Sequence[float]], backlog: Backlog, in_flight: int = IN_FLIGHT
) -> list[float]:
    """Return when each request of a backlog is complete, with helpers that get layers so.

    `arrivals` by helper and layer; at least one of each.
    """
    done = _Walk(arrivals, backlog, in_flight).run()
    return [done[request] for request in range(backlog.requests)]


def stop(arrivals: Sequence[Sequence[float]], backlog: Backlog) -> list[float]:
    """Return when each request of a backlog is complete, with helpers that wait till they are."""
    free = [0.0, *(max(each) for each in arrivals)]
    whole_s = len(arrivals[0]) * backlog.layer_s
    done = []
    for _ in range(backlog.requests):
        first = min(range(len(free)), key=free.__getitem__)
        free[first] += whole_s
        done.append(free[first])
    return done


def mean(times: Sequence[float]) -> float:
    """Return the mean of times, 0 of none."""
    return sum(times) / len(times) if times else 0.0
