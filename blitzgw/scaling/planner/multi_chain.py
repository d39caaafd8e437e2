"""Multi-chain: one chain for each usable source, the targets dealt out among them."""

from __future__ import annotations

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.chain import string
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground

NAME = "multi-chain"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan with a chain from each source to its share of the targets, near ones first.

    Raises PlanError where a target cannot get what it lacks.
    """
    groups = deal(ground)
    if len(groups) < 2:
        return Unfit("it takes two usable sources and two targets")
    draft = Draft(ground, NAME)
    for source, targets in groups.items():
        string(draft, source, targets, ground.blobs)
    return draft.finish()


def deal(ground: Ground) -> dict[str, list[str]]:
    """Deal the targets out: as many to each source as to any other, near ones first.

    A target that its own machine's memory serves is a source to the others. Sources that none is
    left for are not in the answer.
    """
    served = ground.self_served
    targets = [target for target in ground.needy() if target not in served]
    used = [*ground.sources(), *sorted(served)][: len(targets)]
    if not used:
        return {}
    room = {source: len(targets) // len(used) for source in used}
    for source in used[: len(targets) % len(used)]:
        room[source] += 1
    groups: dict[str, list[str]] = {source: [] for source in used}
    ordered = ground.by_speed(targets, used[0])
    pairs = sorted(
        (-ground.near(source, target), order, place)
        for order, target in enumerate(ordered)
        for place, source in enumerate(used)
    )
    dealt: set[str] = set()
    for nearness, order, place in pairs:
        target, source = ordered[order], used[place]
        if nearness and target not in dealt and len(groups[source]) < room[source]:
            groups[source].append(target)
            dealt.add(target)
    for target in ordered:
        if target not in dealt:
            groups[_emptiest(ground, groups, room, target)].append(target)
    return {source: group for source, group in groups.items() if group}


def _emptiest(
    ground: Ground, groups: dict[str, list[str]], room: dict[str, int], target: str
) -> str:
    """Return the source that a target goes to: one that reaches it and has room."""
    places = list(groups)
    return min(
        places,
        key=lambda source: (
            ground.rate(source, target) <= 0.0,
            len(groups[source]) >= room[source],
            len(groups[source]),
            places.index(source),
        ),
    )
