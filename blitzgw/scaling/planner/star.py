"""Star: one source sends everything to every target. The baseline: n · |M| / bw."""

from __future__ import annotations

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground

NAME = "star"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan with an edge from the best source to each target that it reaches.

    Raises PlanError where a target cannot get what it lacks.
    """
    draft = Draft(ground, NAME)
    givers = ground.givers()
    for target in ground.targets:
        lacks = draft.lacks(target)
        draft.feed(target, lacks, ground.ranked(givers, target, lacks))
    return draft.finish()
