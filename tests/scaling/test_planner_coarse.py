"""Plans of groups are plans of blobs, and take what those take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.plan import Edge, Holder, Links, Port, Task, Tier
from blitzgw.scaling.planner.base import PlanError, Unfit
from blitzgw.scaling.planner.check import faults
from blitzgw.scaling.planner.choose import STRATEGIES, choose
from blitzgw.scaling.planner.coarse import CELLS, LEAST_GROUPS, Grouping, coarsen, grouped
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.predict import follow
from blitzgw.scaling.planner.thin import PAIRS, thinned
from blitzgw.scaling.planner.unfold import unfolded
from tests.scaling.planner_kit import (
    PIECE,
    RATE,
    all_plans,
    even_links,
    even_task,
    planned,
    predict,
    situations,
)


def stretched(task: Task, times: int, *, interleaved: bool) -> Task:
    """Return the task with each blob as so many, which the same workers have."""
    count = len(task.blob_bytes)

    def those(blob: int) -> list[int]:
        if interleaved:
            return [blob + turn * count for turn in range(times)]
        return list(range(blob * times, (blob + 1) * times))

    sizes = [0] * (count * times)
    for blob, size in enumerate(task.blob_bytes):
        for one in those(blob):
            sizes[one] = size
    holders = tuple(
        replace(holder, blobs=frozenset(one for blob in holder.blobs for one in those(blob)))
        for holder in task.holders
    )
    return Task(tuple(sizes), task.targets, holders)


def grounded(grouping: Grouping, links: Links) -> Ground:
    return Ground(grouping.task, grouping.links(links), grouping.groups)


@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(1, 12), st.booleans(), st.sampled_from([1, 2, 4, 8, 20]))
def test_a_plan_of_groups_is_right_for_the_blobs(
    situation: tuple[Task, Links], times: int, interleaved: bool, most: int
) -> None:
    task, links = stretched(situation[0], times, interleaved=interleaved), situation[1]
    grouping = grouped(task, most)
    assert sorted(blob for group in grouping.groups for blob in group) == list(
        range(len(task.blob_bytes))
    )
    ground = grounded(grouping, links)
    for make in STRATEGIES.values():
        try:
            plan = make(ground)
        except PlanError:
            assert not grouping.exact or not all_plans(task, links)
            return
        if isinstance(plan, Unfit):
            continue
        expanded = grouping.expand(plan)
        assert faults(expanded, task, links) == []
        prediction, flows = follow(plan, ground.task, ground.links)
        arrivals = unfolded(prediction, flows, grouping).arrivals
        assert set(arrivals) == set(task.targets)
        for edge in expanded.edges:
            if edge.target in arrivals:
                times_s = [arrivals[edge.target][blob] for blob in edge.blobs]
                assert all(b >= a - 1e-6 for a, b in pairwise(times_s))
                assert links.setup_s <= times_s[0]
                assert times_s[-1] <= prediction.complete_s * (1 + 1e-6) + 1e-6


@settings(max_examples=25, deadline=None)
@given(situations(), st.booleans())
def test_the_choice_for_many_blobs_is_right(
    situation: tuple[Task, Links], interleaved: bool
) -> None:
    times = 1 + CELLS // len(situation[0].blob_bytes)
    task, links = stretched(situation[0], times, interleaved=interleaved), situation[1]
    assert coarsen(task) is not None
    if not all_plans(situation[0], links):
        with pytest.raises(PlanError, match=r"nobody has|cannot be reached"):
            choose(task, links)
        return
    choice = choose(task, links)
    assert faults(choice.plan, task, links) == []
    latest = max(max(times_s) for times_s in choice.prediction.arrivals.values())
    assert latest == pytest.approx(choice.prediction.complete_s, rel=1e-6, abs=1e-6)


def uneven(task: Task) -> Task:
    """Return the task with an embedding and a head that are larger than layers."""
    first, *layers = task.blob_bytes
    return replace(task, blob_bytes=(5 * first, *layers[:-1], 3 * first))


@pytest.mark.parametrize("name", ["star", "chain", "multi-chain"])
@pytest.mark.parametrize(("targets", "blobs"), [(6, 200), (12, 120), (40, 82)])
@pytest.mark.parametrize("piece", [PIECE // 4, 16 * PIECE])
def test_predictions_of_groups_are_those_of_blobs(
    name: str, targets: int, blobs: int, piece: int
) -> None:
    task = uneven(even_task(targets, 3, blobs=blobs))
    links = even_links(targets + 3, setup_s=0.01, hop_s=0.001, piece_bytes=piece)
    fine = predict(planned(name, task, links), task, links)
    choice = choose(task, links, name)
    assert faults(choice.plan, task, links) == []
    coarse = choice.prediction
    assert coarse.complete_s == pytest.approx(fine.complete_s, rel=0.03)
    assert coarse.coverage_s == pytest.approx(fine.coverage_s, rel=0.03)
    assert coarse.first_blob_s == pytest.approx(fine.first_blob_s, rel=0.03)
    for target in task.targets:
        assert coarse.arrivals[target] == pytest.approx(fine.arrivals[target], rel=0.03)


def shared(strategy: str) -> tuple[Task, Links]:
    """Return a task whose parts are dealt out in the way of a strategy."""
    task, links = even_task(4, 4, blobs=300), even_links(8, disks=RATE)
    if strategy == "disk-shards":
        own = tuple(Holder(t, frozenset(range(300)), Tier.DISK) for t in task.targets)
        return replace(task, holders=own), links
    if strategy == "lanes":
        fast = {(f"n{i}", "fast"): Port(9 * RATE, 9 * RATE) for i in range(4, 8)}
        return task, replace(links, ports={**links.ports, **fast})
    return task, links


@pytest.mark.parametrize("strategy", ["binomial", "lanes", "disk-shards"])
def test_targets_together_have_the_model_as_early(strategy: str) -> None:
    task, links = shared(strategy)
    choice = choose(task, links, strategy)
    one_s = sum(task.blob_bytes) / RATE
    assert choice.prediction.coverage_s == pytest.approx(one_s / 4, rel=1 / LEAST_GROUPS)
    fine = predict(choice.plan, task, links)
    assert fine.coverage_s == pytest.approx(choice.prediction.coverage_s, rel=0.03)
    assert fine.complete_s == pytest.approx(choice.prediction.complete_s, rel=0.03)


def test_few_blobs_are_planned_as_they_are() -> None:
    assert coarsen(even_task(8, blobs=34)) is None
    task, links = even_task(8, blobs=34), even_links(9)
    assert choose(task, links).plan == planned("chain", task, links)


@pytest.mark.parametrize("targets", [8, 64, 128])
@pytest.mark.parametrize("blobs", [82, 1026, 4098])
def test_work_does_not_grow_with_the_blobs(targets: int, blobs: int) -> None:
    """Half-loaded targets stopped at places of their own, and there are many sources."""
    task = even_task(targets, 300, blobs=blobs)
    half = tuple(
        Holder(target, frozenset(range(1 + place * blobs // (2 * targets))))
        for place, target in enumerate(task.targets)
    )
    task, links = replace(task, holders=(*task.holders, *half)), even_links(targets + 300)
    thin = thinned(task, links)
    assert len(thin.holders) - len(half) <= PAIRS // targets
    grouping = coarsen(thin)
    assert grouping is not None
    assert len(grouping.groups) * targets <= max(CELLS, LEAST_GROUPS * targets)
    ground = grounded(grouping, links)
    turns: list[float] = []
    plan = STRATEGIES["chain"](ground)
    assert not isinstance(plan, Unfit)
    predict(plan, ground.task, ground.links, lambda now_s, *_: turns.append(now_s))
    assert len(turns) <= 8 * targets
    assert faults(choose(task, links).plan, task, links) == []


def test_plans_that_are_not_wanted_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def schedule(nodes: int, blocks: int) -> list[object]:
        raise AssertionError((nodes, blocks))

    monkeypatch.setattr("blitzgw.scaling.planner.binomial.schedule", schedule)
    assert "on request" in choose(even_task(64), even_links(65)).reasons["binomial"]


def test_what_is_left_out_of_groups_is_used_where_there_is_nothing_else() -> None:
    """The whole copy reaches one target only; the other lives on what many others have of it."""
    blobs = frozenset(range(400))
    parts = [frozenset(range(i, 400, 350)) | {i, 350 + i % 50} for i in range(350)]
    workers = [Holder(f"p{i}/0", part) for i, part in enumerate(parts)]
    task = Task((PIECE,) * 400, ("a/0", "b/0"), (Holder("w/0", blobs), *workers))
    ports = {(f"p{i}", "y"): Port(RATE, RATE) for i in range(350)}
    links = Links(
        ports={
            **ports,
            ("b", "y"): Port(RATE, RATE),
            ("w", "x"): Port(RATE, RATE),
            ("a", "x"): Port(RATE, RATE),
        }
    )
    assert faults(choose(task, links, "star").plan, task, links) == []


def test_what_targets_have_together_covers_at_once() -> None:
    """Each has blobs of its own here and there, so that no group is anybody's."""
    task = even_task(20, blobs=400)
    some = tuple(
        Holder(target, frozenset({*range(place, 400, 20), *range(7 * place)}))
        for place, target in enumerate(task.targets)
    )
    task, links = replace(task, holders=(*task.holders, *some)), even_links(21)
    choice = choose(task, links)
    assert choice.prediction.coverage_s == 0.0
    assert faults(choice.plan, task, links) == []


def test_blobs_that_nobody_has_are_named_as_people_know_them() -> None:
    task = even_task(4, blobs=400)
    task = replace(task, holders=(Holder("n0/0", frozenset(range(400)) - {123, 321}),))
    with pytest.raises(PlanError, match="nobody has blobs 123, 321"):
        choose(task, even_links(5))


def test_holders_of_blobs_that_do_not_exist_are_an_error() -> None:
    task = even_task(4, blobs=400)
    with pytest.raises(ValueError, match="does not have"):
        choose(replace(task, holders=(Holder("n0/0", frozenset({400})),)), even_links(5))


def test_edges_name_every_blob_in_order() -> None:
    task, links = even_task(1, blobs=500), even_links(2)
    assert choose(task, links).plan.edges == (Edge("n0/0", "n1/0", tuple(range(500)), "net"),)
