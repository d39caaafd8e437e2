"""Lanes: targets joined by a faster link each get a part over the network and exchange the rest.

With r sources and r targets the model is complete at all of them after about |M| / (r · bw). Blobs
are dealt to the lanes one by one, so that the targets together have the model as early.
"""

from __future__ import annotations

from collections.abc import Sequence

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground

NAME = "lanes"

FASTER = 1.5
"""A link among targets is worth exchanging over from this factor of the source's rate on: each
target gets a part of the model over the one and the rest over the other at the same time."""


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan in which groups of fast-joined targets share what comes from outside.

    Raises PlanError where a target cannot get what it lacks.
    """
    sources = ground.sources()
    if not sources:
        return Unfit("no source reaches a target over a network")
    groups = fast_groups(ground, sources)
    if all(len(group) < 2 for group in groups):
        return Unfit("no two targets are joined by a link that is faster than the source's")
    draft = Draft(ground, NAME)
    givers: Sequence[str] = sources
    for group in groups:
        lay(draft, givers, group)
        givers = group
    return draft.finish()


def edges(ground: Ground) -> int:
    """Return how many edges the plan has at least: among the members of each group."""
    sources = ground.sources()
    groups = fast_groups(ground, sources) if sources else []
    return sum(min(len(group), len(ground.blobs)) * (len(group) - 1) for group in groups)


def fast_groups(ground: Ground, sources: Sequence[str]) -> list[list[str]]:
    """Return the targets in groups whose members reach each other faster than a source does."""
    groups: list[list[str]] = []
    for target in ground.by_speed(ground.needy(), sources[0]):
        outside = max(ground.rate(source, target) for source in sources)
        enough = FASTER * outside
        quick = ground.most(target) >= enough  # those that no network joins so fast are many
        near = groups if quick else [g for g in groups if ground.near(g[0], target) == 2]
        for group in near:
            if all(_both_ways(ground, target, member) >= enough for member in group):
                group.append(target)
                break
        else:
            groups.append([target])
    return sorted(groups, key=len, reverse=True)


def _both_ways(ground: Ground, one: str, other: str) -> float:
    return min(ground.rate(one, other), ground.rate(other, one))


def lay(draft: Draft, sources: Sequence[str], group: Sequence[str]) -> None:
    """Deal the blobs out to the members of a group, one giver for each lane, and exchange them."""
    lanes = deal_blobs(draft, group)
    for place, (member, blobs) in enumerate(zip(group, lanes, strict=True)):
        turn = place % len(sources)
        draft.feed(member, blobs, [*sources[turn:], *sources[:turn]])
    for blob in draft.ground.blobs:
        for member in group:
            if draft.has(member, blob):
                for other in group:
                    draft.send(member, other, (blob,))
                break


def deal_blobs(draft: Draft, group: Sequence[str]) -> list[list[int]]:
    """Return each member's blobs to bring in: those that no member has, by turns, even in bytes."""
    lanes: list[list[int]] = [[] for _ in group]
    loads = [0] * len(group)
    for blob in draft.ground.blobs:
        if not any(draft.has(member, blob) for member in group):
            place = loads.index(min(loads))
            lanes[place].append(blob)
            loads[place] += draft.ground.task.blob_bytes[blob]
    return lanes
