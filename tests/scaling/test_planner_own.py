"""Targets that read for themselves, and those that their own machine's memory makes a source."""

import pytest

from blitzgw.core.plan import Holder, Links, Read, Task, Tier
from blitzgw.scaling.planner.base import PlanError, Unfit
from blitzgw.scaling.planner.binomial import rotated
from blitzgw.scaling.planner.choose import STRATEGIES, choose
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.pipelines import pipelines
from tests.scaling.planner_kit import RATE, even_links, even_task, planned, predict

BLOBS = 16
EVERY = frozenset(range(BLOBS))


def task(targets, *, host=(), disk=()):
    """The first node has the model; of the targets n1, n2, … some have it on their machines."""
    made = even_task(targets, blobs=BLOBS)
    more = [Holder(f"n{i}/0", EVERY, Tier.HOST) for i in host]
    more += [Holder(f"n{i}/0", EVERY, Tier.DISK) for i in disk]
    return Task(made.blob_bytes, made.targets, (*made.holders, *more))


def links(nodes, *, hosts=0.0, disks=RATE / 10):
    made = even_links(nodes, disks=disks)
    rates = dict.fromkeys(made.disks, hosts) if hosts else {}
    return Links(made.ports, made.disks, rates, piece_bytes=made.piece_bytes)


def test_from_its_own_disk_unless_its_memory_has_it():
    plan = planned("disk", task(3, host=[2], disk=[1, 2, 3]), links(4))
    assert not plan.edges
    assert {(read.worker, read.tier) for read in plan.reads} == {
        ("n1/0", Tier.DISK),
        ("n2/0", Tier.HOST),
        ("n3/0", Tier.DISK),
    }


def test_from_its_own_memory_alone():
    given, network = task(2, host=[1, 2], disk=[1, 2]), links(3, hosts=1.28 * RATE)
    choice = choose(given, network, "host")
    assert choice.plan.reads == tuple(Read(f"n{i}/0", Tier.HOST, (*EVERY,)) for i in (1, 2))
    assert not choice.plan.edges
    size = sum(given.blob_bytes)
    assert choice.prediction.complete_s == pytest.approx(size / (1.28 * RATE), rel=0.02)


def test_where_no_copy_is_there_is_no_such_plan():
    with pytest.raises(PlanError, match="no target's machine has a copy in its memory"):
        choose(task(2, disk=[1, 2]), links(3), "host")
    assert isinstance(STRATEGIES["host"](Ground(task(2), links(3))), Unfit)


def test_who_has_no_copy_gets_it_from_others():
    plan = planned("host", task(2, host=[1]), links(3))
    assert [read.worker for read in plan.reads] == ["n1/0"]
    assert {edge.target for edge in plan.edges} == {"n2/0"}


def test_nobody_asks_for_host_by_itself():
    assert "host" not in choose(task(2, host=[1, 2]), links(3)).alternatives


@pytest.mark.parametrize("strategy", ["multi-chain", "binomial"])
def test_a_target_with_a_copy_is_a_source_to_the_others(strategy):
    given, network = task(5, host=[5]), links(6, hosts=1.28 * RATE)
    plan = planned(strategy, given, network)
    assert not any(edge.target == "n5/0" for edge in plan.edges)
    assert {edge.source for edge in plan.edges} >= {"n0/0", "n5/0"}
    assert predict(plan, given, network).complete_s < 1.4 * sum(given.blob_bytes) / RATE
    [read] = plan.reads
    assert read.blobs == tuple(rotated(range(BLOBS), 1, 2) if strategy == "binomial" else EVERY)


def test_with_it_the_others_make_pipelines():
    given, network = task(5, host=[5]), links(6, hosts=1.28 * RATE)
    plan = planned("binomial", given, network)
    prediction = predict(plan, given, network)
    found = pipelines(plan, prediction, BLOBS - 2)
    assert len(found) == 2, "two of each of two groups"
    assert all(len(pipeline.stages) == 2 for pipeline in found)
    alone = planned("binomial", task(5), network)
    assert not pipelines(alone, predict(alone, task(5), network), BLOBS - 2)


def test_a_slow_memory_is_no_source():
    assert not isinstance(STRATEGIES["multi-chain"](Ground(task(5, host=[5]), links(6))), Unfit)
    slow = Ground(task(5, host=[5]), links(6, hosts=RATE / 4))
    assert slow.self_served == frozenset()
    assert isinstance(STRATEGIES["multi-chain"](slow), Unfit)
