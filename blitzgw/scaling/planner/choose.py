"""The choice among strategies: what is predicted to be complete first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from blitzgw.core.plan import Links, Plan, Prediction, Task
from blitzgw.scaling.planner import (
    binomial,
    chain,
    disk_shards,
    lanes,
    multi_chain,
    own,
    parts,
    star,
)
from blitzgw.scaling.planner.base import PlanError, Strategy, Unfit
from blitzgw.scaling.planner.coarse import Grouping, coarsen
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.predict import follow
from blitzgw.scaling.planner.thin import thinned
from blitzgw.scaling.planner.unfold import unfolded

STRATEGIES: Mapping[str, Strategy] = {
    star.NAME: star.plan,
    chain.NAME: chain.plan,
    multi_chain.NAME: multi_chain.plan,
    binomial.NAME: binomial.plan,
    lanes.NAME: lanes.plan,
    disk_shards.NAME: disk_shards.plan,
    own.DISK_NAME: own.plan_disk,
    own.HOST_NAME: own.plan_host,
    parts.NAME: parts.plan,
    parts.OWN_NAME: parts.plan_own,
}
"""By the name that operators use."""

ON_REQUEST = frozenset({own.HOST_NAME, parts.NAME, parts.OWN_NAME})
"""Strategies that are no faster than others, which read host copies too: they are looked at alone.
Parts are for pipelines."""

EDGES: Mapping[str, Callable[[Ground], int]] = {
    binomial.NAME: binomial.edges,
    lanes.NAME: lanes.edges,
}
"""About how many edges those would have whose edges outnumber the targets, without making them."""

COMPARED = 4
"""Targets up to which the other strategies are planned beside one that was asked for, to be told:
with more the time for it is not spent."""

SAME_TIME = 1e-3
"""Predictions that differ by less than this part are the same: a prediction is not that exact, and
the plan with fewer edges should win then."""


MANY_EDGES = 64
"""A plan of more edges than this is only made on request, if there is any other: an edge costs both
of its ends a connection and threads, and predicting so many takes the event loop's time."""

EDGES_PER_TARGET = 2
"""Edges per target that are not many however many targets there are: a chain has one, and a second
where what comes before in it lacks something."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan, what it is predicted to take, and what the others would have taken."""

    plan: Plan
    prediction: Prediction
    alternatives: dict[str, float] = field(default_factory=dict)
    """Seconds to completion by strategy, the chosen one included."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the strategies that have no plan have none."""


def choose(task: Task, links: Links, strategy: str = "") -> Choice:
    """Return the plan that is predicted to complete first, or that of the strategy of that name.

    With many targets the latter is not compared with others.
    At equal completion that wins whose targets can compute earlier, then the one with fewer edges.
    A task of many blobs is planned and predicted in groups of them (coarse.py), so that this takes
    an event loop no longer than it can spare. Raises PlanError for a task that cannot be planned
    and for a strategy that does not apply.
    """
    wanted = strategy.replace("_", "-")
    if wanted and wanted not in STRATEGIES:
        raise PlanError(f"there is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    thin = thinned(task, links)
    grouping = coarsen(thin)
    try:
        return _choose(thin, links, wanted, grouping)
    except PlanError:
        if thin is task and (grouping is None or grouping.exact):
            raise
    # What was left out may be all that a target can get: then nothing is, whatever time it takes.
    return _choose(task, links, wanted, coarsen(task, exactly=True))


def _choose(task: Task, links: Links, wanted: str, grouping: Grouping | None) -> Choice:
    if grouping is None:
        ground = Ground(task, links)
    else:
        ground = Ground(grouping.task, grouping.links(links), grouping.groups)
    alone = wanted in ON_REQUEST or (wanted and len(task.targets) > COMPARED)
    names = [wanted] if alone else [n for n in STRATEGIES if n not in ON_REQUEST]
    plans, reasons = _plans(ground, wanted, names)
    followed = {name: follow(plan, ground.task, ground.links) for name, plan in plans.items()}
    predictions = {name: prediction for name, (prediction, _) in followed.items()}
    best = wanted or _best(plans, predictions)
    plan, (prediction, flows) = plans[best], followed[best]
    if grouping is not None:
        plan, prediction = grouping.expand(plan), unfolded(prediction, flows, grouping)
    alternatives = {name: other.complete_s for name, other in predictions.items()}
    return Choice(plan, prediction, alternatives, reasons)


def _plans(
    ground: Ground, wanted: str, names: Sequence[str]
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return the plans worth predicting, and why the other strategies have none.

    Raises PlanError where the wanted strategy has none.
    """
    plans: dict[str, Plan] = {}
    reasons: dict[str, str] = {}
    for name in sorted(names, key=EDGES.__contains__):
        most = _most_edges(ground, plans)
        made: Plan | Unfit
        if name in EDGES and name != wanted and EDGES[name](ground) > most:
            made = Unfit(f"its plan has more than {most} edges: only on request")
        else:
            made = STRATEGIES[name](ground)
        if isinstance(made, Unfit):
            reasons[name] = made.reason
        else:
            plans[name] = made
    if wanted in reasons:
        raise PlanError(f"strategy {wanted} does not apply: {reasons[wanted]}")
    most = _most_edges(ground, plans)
    for name, plan in list(plans.items()):
        if len(plan.edges) > most and name != wanted:
            reasons[name] = f"its plan has {len(plan.edges)} edges: only on request"
            del plans[name]
    return {name: plans[name] for name in STRATEGIES if name in plans}, reasons


def _most_edges(ground: Ground, plans: Mapping[str, Plan]) -> int:
    fewest = min((len(plan.edges) for plan in plans.values()), default=0)
    return max(MANY_EDGES, EDGES_PER_TARGET * len(ground.targets), fewest)


def _best(plans: Mapping[str, Plan], predictions: Mapping[str, Prediction]) -> str:
    quickest = min(prediction.complete_s for prediction in predictions.values())
    as_quick = {
        name: prediction
        for name, prediction in predictions.items()
        if prediction.complete_s <= quickest * (1 + SAME_TIME)
    }
    usable = {name: usable_s(prediction) for name, prediction in as_quick.items()}
    soonest = min(usable.values())
    return min(
        (len(plans[name].edges), name)
        for name, at_s in usable.items()
        if at_s <= soonest * (1 + SAME_TIME)
    )[1]


def usable_s(prediction: Prediction) -> float:
    """Return when a blob is there with all before it, on the average of blobs and targets.

    Up to there a loading instance can compute for another one, from the first layer on.
    """
    times = [
        at_s for arrivals in prediction.arrivals.values() for at_s in accumulate(arrivals, max)
    ]
    return sum(times) / max(1, len(times))
