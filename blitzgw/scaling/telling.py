"""What an owner tells of a model: the cluster, an operator who asks why, and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.scale import DecisionFacts, WhyFacts
from blitzgw.core.view import ScaleFacts
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.charge import Charge
from blitzgw.scaling.judging import Judgement
from blitzgw.scaling.ordering import obstacle


@dataclass(frozen=True, slots=True)
class AutoscalerStatistics:
    """By model: what there is, what is wanted, how pressed it is; how decisions have ended.

    `outcomes` counts by (model, action, outcome); outcomes are those of journal.py.
    """

    present: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    pressure: dict[str, float] = field(default_factory=dict)
    outcomes: dict[tuple[str, str, str], int] = field(default_factory=dict)


def why_facts(
    charge: Charge,
    judged: Judgement,
    decision: DecisionFacts,
    past: tuple[DecisionFacts, ...],
    now: float,
) -> WhyFacts:
    """Return why a model has as many instances as it has, by a judgement of this moment."""
    stopped = obstacle(charge, judged, now) if judged.verdict.changes else ""
    operations = judged.outlook.growths + judged.outlook.retreats
    return WhyFacts(
        model=charge.model,
        owner=decision.owner,
        mode=judged.mode.value,
        terms=judged.terms,
        wish=judged.wish,
        now=replace(
            decision,
            reason=f"{decision.reason}; {stopped}" if stopped else decision.reason,
            operation=next(iter(operations), ""),
        ),
        quantiles=charge.monitor.quantiles(now),
        past=past,
    )


def scale_facts(charge: Charge, judged: Judgement, now: float, unix_s: float) -> ScaleFacts:
    """Return what there is to publish of a model; `unix_s` is `now` in Unix time."""
    ready_s = next_ready_s(judged.outlook.coming, charge, now)
    return ScaleFacts(
        model=charge.model,
        mode=judged.mode.value,
        present=judged.outlook.shown,
        wanted=judged.verdict.wanted,
        pressure=judged.figures.pressure,
        ready_s=unix_s + ready_s if ready_s is not None else 0.0,
        since_s=charge.since_unix_s,
        reason=charge.reason or judged.verdict.reason,
    )


def next_ready_s(coming: tuple[Coming, ...], charge: Charge, now: float) -> float | None:
    """Return in how many seconds the next instance is expected to serve; None: none is coming."""
    if not coming:
        return None
    guess = max(0.0, (charge.ready_by if charge.ready_by is not None else now) - now)
    return min(each.left_s if each.left_s >= 0 else guess for each in coming)
