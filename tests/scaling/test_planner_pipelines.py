"""Pipelines among receivers: whole, in order, ready early; none where they would be of no use."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blitzgw.core.plan import Edge, Plan, Prediction
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.planner.pipelines import SPARE, USEFUL, Pipeline, pipelines
from tests.scaling.planner_kit import even_links, even_task, situations


def k_way(targets, sources, *, layers=30, strategy="binomial"):
    task = even_task(targets, sources, blobs=layers + 2)
    return choose(task, even_links(targets + sources), strategy)


def check(found, choice, layers):
    """Each covers the model in order; its workers are targets, each in one at most."""
    workers = [stage.worker for each in found for stage in each.stages]
    assert len(workers) == len(set(workers))
    assert set(workers) <= set(choice.plan.targets)
    for each in found:
        spans = [stage.span for stage in each.stages]
        assert len(spans) > 1
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == layers
        assert all(len(span) for span in spans)
        assert each.ready_s == pytest.approx(ready_s(each, choice.prediction, layers))


def ready_s(pipeline, prediction, layers, *, tied=False):
    times = []
    for stage in pipeline.stages:
        blobs = {1 + layer for layer in stage.span.layers()}
        blobs |= {0} if stage.span.start == 0 else set()
        if stage.span.stop == layers:
            blobs |= {layers + 1, 0} if tied else {layers + 1}
        times += [prediction.arrivals[stage.worker][blob] for blob in blobs]
    return max(times)


@pytest.mark.parametrize(
    ("targets", "sources", "sizes"),
    [
        (2, 2, [2]),
        (8, 4, [4, 4]),
        (8, 2, [2, 2, 2, 2]),
        (12, 4, [4, 4, 4]),
        (5, 2, [2, 2]),
        (3, 4, [3]),
    ],
)
def test_members_of_different_groups_have_the_model_after_its_part_of_the_time(
    targets, sources, sizes
):
    choice = k_way(targets, sources)
    found = pipelines(choice.plan, choice.prediction, 30)
    check(found, choice, 30)
    assert [len(each.stages) for each in found] == sizes
    complete_s = min(max(times) for times in choice.prediction.arrivals.values())
    for each in found:  # a group needs some blobs' time more to hand its first part round
        assert each.ready_s <= complete_s * (1 / sizes[0] + 0.27)
        assert max(len(stage.span) for stage in each.stages) <= -(-30 * SPARE // sizes[0])


def test_two_layers_make_two_stages():
    choice = k_way(2, 2, layers=2)
    (found,) = pipelines(choice.plan, choice.prediction, 2)
    assert str(found) == "n2/0 [0, 1) → n3/0 [1, 2)"


def test_a_part_without_layers_is_no_stage():
    choice = k_way(4, 4, layers=5)  # blobs 0 1 | 2 3 | 4 5 | 6: the last one is the head
    (found,) = pipelines(choice.plan, choice.prediction, 5)
    check([found], choice, 5)
    assert sorted(len(stage.span) for stage in found.stages) == [1, 2, 2]


@pytest.mark.parametrize(("targets", "sources", "strategy"), [(4, 1, "binomial"), (4, 2, "star")])
def test_without_groups_that_begin_elsewhere_there_is_none(targets, sources, strategy):
    choice = k_way(targets, sources, strategy=strategy)
    assert pipelines(choice.plan, choice.prediction, 30) == ()


def test_a_tied_head_waits_for_the_embedding():
    choice = k_way(8, 4)
    free = pipelines(choice.plan, choice.prediction, 30)
    tied = pipelines(choice.plan, choice.prediction, 30, tied_head=True)
    for one, other in zip(free, tied, strict=True):
        assert one.ready_s < other.ready_s
        assert other.ready_s == ready_s(other, choice.prediction, 30, tied=True)


def test_nothing_to_load_is_no_pipeline():
    plan, none = Plan("x", ("a/0", "b/0")), Prediction({}, 0.0, 0.0, 0.0)
    assert pipelines(plan, none, 4) == ()
    assert pipelines(plan, Prediction({"a/0": (0.0,) * 6}, 0.0, 0.0, 0.0), 4) == ()
    assert pipelines(plan, none, 0) == ()


def test_blobs_of_models_that_are_planned_in_groups_are_cut_where_they_come():
    choice = k_way(8, 4, layers=128)
    found = pipelines(choice.plan, choice.prediction, 128)
    check(found, choice, 128)
    complete_s = min(max(times) for times in choice.prediction.arrivals.values())
    assert [len(each.stages) for each in found] == [4, 4]
    assert max(each.ready_s for each in found) <= 0.45 * complete_s


def test_a_hundred_targets_take_an_event_loop_no_time():
    choice = k_way(128, 8, layers=128)
    began = time.perf_counter()
    found = pipelines(choice.plan, choice.prediction, 128)
    assert time.perf_counter() - began < 1.0
    check(found, choice, 128)
    assert found


@settings(max_examples=80, deadline=None)
@given(situations(), st.sampled_from(["binomial", ""]), st.booleans())
def test_whatever_there_is_pipelines_are_whole(situation, strategy, tied):
    task, links = situation
    layers = len(task.blob_bytes) - 2
    try:
        choice = choose(task, links, strategy)
    except Exception:  # no plan at all is others' affair
        assume(False)
    found = pipelines(choice.plan, choice.prediction, layers, tied_head=tied)
    for each in found:
        check([replace_ready(each, choice.prediction, layers, tied)], choice, layers)
        members = [choice.prediction.arrivals[stage.worker] for stage in each.stages]
        assert each.ready_s <= USEFUL * min(map(max, members))
    assert found == pipelines(choice.plan, choice.prediction, layers, tied_head=tied)


def replace_ready(each: Pipeline, prediction, layers, tied) -> Pipeline:
    """The time is compared without the embedding of a tied head."""
    assert each.ready_s == pytest.approx(ready_s(each, prediction, layers, tied=tied))
    return replace(each, ready_s=ready_s(each, prediction, layers))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_times_of_arrival_give_whole_pipelines_or_none(data):
    layers, sources = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 4))
    targets = [f"t/{i}" for i in range(data.draw(st.integers(1, 6)))]
    every = tuple(range(layers + 2))
    moments = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 10.0, 11.0])
    arrivals = {
        t: tuple(data.draw(st.lists(moments, min_size=layers + 2, max_size=layers + 2)))
        for t in targets
    }
    edges = tuple(
        Edge(f"s/{data.draw(st.integers(0, sources - 1))}", t, every, "net") for t in targets
    )
    plan = Plan("x", tuple(targets), edges)
    prediction = Prediction(arrivals, 11.0, 0.0, 11.0)
    found = pipelines(plan, prediction, layers)
    for each in found:
        spans = [stage.span for stage in each.stages]
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == layers
        assert ready_s(each, prediction, layers) <= each.ready_s
