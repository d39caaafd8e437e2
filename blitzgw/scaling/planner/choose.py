"""The choice among strategies: what is predicted to be complete first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blitzgw.core.plan import Links, Plan, Prediction, Task
from blitzgw.scaling.planner import (
    binomial,
    chain,
    disk_shards,
    lanes,
    multi_chain,
    star,
)
from blitzgw.scaling.planner.base import PlanError, Strategy, Unfit
from blitzgw.scaling.planner.predict import predict

STRATEGIES: Mapping[str, Strategy] = {
    star.NAME: star.plan,
    chain.NAME: chain.plan,
    multi_chain.NAME: multi_chain.plan,
    binomial.NAME: binomial.plan,
    lanes.NAME: lanes.plan,
    disk_shards.NAME: disk_shards.plan,
    disk_shards.WHOLE_NAME: disk_shards.plan_whole,
}
"""By the name that operators use."""

SAME_TIME = 1e-3
"""Predictions that differ by less than this part are the same: a prediction is not that exact, and
the plan with fewer edges should win then."""


MANY_EDGES = 64
"""A plan of more edges than this is only made on request, if there is any other: an edge costs both
of its ends a connection and threads, and predicting so many takes the event loop's time."""


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

    At equal completion the one that covers the model earlier wins, then the one with fewer edges.
    Raises PlanError for a task that cannot be planned and for a strategy that does not apply.
    """
    wanted = strategy.replace("_", "-")
    if wanted and wanted not in STRATEGIES:
        raise PlanError(f"there is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    plans: dict[str, Plan] = {}
    reasons: dict[str, str] = {}
    for name, make in STRATEGIES.items():
        made = make(task, links)
        if isinstance(made, Unfit):
            reasons[name] = made.reason
        else:
            plans[name] = made
    if wanted in reasons:
        raise PlanError(f"strategy {wanted} does not apply: {reasons[wanted]}")
    fewest = min(len(plan.edges) for plan in plans.values())
    for name, plan in list(plans.items()):
        if len(plan.edges) > max(MANY_EDGES, fewest) and name != wanted:
            reasons[name] = f"its plan has {len(plan.edges)} edges: only on request"
            del plans[name]
    predictions = {name: predict(plan, task, links) for name, plan in plans.items()}
    best = wanted or _best(plans, predictions)
    alternatives = {name: prediction.complete_s for name, prediction in predictions.items()}
    return Choice(plans[best], predictions[best], alternatives, reasons)


def _best(plans: Mapping[str, Plan], predictions: Mapping[str, Prediction]) -> str:
    quickest = min(prediction.complete_s for prediction in predictions.values())
    as_quick = {
        name: prediction
        for name, prediction in predictions.items()
        if prediction.complete_s <= quickest * (1 + SAME_TIME)
    }
    covered = min(prediction.coverage_s for prediction in as_quick.values())
    return min(
        (len(plans[name].edges), name)
        for name, prediction in as_quick.items()
        if prediction.coverage_s <= covered * (1 + SAME_TIME)
    )[1]
