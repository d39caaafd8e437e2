"""When devices run out: whom a model asks for one, and whether one that is asked gives way.

A model has the device if its priority is higher; or, of the same priority, if it is harder pressed,
even after the other has one instance less. The latter is taken to do the same work with n−1 of n:

    pressure after = pressure · n/(n−1)

so that two of the same priority do not take a device from each other in turn. Both owners check it,
each by the newest figures that it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from blitzgw.core.scale import Cede, ScaleMode
from blitzgw.core.view import ScaleFacts, ScaleTerms
from blitzgw.scaling.census import Census
from blitzgw.scaling.survey import ModelDefinition

CEDE_PAUSE_S = 1.0
"""Between two devices that a model asks for, or lets go: until the first one's effect shows in
gossip and in figures."""

MAX_CEDE_PAUSE_S = 30.0
"""Between asking twice in vain: whoever is asked may be right to keep what it has."""

CEDE_HOLD_S = 3.0
"""For which whoever has let a device go does not claim one, from when it is free: until the other
one's owner has seen it (LAG_S = 1 s) and claimed it (CLAIM_PATIENCE_S = 2 s). Draining may take
longer than that: claiming what drains would take it back before it was ever free."""

MIN_PRESSURE = 1.0
"""Whoever meets its targets asks for nobody's device."""


@dataclass(slots=True)
class Asking:
    """When a model may ask for a device again; each time in vain the pause doubles."""

    until: float = 0.0
    in_vain: int = 0

    def asked(self, now: float) -> None:
        """Note that somebody has been asked, or that there was nobody to ask."""
        self.until = now + min(CEDE_PAUSE_S * 2.0 ** min(self.in_vain, 16), MAX_CEDE_PAUSE_S)
        self.in_vain += 1

    def answered(self) -> None:
        """Note that there are devices again."""
        self.in_vain = 0


@dataclass(frozen=True, slots=True)
class Giver:
    """A model that could give way, and its owner."""

    model: str
    boot: str


def pressure_after(pressure: float, instances: int) -> float:
    """Return how hard pressed a model is with one instance less."""
    if instances > 1:
        return pressure * instances / (instances - 1)
    return math.inf if pressure > 0 else 0.0


def has_the_device(cede: Cede, priority: int, pressure: float, instances: int) -> bool:
    """Whether who asks goes before a model with that priority, pressure and so many instances."""
    if cede.priority != priority:
        return cede.priority > priority
    return cede.pressure > max(MIN_PRESSURE, pressure_after(pressure, instances))


def giver_for(
    definition: ModelDefinition, cede: Cede, census: Census, models: Iterable[ModelDefinition]
) -> Giver | None:
    """Return which of these models is to be asked: of the lowest priority, then the least pressed.

    Left out are those whose owner tells nothing, whose number an operator decides, which have no
    more than their least, or which have no device that could take the asking model.
    """
    found: list[tuple[int, float, str, Giver]] = []
    for other in models:
        told = census.told(other.name)
        if other.name == definition.name or told is None:
            continue
        boot, facts = told
        terms = census.terms(other.name, other.digest)
        if _can_give(facts, terms) and has_the_device(
            cede, terms.priority, facts.pressure, facts.present
        ):
            counted = census.standing(other.name).counted
            if any(census.could_take(here, definition.size_bytes) for here in counted):
                giver = Giver(other.name, boot)
                found.append((terms.priority, facts.pressure, other.name, giver))
    return min(found, key=lambda each: each[:3])[3] if found else None


def _can_give(facts: ScaleFacts, terms: ScaleTerms) -> bool:
    least = max(0, terms.min_instances)
    return facts.mode == ScaleMode.AUTO and min(facts.present, facts.wanted) > least
