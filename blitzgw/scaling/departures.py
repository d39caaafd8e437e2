"""Who goes where there are too many instances: the choice, and the book of what becomes of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import ItemsView, Iterable, Mapping
from dataclasses import dataclass, replace

from blitzgw.core.instance import InstanceState
from blitzgw.scaling.hindsight import Outcome
from blitzgw.scaling.survey import PlacedInstance

DRAINING, RELEASED, FAILED = "draining", "released", "failed"

MAX_REASONS = 8
"""That are told of an operation: more say nothing new."""


@dataclass(slots=True)
class Departure:
    """An instance as it was when it was told to go, and its state since."""

    placed: PlacedInstance
    state: str = DRAINING
    reason: str = ""


class Departures:
    """The book of it, by instance: the latest attempt of each."""

    def __init__(self) -> None:
        self._known: dict[str, Departure] = {}

    def begin(self, placed: PlacedInstance) -> None:
        """Note that an instance has been told to go."""
        self._known[placed.facts.id] = Departure(placed)

    def end(self, instance: str, state: str, reason: str) -> None:
        """Note how that has ended."""
        known = self._known[instance]
        known.state, known.reason = state, reason

    def items(self) -> ItemsView[str, Departure]:
        """Return all, in the order in which they were told first."""
        return self._known.items()

    def waiting(self) -> list[PlacedInstance]:
        """Return those of which no end is known."""
        return [each.placed for each in self._known.values() if each.state == DRAINING]

    def drains(self, instance: str, boot: str) -> bool:
        """Whether the end of an instance of the process `boot` is waited for."""
        known = self._known.get(instance)
        return known is not None and known.state == DRAINING and known.placed.boot == boot

    def released(self, placed: PlacedInstance) -> bool:
        """Whether what a view shows is an instance that is gone, or is about to go."""
        known = self._same(placed)
        return known is not None and known.state != FAILED

    def doubtful(self, placed: PlacedInstance) -> bool:
        """Whether a view shows an instance as its own node has said that it is not (any more)."""
        known = self._same(placed)
        return known is not None and known.state == FAILED

    def outcomes(self, states: Mapping[str, InstanceState]) -> list[Outcome]:
        """Return what is known of instances whose state is among `states`."""
        return [
            Outcome(each.placed.boot, replace(each.placed.facts, state=states[each.state]))
            for each in self._known.values()
            if each.state in states
        ]

    def reasons(self) -> list[str]:
        """Return why instances were not there, each reason once."""
        found = [f"{name}: {each.reason}" for name, each in self._known.items() if each.reason]
        return found[:MAX_REASONS]

    def _same(self, placed: PlacedInstance) -> Departure | None:
        """Return what is known of this instance at this claim or a later one."""
        known = self._known.get(placed.facts.id)
        if known is None or known.placed.boot != placed.boot:
            return None
        return known if placed.facts.claim <= known.placed.facts.claim else None


def victims(instances: Iterable[PlacedInstance], count: int) -> list[PlacedInstance]:
    """Return which instances go: the least busy, and of these from where there are most.

    First go those that load yet, last those that one which stays works for while it loads. Where
    that is all the same, those stay whose nodes have the checkpoint: a node that restarts has them
    again anyway. The others have come later, by operations.
    """
    left = list(instances)
    chosen: list[PlacedInstance] = []
    for _ in range(min(count, len(left))):
        crowds = Counter(placed.boot for placed in left)
        homes = {
            placed.facts.helps for placed in left if placed.facts.state is InstanceState.LOADING
        }
        victim = min(
            left,
            key=lambda placed: (
                placed.facts.state is InstanceState.SERVING,
                placed.facts.id in homes,
                placed.busy,
                -crowds[placed.boot],
                placed.at_home,
                placed.worker,
            ),
        )
        left.remove(victim)
        chosen.append(victim)
    return chosen
