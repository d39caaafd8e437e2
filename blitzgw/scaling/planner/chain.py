"""Chain: source → t1 → t2 → … → tn, all blobs in order: |M|/bw + (n−1)·c/bw, flat in n."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground

NAME = "chain"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan in which each target forwards what it gets to the next one.

    Raises PlanError where a target cannot get what it lacks.
    """
    draft = Draft(ground, NAME)
    sources = ground.sources()
    if sources:
        string(draft, sources[0], ground.needy(), ground.blobs)
    return draft.finish()


def string(draft: Draft, source: str, targets: Iterable[str], blobs: Sequence[int]) -> None:
    """Hang targets one behind the other on a source; all edges send the blobs in this order.

    A target that the last one does not reach goes behind the latest one that does reach it. What a
    target's predecessor will not have comes from other holders.
    """
    ground = draft.ground
    givers = ground.givers()
    placed = [source]
    left = ground.by_speed(targets, source)
    while left:
        found = next(
            (
                (parent, target)
                for parent in reversed(placed)
                for target in left
                if ground.rate(parent, target) > 0.0
            ),
            None,
        )
        if found is None:
            return
        parent, target = found
        left.remove(target)
        placed.append(target)
        draft.send(parent, target, blobs)
        lacks = set(draft.lacks(target))
        if lacks:
            rest = [blob for blob in blobs if blob in lacks]
            draft.feed(target, rest, ground.ranked(givers, target, rest))
