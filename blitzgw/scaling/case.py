"""One question to the policy, and what is worked out before it is answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling import bands
from blitzgw.scaling.bands import Band, Outlook
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.fleet import Fleet, PolicyState
from blitzgw.scaling.forecast import joins_s

GROW_PAUSE_S = 0.1
"""Between two orders for one and the same growing queue: its rate is better known by then. Longer
would save plans, but none need wait for another: a growth gets its blobs from where the one before
is bringing them."""

SHORTEST_PATIENCE_S = 0.1
"""Between two steps down: the last one must have shown."""


@dataclass(slots=True)
class Case:
    """One call of `decide`: what is asked, and what is worked out on the way."""

    figures: Figures
    terms: ScaleTerms
    fleet: Fleet
    state: PolicyState
    now: float
    level: int = 0
    """Instances that there are or that are ordered: those present, and orders that are to show."""
    worth: float = 0.0
    """The same, with late ones as fractions."""
    found: list[Band] = field(default_factory=list)

    @property
    def demand(self) -> bool:
        """Whether there is a request."""
        return not self.figures.idle

    @property
    def cap(self) -> int:
        """The most that there can be: of devices, and by the bounds.

        Devices bound growth only: those of instances that are ordered may not be free any more.
        """
        fleet = self.fleet
        cap = max(self.level, fleet.present + max(0, fleet.devices))
        return min(cap, max(fleet.most, fleet.least)) if fleet.most > 0 else cap

    @property
    def patience_s(self) -> float:
        """For how long fewer must do."""
        return max(SHORTEST_PATIENCE_S, self.terms.patience_s) * 2.0**self.state.doubt

    @property
    def floor(self) -> int:
        """How many there have to be whatever the bands say."""
        return max(self.fleet.least, 1 if self.demand or self.level else 0)

    @property
    def lacking(self) -> list[Band]:
        """The bands below which the present number is."""
        return [band for band in self.found if whole(band.low) > self.worth]


def assess(case: Case) -> None:
    """Work out what there is, and the bands."""
    fleet, figures, state = case.fleet, case.figures, case.state
    ready_s = fleet.ready_s
    joins = joins_s(fleet.serving, fleet.coming, ready_s)
    awaited = state.ordered - fleet.present if case.now < state.ordered_until_s else 0
    joins += [ready_s] * max(0, awaited)
    case.level = len(joins)
    in_time_s = ready_s + case.terms.ttft_s
    case.worth = sum(min(1.0, in_time_s / at) if at > 0 else 1.0 for at in joins)
    from_zero = not fleet.serving and 0 < figures.requests <= case.level
    if figures.prefill_tokens_per_s is None or from_zero:
        # Nobody knows how much is too late yet, and another one would be no sooner; or it would
        # have no request to serve, and take from the late ones what they load by.
        case.worth = float(case.level)
    if state.answering and _worked_off(case):
        case.state = state = replace(state, answering=False)
    queue = bands.prefill(figures, case.terms, Outlook(joins, ready_s, state.answering))
    if state.answering and case.now - state.grown_s < GROW_PAUSE_S:
        formula = queue.formula
        queue = replace(queue, low=0.0, aim=0.0, formula=lambda: f"{formula()}, answered just now")
    found = queue, bands.utilisation(figures), bands.decode(figures), bands.tpot(figures)
    case.found = [band for band in found if band is not None]


def _worked_off(case: Case) -> bool:
    """Whether the queue that has been answered is one that needs no answer any more."""
    figures, rate = case.figures, case.figures.prefill_tokens_per_s
    if rate is None:
        return True
    allowed_s = bands.drain_s(figures, case.terms) * case.fleet.serving
    return case.level <= case.fleet.serving and figures.backlog_tokens / rate <= allowed_s


def whole(instances: float) -> int:
    """Round up, but not for what is lost in calculating."""
    return math.ceil(instances - 1e-9)
