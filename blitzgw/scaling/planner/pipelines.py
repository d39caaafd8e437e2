"""Pipelines among receivers: targets that lead with different parts of the model have it together.

In a k-way plan group i starts with part i of k (binomial.py), so that the j-th members of all
groups have every layer between them after about 1/k of the time until one of them is complete.
So have targets that read different parts from their own machines (parts.py). Which parts come first
to whom is read off the prediction: it holds whatever has been there before, and whatever groups of
blobs the plan was made in (coarse.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blitzgw.core.live import StagePlan
from blitzgw.core.plan import Plan, Prediction
from blitzgw.core.span import Span

USEFUL = 0.8
"""Of the time until its first member is complete: a pipeline that is ready later than this part of
it would hardly have begun before it is over."""

SPARE = 1.25
"""So many times its even share of the layers a stage has at most: the longest one sets the pace."""

Times = Sequence[float]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in order, which cover the model; all have what they need after `ready_s` seconds."""

    stages: tuple[StagePlan, ...]
    ready_s: float

    def __str__(self) -> str:
        return " → ".join(f"{stage.worker} {stage.span}" for stage in self.stages)


def pipelines(
    plan: Plan, prediction: Prediction, n_layers: int, *, tied_head: bool = False
) -> tuple[Pipeline, ...]:
    """Return the pipelines that a plan's targets can make while they load, each target in one.

    With a `tied_head` the last stage needs the embedding, too. Targets without a partner in every
    group are in none, and there is none at all where it would not be ready well before one of its
    members is complete.
    """
    groups = _groups(plan, prediction.arrivals) if n_layers > 1 else []
    made = (
        _best([(member, prediction.arrivals[member]) for member in members], n_layers, tied_head)
        for members in zip(*groups, strict=False)
    )
    return tuple(pipeline for pipeline in made if pipeline is not None)


def together_s(
    stages: Sequence[StagePlan], arrivals: Mapping[str, Times], *, tied_head: bool = False
) -> float:
    """Return when all stages of a pipeline have what they need; who is complete has it at once."""
    last, found = len(stages) - 1, 0.0
    for place, stage in enumerate(stages):
        times = arrivals.get(stage.worker)
        if times is None:
            continue
        needed = [1 + layer for layer in stage.span.layers()]
        needed += [0] if place == 0 or (place == last and tied_head) else []
        needed += [len(times) - 1] if place == last else []
        found = max(found, *(times[blob] for blob in needed))
    return found


def alone_s(arrivals: Mapping[str, Times]) -> float:
    """Return when the first of some targets is complete."""
    return min((max(times) for times in arrivals.values()), default=0.0)


def _groups(plan: Plan, arrivals: Mapping[str, Times]) -> list[list[str]]:
    """Return the targets by the source that their first blob is from, their own reads included.

    The groups stand in the order of their first blobs, those of a group in the order in which they
    have the part of the model up to the next group's.
    """
    into: dict[str, list[tuple[str, frozenset[int]]]] = {}
    for edge in plan.edges:
        into.setdefault(edge.target, []).append((edge.source, frozenset(edge.blobs)))
    for worker, blobs in _own_reads(plan, arrivals):
        into.setdefault(worker, []).append((worker, blobs))
    found: dict[str, dict[str, int]] = {}
    for target in sorted(into):
        coming = [blob for _, blobs in into[target] for blob in blobs]
        if target not in arrivals or not coming:
            continue
        first = min(coming, key=lambda blob: (arrivals[target][blob], blob))
        found.setdefault(_root(target, first, into), {})[target] = first
    ordered = sorted((min(firsts.values()), root) for root, firsts in found.items())
    starts: list[int | None] = [*(start for start, _ in ordered), None]
    return [
        sorted(found[root], key=lambda t: (max(arrivals[t][start : starts[i + 1]], default=0.0), t))
        for i, (start, root) in enumerate(ordered)
    ]


def _own_reads(plan: Plan, arrivals: Mapping[str, Times]) -> list[tuple[str, frozenset[int]]]:
    """Return what targets read by themselves, if they begin with different parts of the model.

    Else they are of no more use to each other than to themselves, and none makes a group.
    """
    reads = [(r.worker, r.blobs) for r in plan.reads if r.worker in arrivals and r.blobs]
    if len({blobs[0] for _, blobs in reads}) < 2:
        return []
    return [(worker, frozenset(blobs)) for worker, blobs in reads]


def _root(worker: str, blob: int, into: Mapping[str, Sequence[tuple[str, frozenset[int]]]]) -> str:
    """Return who a blob that a worker gets comes from in the end."""
    seen = set[str]()  # plans have no circles; one that had would have no end
    while worker not in seen:
        seen.add(worker)
        worker = next((s for s, blobs in into.get(worker, ()) if blob in blobs), worker)
    return worker


def _best(members: Sequence[tuple[str, Times]], n_layers: int, tied_head: bool) -> Pipeline | None:
    """Return the pipeline of these targets that is ready first; None: it is of no use.

    The last ones are left out where the layers do not suffice for all.
    """
    made = [
        found
        for count in range(len(members), 1, -1)
        if (found := _pipeline(members[:count], n_layers, tied_head)) is not None
    ]
    return min(made, key=lambda pipeline: pipeline.ready_s, default=None)


def _pipeline(
    members: Sequence[tuple[str, Times]], n_layers: int, tied_head: bool
) -> Pipeline | None:
    times = [arrived for _, arrived in members]
    ends = [times[0][0], times[-1][n_layers + 1], times[-1][0] if tied_head else 0.0]
    even = math.ceil(n_layers / len(members))
    most = max(even, math.ceil(SPARE * n_layers / len(members)))
    moments = sorted({at for arrived in times for at in arrived if at >= max(ends)})
    low, high = 0, len(moments) - 1  # at the last moment everything is everywhere
    while low < high:
        middle = (low + high) // 2
        if _spans(times, n_layers, moments[middle], most) is None:
            low = middle + 1
        else:
            high = middle
    ready_s = moments[low]
    if ready_s > USEFUL * min(max(arrived) for arrived in times):
        return None
    for limit in range(even, most + 1):
        spans = _spans(times, n_layers, ready_s, limit)
        if spans is not None:
            stages = zip(members, spans, strict=True)
            return Pipeline(tuple(StagePlan(w, span) for (w, _), span in stages), ready_s)
    return None


def _spans(times: Sequence[Times], n_layers: int, by_s: float, most: int) -> list[Span] | None:
    """Cut the layers so that each stage has its own by a moment, as many as it can up to `most`."""
    spans: list[Span] = []
    at = 0
    for later, arrived in zip(range(len(times) - 1, -1, -1), times, strict=True):
        stop, limit = at, min(at + most, n_layers - later)
        while stop < limit and arrived[1 + stop] <= by_s:
            stop += 1
        if stop == at:
            return None
        spans.append(Span(at, stop))
        at = stop
    return spans if at == n_layers else None
