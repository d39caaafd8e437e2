"""From zero: the plan by which targets serve together first, where nobody is there to be helped.

What counts is when the first request can be served: by a pipeline once its stages have their layers
(planner/pipelines.py), or else by the first target that is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from blitzgw.core.plan import Links, Task
from blitzgw.scaling.planner import binomial, parts
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.pipelines import USEFUL, alone_s

if TYPE_CHECKING:
    from blitzgw.scaling.planner.choose import Choice

PARTED = (binomial.NAME, parts.NAME, parts.OWN_NAME)
"""The strategies by which targets begin with different parts of the model: from sources that have
it all, or from their own machines."""

LATER = 1.5
"""So many times what the quickest plan takes is a fair price for the first answers, not more."""

MAX_TARGETS = 32
"""That pipelines are planned for: each of PARTED takes an event loop up to 40 ms then."""

Choose = Callable[[Task, Links, str], "Choice"]
ReadyS = Callable[["Choice"], float | None]


def together(choose: Choose, task: Task, links: Links, ready_s: ReadyS) -> Choice | None:
    """Return the plan whose first pipeline is ready first; None: it is better to do without.

    `ready_s` says of a choice when that is, None where it makes no pipeline. Raises PlanError and
    ValueError for what cannot be planned at all.
    """
    if len(task.targets) > MAX_TARGETS:
        return None
    quickest = choose(task, links, "")
    made = [quickest, *_others(choose, task, links, quickest)]
    found = [(ready, choice) for choice in made if (ready := ready_s(choice)) is not None]
    limit_s = LATER * quickest.prediction.complete_s
    found = [each for each in found if each[1].prediction.complete_s <= limit_s]
    if not found:
        return None
    first_s, best = min(found, key=lambda each: (each[0], each[1].prediction.complete_s))
    if first_s > USEFUL * alone_s(quickest.prediction.arrivals):
        return None
    return replace(best, alternatives={**quickest.alternatives, **best.alternatives})


def _others(choose: Choose, task: Task, links: Links, quickest: Choice) -> list[Choice]:
    """Return what the strategies plan by which targets begin with different parts."""
    made = []
    for name in PARTED:
        if name == quickest.plan.strategy or name in quickest.reasons:
            continue
        try:
            made.append(choose(task, links, name))
        except PlanError:
            continue
    return made
