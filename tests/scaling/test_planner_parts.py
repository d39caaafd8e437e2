"""Targets that read for themselves begin with different parts: together they have all early."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.live import StagePlan
from blitzgw.core.plan import Holder, Read, Task, Tier
from blitzgw.core.span import Span
from blitzgw.scaling.planner import parts
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.check import faults
from blitzgw.scaling.planner.choose import ON_REQUEST, STRATEGIES, choose
from blitzgw.scaling.planner.pipelines import alone_s, pipelines, together_s
from tests.scaling.planner_kit import PIECE, RATE, even_links, planned

LAYERS = 30
SIZE = 8 * PIECE


def readers(count, tier=Tier.DISK, *, blobs=LAYERS + 2, nodes=0):
    """A task of targets that have nothing and read all from their own machines."""
    workers = [f"n{i % (nodes or count)}/{i}" for i in range(count)]
    every = frozenset(range(blobs))
    holders = tuple(Holder(worker, every, tier) for worker in workers)
    return Task((SIZE,) * blobs, tuple(workers), holders)


def links(nodes, *, disks, rate=RATE, hosts=0.0):
    made = even_links(nodes, rate=rate, disks=disks)
    return replace(made, hosts=dict.fromkeys(made.disks, hosts)) if hosts else made


def together(choice, *, tied=False):
    return pipelines(choice.plan, choice.prediction, LAYERS, tied_head=tied)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_each_reads_a_part_and_passes_it_round(count):
    task, ground = readers(count), links(count, disks=4 * RATE, rate=2 * RATE)
    plan = planned(parts.NAME, task, ground)
    assert not faults(plan, task)
    read = [blob for each in plan.reads for blob in each.blobs]
    assert sorted(read) == list(range(LAYERS + 2)), "each blob by one"
    for each in plan.reads:
        assert list(each.blobs) == list(range(each.blobs[0], each.blobs[-1] + 1))
        assert len(each.blobs) == pytest.approx((LAYERS + 2) / count, abs=1)
    assert len(plan.edges) == count, "a ring"
    choice = choose(task, ground, parts.NAME)
    (found,) = together(choice)
    assert len(found.stages) == count
    assert found.ready_s < 0.8 * alone_s(choice.prediction.arrivals)
    assert found.ready_s == pytest.approx(
        together_s(found.stages, choice.prediction.arrivals), rel=1e-6
    )


def test_a_faster_disk_has_a_longer_part():
    task, even = readers(2), links(2, disks=RATE)
    uneven = replace(even, disks={"n0": 3 * RATE, "n1": RATE})
    sizes = [len(read.blobs) for read in planned(parts.NAME, task, uneven).reads]
    assert sizes == [24, 8]


@pytest.mark.parametrize("tier", [Tier.DISK, Tier.HOST])
@pytest.mark.parametrize("count", [2, 4])
def test_each_reads_all_from_its_part_on(tier, count):
    task, ground = readers(count, tier), links(count, disks=4 * RATE, hosts=9 * RATE)
    plan = planned(parts.OWN_NAME, task, ground)
    assert not faults(plan, task)
    assert plan.edges == ()
    assert [read.blobs[0] for read in plan.reads] == [32 // count * i for i in range(count)]
    choice, quickest = choose(task, ground, parts.OWN_NAME), choose(task, ground)
    assert quickest.prediction.complete_s <= choice.prediction.complete_s * 1.01
    (found,) = together(choice)
    assert found.ready_s < (1 / count + 0.1) * choice.prediction.complete_s


def test_a_tied_head_comes_after_the_last_layers():
    choice = choose(readers(2), links(2, disks=RATE), parts.OWN_NAME)
    (found,) = together(choice, tied=True)
    assert found.stages == (StagePlan("n0/0", Span(0, 15)), StagePlan("n1/1", Span(15, 30)))
    assert found.ready_s < 0.6 * choice.prediction.complete_s


def test_devices_of_one_node_share_what_its_disk_gives():
    task = readers(2, nodes=1)
    with pytest.raises(PlanError, match="different nodes"):
        choose(task, links(1, disks=RATE), parts.NAME)
    own, whole = (choose(task, links(1, disks=RATE), name) for name in (parts.OWN_NAME, ""))
    (found,) = together(own)
    assert found.ready_s > 0.9 * alone_s(whole.prediction.arrivals), "together is no sooner"


def test_who_sends_on_keeps_the_order():
    task = readers(2)
    task = replace(task, targets=(*task.targets, "n2/x"))
    with pytest.raises(PlanError, match="two targets whose own machines"):
        choose(task, links(3, disks=RATE), parts.OWN_NAME)
    task = replace(readers(3), targets=(*readers(3).targets, "n3/x"))
    plan = planned(parts.OWN_NAME, task, links(4, disks=RATE))
    assert not faults(plan, task)
    senders = {edge.source for edge in plan.edges}
    assert {read.worker: read.blobs[0] for read in plan.reads if read.worker in senders} == (
        dict.fromkeys(senders, 0)
    )


def test_who_has_nothing_to_read_is_told_so():
    task = replace(readers(2), holders=(Holder("n2/0", frozenset(range(LAYERS + 2))),))
    for name in ON_REQUEST:
        with pytest.raises(PlanError, match="does not apply"):
            choose(task, links(3, disks=RATE), name)


def test_only_on_request():
    choice = choose(readers(2), links(2, disks=RATE))
    assert not ON_REQUEST & (choice.alternatives.keys() | choice.reasons.keys())
    assert STRATEGIES.keys() > ON_REQUEST


def test_those_who_read_in_the_same_order_are_of_no_use_to_each_other():
    choice = choose(readers(2), links(2, disks=RATE), "disk")
    assert [read.blobs[0] for read in choice.plan.reads] == [0, 0]
    assert together(choice) == ()


def test_what_is_there_already_is_not_waited_for():
    arrivals = {"a/0": (0.0, 1.0, 2.0, 5.0), "b/0": (7.0, 6.0, 3.0, 4.0)}
    stages = (StagePlan("a/0", Span(0, 1)), StagePlan("b/0", Span(1, 2)))
    assert together_s(stages, arrivals) == 4.0
    assert together_s(stages, arrivals, tied_head=True) == 7.0
    assert together_s(stages, {"b/0": arrivals["b/0"]}) == 4.0
    assert together_s(stages, {}) == 0.0
    assert alone_s({}) == 0.0
    assert alone_s(arrivals) == 5.0


def test_many_layers_and_targets_are_planned_in_groups():
    task = readers(16, blobs=130)
    choice = choose(task, links(16, disks=RATE, rate=RATE / 4), parts.OWN_NAME)
    (found,) = pipelines(choice.plan, choice.prediction, 128)
    assert len(found.stages) > 8
    assert found.ready_s < 0.3 * alone_s(choice.prediction.arrivals)
    assert isinstance(choice.plan.reads[0], Read)
