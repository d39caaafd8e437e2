"""What nodes tell of one model, and views show: the newest load of each instance, what is held.

takes ──► by node ─┐                 mostly a node tells of the same instances again: its new
views ──► by id ───┴─► newest load   loads take the place of those before, and nobody else's
are looked at. Where there is more to it, all are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from blitzgw.core.scale import Demand
from blitzgw.core.view import LoadFacts
from blitzgw.scaling.loads import busy, newest, pace_figures

STALE_S = 5.0
"""A demand that is not zero is repeated every second (core/scale.py): one that has not been for
this long is of a node that tells another owner, or cannot be heard."""


@dataclass(slots=True)
class Told:
    """What a node has told last, and when."""

    demand: Demand
    at_s: float

    def current(self, now: float) -> bool:
        """Whether it still holds: nothing, which is not repeated, or heard lately."""
        return now - self.at_s <= STALE_S

    @property
    def busy(self) -> bool:
        """Whether it tells of a request."""
        return self.demand.held > 0 or any(busy(load) for load in self.demand.loads)


class Tellings:
    """The last words of each node, and of the view."""

    def __init__(self, now: float) -> None:
        self._told: dict[str, Told] = {}
        self._silent: dict[str, Told] = {}
        """What nodes have told that have said nothing for longer than it holds."""
        self._holding: dict[str, Told] = {}
        """Those of both that tell of held requests: few."""
        self._viewed: dict[str, LoadFacts] = {}
        self._sorted_s = now
        self._newest: dict[str, LoadFacts] | None = None
        """By instance; None: to be looked for."""
        self._oldest_s = now
        """When the oldest of what that rests on was told."""
        self.paces_known = False
        """Whether nothing that tells of a pace has changed since somebody has set this."""

    def last(self, boot: str) -> Told | None:
        """Return what a node has told last."""
        return self._told.get(boot) or self._silent.get(boot)

    def take(self, boot: str, demand: Demand, now: float) -> Told:
        """Take what a node tells in place of what it has told before."""
        former = self._told.get(boot) or self._silent.pop(boot, None)
        told = self._told[boot] = Told(demand, now)
        if demand.held or demand.held_tokens:
            self._holding[boot] = told
        else:
            self._holding.pop(boot, None)
        self._follow(former.demand.loads if former is not None else (), demand.loads)
        return told

    def forget(self, boot: str) -> Told | None:
        """Forget what a node has told, and return it."""
        gone = self._told.pop(boot, None) or self._silent.pop(boot, None)
        self._holding.pop(boot, None)
        self._newest = None
        return gone

    def show(self, loads: Iterable[LoadFacts]) -> bool:
        """Take what the view shows; return whether it shows a request, or did before."""
        before, self._viewed = self._viewed, newest(loads)
        self._newest = None
        return any(busy(load) for load in (*before.values(), *self._viewed.values()))

    def loads(self, now: float) -> Collection[LoadFacts]:
        """Return the newest load known of each instance; leave it as it is."""
        self._sort_out(now)
        if self._newest is None or now - self._oldest_s > STALE_S:
            told = [each for each in self._telling() if each.current(now)]
            self._oldest_s = min([each.at_s for each in told], default=math.inf)
            self._newest = newest(self._viewed.values(), *[each.demand.loads for each in told])
            self.paces_known = False
        return self._newest.values()

    def held(self, now: float) -> tuple[int, int]:
        """Return how many requests are held, and their tokens."""
        requests = tokens = 0
        for told in self._holding.values():
            if told.current(now):
                requests += told.demand.held
                tokens += told.demand.held_tokens
        return requests, tokens

    def held_s(self, now: float) -> float:
        """Return for how long the first of the held requests has waited."""
        return max(
            (
                told.demand.held_s + now - told.at_s
                for told in self._holding.values()
                if told.demand.held and told.current(now)
            ),
            default=0.0,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert not self._told.keys() & self._silent.keys(), "a node is silent and is not"
        for boot, told in self._holding.items():
            assert told is self.last(boot), "somebody else's requests are held"
        if self._newest is not None:
            told_s = [each for each in self._telling() if each.at_s >= self._oldest_s]
            found = newest(self._viewed.values(), *[each.demand.loads for each in told_s])
            assert found == self._newest, "there are newer loads"

    def _telling(self) -> Iterable[Told]:
        """Return what tells of instances: most nodes have none of the model."""
        return [told for told in self._told.values() if told.demand.loads]

    def _follow(self, former: Sequence[LoadFacts], loads: Sequence[LoadFacts]) -> None:
        """Put a node's loads in the place of its former ones, if these are the newest known."""
        known = self._newest
        if known is None or len(former) != len(loads):
            self._newest = None
            return
        for was, load in zip(former, loads, strict=True):
            if known.get(load.instance) is not was or load.number < was.number:
                self._newest = None
                return
            known[load.instance] = load
            self.paces_known &= pace_figures(was) == pace_figures(load)

    def _sort_out(self, now: float) -> None:
        """Put aside what does not hold any more, so that looks do not go through it."""
        if now >= self._sorted_s + STALE_S:
            self._sorted_s = now
            for boot in [boot for boot, told in self._told.items() if not told.current(now)]:
                self._silent[boot] = self._told.pop(boot)
