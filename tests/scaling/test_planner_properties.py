"""Whatever the task and the links are: plans are right, and predictions obey the links."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from blitzgw.core.plan import Links, Plan, Task
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.check import faults, resident_blobs
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.planner.simulation import MERGE
from tests.scaling.planner_kit import all_plans, even_links, even_task, predict, situations

SLACK = 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(situations())
def test_every_plan_of_every_strategy_is_right(situation: tuple[Task, Links]) -> None:
    task, links = situation
    for name, plan in all_plans(task, links).items():
        assert faults(plan, task, links) == [], name
        assert plan.strategy == name


@settings(max_examples=50, deadline=None)
@given(situations())
def test_no_resource_is_used_above_its_rate(situation: tuple[Task, Links]) -> None:
    task, links = situation

    def watch(
        now_s: float, names: Sequence[object], rates: Sequence[float], used: Sequence[float]
    ) -> None:
        for name, rate, taken in zip(names, rates, used, strict=True):
            assert taken <= rate * SLACK, (now_s, name)

    for plan in all_plans(task, links).values():
        predict(plan, task, links, watch)


@settings(max_examples=50, deadline=None)
@given(situations())
def test_arrivals_are_finite_and_follow_each_edge(situation: tuple[Task, Links]) -> None:
    task, links = situation
    for name, plan in all_plans(task, links).items():
        prediction = predict(plan, task, links)
        for target in task.targets:
            assert all(0.0 <= at < math.inf for at in prediction.arrivals[target]), name
        for edge in plan.edges:
            if edge.target in prediction.arrivals:
                times = [prediction.arrivals[edge.target][blob] for blob in edge.blobs]
                assert times == sorted(times), name
                assert times[0] >= links.setup_s
        assert prediction.first_blob_s <= prediction.complete_s
        assert prediction.coverage_s <= prediction.complete_s


@settings(max_examples=30, deadline=None)
@given(situations())
def test_nobody_gets_a_blob_before_the_one_that_sends_it(situation: tuple[Task, Links]) -> None:
    task, links = situation
    for plan in all_plans(task, links).values():
        prediction = predict(plan, task, links)
        arrivals, merged_s = prediction.arrivals, 1e-3 + MERGE * prediction.complete_s
        for edge in plan.edges:
            if edge.source in arrivals and edge.target in arrivals:
                for blob in edge.blobs:
                    assert arrivals[edge.target][blob] >= arrivals[edge.source][blob] - merged_s


@settings(max_examples=30, deadline=None)
@given(situations())
def test_no_target_is_quicker_than_its_links(situation: tuple[Task, Links]) -> None:
    task, links = situation
    for plan in all_plans(task, links).values():
        prediction = predict(plan, task, links)
        for target in plan.targets:
            assert prediction.complete_s >= _least_s(plan, task, links, target) / SLACK - 1e-6


def _least_s(plan: Plan, task: Task, links: Links, target: str) -> float:
    node = target.partition("/")[0]
    least = 0.0
    for (of, network), port in links.ports.items():
        if of == node:
            sizes = [
                task.blob_bytes[blob]
                for edge in plan.edges
                if edge.target == target and edge.network == network
                for blob in edge.blobs
            ]
            least = max(least, sum(sizes) / port.rx_bytes_per_s)
    return least


@settings(max_examples=30, deadline=None)
@given(situations())
def test_the_choice_is_the_quickest_or_says_why_not(situation: tuple[Task, Links]) -> None:
    task, links = situation
    if not all_plans(task, links):
        with pytest.raises(PlanError, match=r"nobody has|cannot be reached"):
            choose(task, links)
        return
    choice = choose(task, links)
    assert choice.prediction.complete_s <= min(choice.alternatives.values()) * 1.002
    assert faults(choice.plan, task, links) == []
    assert not choice.alternatives.keys() & choice.reasons.keys()


@settings(max_examples=40, deadline=None)
@given(situations())
def test_only_what_lacks_is_moved(situation: tuple[Task, Links]) -> None:
    task, links = situation
    resident = resident_blobs(task)
    for plan in all_plans(task, links).values():
        for edge in plan.edges:
            assert edge.target in task.targets
            assert not resident.get(edge.target, set()) & set(edge.blobs)


def test_a_task_without_lacks_has_an_empty_plan() -> None:
    task = even_task(0, 3)
    done = Task(task.blob_bytes, ("n0/0", "n2/0"), task.holders)
    choice = choose(done, even_links(3))
    assert choice.plan.edges == choice.plan.reads == ()
    assert choice.prediction.complete_s == choice.prediction.first_blob_s == 0.0
    assert set(choice.prediction.arrivals) == {"n0/0", "n2/0"}


def test_plans_are_the_same_whatever_the_order_of_holders() -> None:
    task = even_task(4, 3)
    turned = Task(task.blob_bytes, task.targets, tuple(reversed(task.holders)))
    assert all_plans(task, even_links(7)) == all_plans(turned, even_links(7))
    assert choose(task, even_links(7)) == choose(turned, even_links(7))
