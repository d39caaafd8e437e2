"""What an instance leaves in its machine's memory for a while: a host copy with a time to live.

Where a model is configured to have one (`host_cache_s`):

    an instance comes ── room ──► its weights are a host copy from the start
    the last instance of them here goes ── whole ──► kept for host_cache_s ──► offered no more
                                        └─ not whole ──► dropped                    └──► dropped

Whoever has planned with it has LINGER_S to come for it. Nobody counts on such a copy: it is none of
those that the cluster is to have (copies.py), which it may become, and the memory goes to whatever
else needs it, that which would go next first. Its worker's death is its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from blitzgw.scaling.effects import CacheEffect, DropWeights, HoldWeights
from blitzgw.scaling.events import (
    CacheEvent,
    CopyTried,
    InstanceComes,
    InstanceLeft,
    TimePassed,
    WorkerLost,
)

LONGER_S = 1.0
"""For so long a copy is kept at a time from which others are being sent weights."""

LINGER_S = 1.0
"""From when nobody is told of a copy any more until it goes: a plan that was made with it has begun
by then, and gossip has told all others."""

MAX_CACHED = 1024
"""Weights of which a node has something at once: more than its machine runs instances of."""

MAX_CACHE_S = 86_400.0
"""The longest time that a configuration can name; terms are other nodes' words."""


class Shelf(Protocol):
    """What is asked of the node, about weights by their root."""

    def in_use(self, weights: str) -> bool:
        """Whether an instance of these weights is here, in whatever state."""

    def holds(self, weights: str) -> bool:
        """Whether there is a host copy of them, whole or not, for whatever reason."""

    def whole(self, weights: str) -> bool:
        """Whether there is one that is complete."""

    def busy(self, device: str, weights: str) -> bool:
        """Whether an operation fills a device's store of them, or sends from it."""

    def free_bytes(self) -> int:
        """Return how much memory the machine has left."""


@dataclass(slots=True)
class _Cached:
    """`until_s` is when it is offered no more, or goes; None: not while an instance is here."""

    device: str
    size_bytes: int
    cache_s: float
    until_s: float | None = None
    goes: bool = False

    def use(self) -> None:
        """Keep it for as long as an instance of it is here."""
        self.until_s, self.goes = None, False


class HostCache:
    """The decider of what a node's own instances leave behind."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._cached: dict[str, _Cached] = {}
        self._handlers: dict[type, Callable[[Any, float], list[CacheEffect]]] = {
            TimePassed: self._on_time,
            InstanceComes: self._on_comes,
            InstanceLeft: self._on_left,
            CopyTried: self._on_tried,
            WorkerLost: self._on_worker_lost,
        }

    def __len__(self) -> int:
        return len(self._cached)

    def handle(self, event: CacheEvent, now: float) -> list[CacheEffect]:
        """Take an event at time `now` in seconds; return what to do, in order."""
        return self._handlers[type(event)](event, now)

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due; None: never."""
        times = [each.until_s for each in self._cached.values() if each.until_s is not None]
        return min(times, default=None)

    def has(self, weights: str) -> bool:
        """Whether the host copy of some weights is one with a time to live."""
        return weights in self._cached

    def goes(self, weights: str) -> bool:
        """Whether it is about to go, so that nobody else is to be told of it."""
        cached = self._cached.get(weights)
        return cached is not None and cached.goes

    def give_up(self, weights: str) -> bool:
        """Let a copy be one of those that the cluster counts on; return whether there is one."""
        whole = weights in self._cached and self._shelf.whole(weights)
        self._cached.pop(weights, None)
        return whole

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self._cached) <= MAX_CACHED
        for weights, each in self._cached.items():
            going = each.until_s is not None
            assert going != self._shelf.in_use(weights), f"{weights}: in use, or going"

    def _on_comes(self, event: InstanceComes, _now: float) -> list[CacheEffect]:
        cached = self._cached.get(event.weights)
        if cached is not None:
            cached.cache_s = _time(event.cache_s)
            cached.use()
            return []
        effects = self._make_room(event.size_bytes)
        full = len(self._cached) >= MAX_CACHED or self._shelf.free_bytes() < event.size_bytes
        if not event.cache_s > 0 or full or self._shelf.holds(event.weights):
            return effects
        self._cached[event.weights] = _Cached(event.device, event.size_bytes, _time(event.cache_s))
        hold = HoldWeights(event.device, event.model, event.digest, event.weights, ())
        return [*effects, hold]

    def _on_left(self, _event: InstanceLeft, now: float) -> list[CacheEffect]:
        effects: list[CacheEffect] = []
        for weights, cached in list(self._cached.items()):
            if self._shelf.in_use(weights):
                cached.use()
            elif cached.until_s is None:
                cached.until_s = now + cached.cache_s
                if not self._shelf.whole(weights):
                    effects += self._drop(weights)
        return effects

    def _on_tried(self, event: CopyTried, _now: float) -> list[CacheEffect]:
        if not event.reason:
            return []
        if self._cached.pop(event.weights, None) is not None:
            return []  # there is none any more
        return self._make_room(None) if event.no_room else []

    def _on_worker_lost(self, event: WorkerLost, _now: float) -> list[CacheEffect]:
        lost = [weights for weights, each in self._cached.items() if each.device == event.device]
        return [effect for weights in lost for effect in self._drop(weights)]

    def _on_time(self, _event: TimePassed, now: float) -> list[CacheEffect]:
        effects: list[CacheEffect] = []
        for weights, cached in list(self._cached.items()):
            if cached.until_s is None or cached.until_s > now:
                continue
            if self._shelf.busy(cached.device, weights):
                cached.until_s = now + LONGER_S
            elif cached.goes:
                effects += self._drop(weights)
            else:
                cached.goes, cached.until_s = True, now + LINGER_S
        return effects

    def _make_room(self, size_bytes: int | None) -> list[CacheEffect]:
        """Drop what is of no use now until so much is free; None: all of it."""
        effects: list[CacheEffect] = []
        free_bytes = self._shelf.free_bytes()
        idle = [
            (each.until_s, w, each) for w, each in self._cached.items() if each.until_s is not None
        ]
        for _, weights, cached in sorted(idle, key=lambda one: one[:2]):
            if size_bytes is not None and free_bytes >= size_bytes:
                break
            if not self._shelf.busy(cached.device, weights):
                free_bytes += cached.size_bytes
                effects += self._drop(weights)
        return effects

    def _drop(self, weights: str) -> list[CacheEffect]:
        return [DropWeights(self._cached.pop(weights).device, weights)]


def _time(cache_s: float) -> float:
    return min(cache_s, MAX_CACHE_S) if cache_s > 0 else 0.0
