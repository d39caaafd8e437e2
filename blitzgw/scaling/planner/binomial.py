"""Binomial pipeline, k-way: k groups, each led by a source, start at different blobs.

In a group of N nodes with b blobs the last one has everything after b + ⌈log2 N⌉ − 1 steps of one
blob's time; the groups together have the model after about 1/k of it. The schedule (schedule.py)
only orders each edge's blobs: nobody waits for a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.multi_chain import deal
from blitzgw.scaling.planner.schedule import schedule

NAME = "binomial"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a k-way plan with k = min(sources, targets) groups.

    Raises PlanError where a target cannot get what it lacks.
    """
    groups = deal(ground)
    if not groups:
        return Unfit("no source reaches a target over a network")
    if not any(_meshed(ground, targets) for targets in groups.values()):
        return Unfit("no two targets of a group reach each other")
    draft = Draft(ground, NAME)
    for index, (source, targets) in enumerate(groups.items()):
        order = rotated(list(ground.blobs), index, len(groups))
        _spread(draft, source, ground.by_speed(targets, source), order)
    return _in_order(draft.finish(), {source: i for i, source in enumerate(groups)})


def _in_order(made: Plan, places: Mapping[str, int]) -> Plan:
    """Let sources that are targets, too, read first what their group starts with."""
    reads = (
        replace(read, blobs=tuple(rotated(read.blobs, places[read.worker], len(places))))
        if read.worker in places and read.worker in made.targets
        else read
        for read in made.reads
    )
    return replace(made, reads=tuple(reads))


def edges(ground: Ground) -> int:
    """Return how many edges the plan has at least: in each group a node's peers are ⌊log2 N⌋.

    The source sends along all dimensions, too, and of two peers neither need send to the source.
    """
    groups = deal(ground)
    return sum(len(targets) * (len(targets).bit_length() - 1) for targets in groups.values())


def rotated(blobs: Sequence[int], index: int, groups: int) -> list[int]:
    """Return the order of a group: it starts at part `index` of `groups` equal ones (k-way)."""
    part = -(-len(blobs) // groups)
    start = min(part * index, len(blobs))
    return [*blobs[start:], *blobs[:start]]


def _meshed(ground: Ground, targets: Sequence[str]) -> bool:
    return len(targets) == 1 or any(
        ground.rate(one, other) > 0.0 for one in targets for other in targets if one != other
    )


def _spread(draft: Draft, source: str, targets: Sequence[str], order: Sequence[int]) -> None:
    """Assign the blobs of one group as the schedule moves them."""
    givers = draft.ground.givers()
    ranks = {
        target: [source, *(g for g in draft.ground.ranked(givers, target, order) if g != source)]
        for target in targets
    }
    for step in schedule(1 + len(targets), len(order)):
        for sender, receiver, block in step:
            target = targets[receiver - 1]
            if sender == 0:
                draft.feed(target, (order[block],), ranks[target])
            else:
                draft.send(targets[sender - 1], target, (order[block],))
