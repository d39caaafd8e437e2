"""What each strategy makes of the usual situations, and of unusual ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Edge, Holder, Links, Plan, Port, Task, Tier
from blitzgw.scaling.planner.base import PlanError, Unfit
from blitzgw.scaling.planner.check import faults
from blitzgw.scaling.planner.choose import STRATEGIES
from blitzgw.scaling.planner.ground import Ground
from tests.scaling.planner_kit import RATE, all_plans, even_links, even_task, planned, predict

ALL = tuple(range(32))
EVERY = frozenset(ALL)


def pairs(plan: Plan) -> list[tuple[str, str]]:
    return [(edge.source, edge.target) for edge in plan.edges]


@pytest.mark.parametrize("targets", [1, 2, 7, 8, 33, 64])
@pytest.mark.parametrize("sources", [1, 3])
def test_plans_are_right_for_any_number_of_targets(targets: int, sources: int) -> None:
    task, links = even_task(targets, sources), even_links(targets + sources)
    plans = all_plans(task, links)
    assert {"star", "chain", "binomial"} <= set(plans)
    for plan in plans.values():
        assert faults(plan, task, links) == []


def test_a_star_has_one_source() -> None:
    plan = planned("star", even_task(3, 2), even_links(5))
    assert pairs(plan) == [("n0/0", f"n{i}/0") for i in (2, 3, 4)]
    assert all(edge == Edge(edge.source, edge.target, ALL, "net") for edge in plan.edges)


def test_a_chain_passes_on_everything_in_order() -> None:
    plan = planned("chain", even_task(3), even_links(4))
    assert pairs(plan) == [("n0/0", "n1/0"), ("n1/0", "n2/0"), ("n2/0", "n3/0")]
    assert all(edge.blobs == ALL for edge in plan.edges)


def test_the_faster_stand_earlier_in_a_chain() -> None:
    rates = {1: RATE / 2, 2: RATE, 3: RATE * 2, 4: RATE * 0.97}
    links = even_links(5, rate=2 * RATE)
    ports = {(f"n{i}", "net"): Port(rate, rate) for i, rate in rates.items()}
    plan = planned("chain", even_task(4), replace(links, ports={**links.ports, **ports}))
    assert [edge.target for edge in plan.edges] == ["n3/0", "n2/0", "n4/0", "n1/0"]


def test_what_is_near_the_source_stands_earlier_and_a_zone_is_entered_once() -> None:
    zones = {"n0": "b", "n1": "a", "n2": "b", "n3": "a", "n4": "b"}
    plan = planned("chain", even_task(4), replace(even_links(5), zones=zones))
    assert [edge.target for edge in plan.edges] == ["n2/0", "n4/0", "n1/0", "n3/0"]


def test_workers_of_one_node_pass_it_on_locally() -> None:
    task = Task((10,), ("n1/0", "n2/0", "n1/1"), (Holder("n0/0", frozenset({0})),))
    plan = planned("chain", task, even_links(3))
    assert [(edge.source, edge.target, edge.network) for edge in plan.edges] == [
        ("n0/0", "n1/0", "net"),
        ("n1/0", "n1/1", ""),
        ("n1/1", "n2/0", "net"),
    ]


def test_a_chain_for_each_source_takes_the_targets_near_it() -> None:
    zones = {"n0": "a", "n1": "b", "n2": "b", "n3": "a", "n4": "b", "n5": "a"}
    plan = planned("multi-chain", even_task(4, 2), replace(even_links(6), zones=zones))
    assert pairs(plan) == [
        ("n0/0", "n3/0"),
        ("n3/0", "n5/0"),
        ("n1/0", "n2/0"),
        ("n2/0", "n4/0"),
    ]


def test_a_second_chain_needs_a_second_source() -> None:
    made = STRATEGIES["multi-chain"](Ground(even_task(4), even_links(5)))
    assert isinstance(made, Unfit)
    assert "two usable sources" in made.reason


def test_lanes_bring_in_a_part_each_and_exchange_the_rest() -> None:
    links = even_links(4)
    fast = {(f"n{i}", "fast"): Port(9 * RATE, 9 * RATE) for i in (2, 3)}
    plan = planned("lanes", even_task(2, 2), replace(links, ports={**links.ports, **fast}))
    assert set(plan.edges) == {
        Edge("n0/0", "n2/0", ALL[::2], "net"),
        Edge("n1/0", "n3/0", ALL[1::2], "net"),
        Edge("n2/0", "n3/0", ALL[::2], "fast"),
        Edge("n3/0", "n2/0", ALL[1::2], "fast"),
    }


def test_without_a_faster_link_there_are_no_lanes() -> None:
    made = STRATEGIES["lanes"](Ground(even_task(3, 2), even_links(5)))
    assert isinstance(made, Unfit)
    assert "faster" in made.reason


def test_shards_are_read_by_turns_and_go_round() -> None:
    workers = ("n0/0", "n1/0", "n2/0")
    holders = tuple(Holder(worker, EVERY, Tier.DISK) for worker in workers)
    task = Task((10,) * 32, workers, holders)
    plan = planned("disk-shards", task, even_links(3, disks=RATE))
    assert [read.blobs for read in plan.reads] == [ALL[0::3], ALL[1::3], ALL[2::3]]
    assert pairs(plan) == [("n0/0", "n1/0"), ("n1/0", "n2/0"), ("n2/0", "n0/0")]
    assert plan.edges[0].blobs[:4] == (0, 2, 3, 5)


def test_a_faster_disk_reads_more() -> None:
    workers = ("n0/0", "n1/0")
    task = Task(
        (10,) * 30, workers, tuple(Holder(w, frozenset(range(30)), Tier.DISK) for w in workers)
    )
    links = replace(even_links(2), disks={"n0": 2e6, "n1": 1e6})
    plan = planned("disk-shards", task, links)
    assert [len(read.blobs) for read in plan.reads] == [20, 10]


def test_the_whole_model_can_come_from_ones_own_disk() -> None:
    task = replace(even_task(2), holders=(Holder("n1/0", EVERY, Tier.DISK), Holder("n0/0", EVERY)))
    plan = planned("disk", task, even_links(3))
    assert [(read.worker, read.tier, read.blobs) for read in plan.reads] == [
        ("n1/0", Tier.DISK, ALL)
    ]
    assert [edge.target for edge in plan.edges] == ["n2/0"]


def test_a_host_copy_of_the_own_machine_is_read_and_not_sent() -> None:
    task = replace(even_task(2), holders=(Holder("n1/host", EVERY, Tier.HOST),))
    for name in ("star", "chain"):
        plan = planned(name, task, even_links(3))
        assert [(read.worker, read.blobs) for read in plan.reads if read.worker == "n1/0"]
        assert all(edge.target == "n2/0" for edge in plan.edges)
        assert faults(plan, task, even_links(3)) == []


def test_what_is_behind_a_tier_is_read_before_it_is_sent() -> None:
    task = replace(even_task(1), holders=(Holder("n0/host", EVERY, Tier.DISK),))
    plan = planned("chain", task, even_links(2))
    assert [(read.worker, read.tier, read.blobs) for read in plan.reads] == [
        ("n0/host", Tier.DISK, ALL)
    ]
    assert pairs(plan) == [("n0/host", "n1/0")]


def test_half_loaded_holders_complete_each_other() -> None:
    low, high = frozenset(ALL[:16]), frozenset(ALL[16:])
    task = replace(even_task(3, 2), holders=(Holder("n0/0", low), Holder("n1/0", high)))
    links = even_links(5)
    for name, plan in all_plans(task, links).items():
        assert faults(plan, task, links) == [], name
        assert predict(plan, task, links).complete_s > 0.0


def test_only_what_a_target_lacks_goes_to_it() -> None:
    task = even_task(2)
    task = replace(task, holders=(*task.holders, Holder("n2/0", frozenset(ALL[:30]))))
    for plan in all_plans(task, even_links(3)).values():
        assert sum(len(edge.blobs) for edge in plan.edges if edge.target == "n2/0") == 2


def test_the_only_holder_of_a_blob_may_be_another_target() -> None:
    task = even_task(2)
    holders = (Holder("n0/0", EVERY - {5}), Holder("n2/0", frozenset({5})))
    links = even_links(3)
    for plan in all_plans(replace(task, holders=holders), links).values():
        assert faults(plan, replace(task, holders=holders), links) == []
        assert ("n2/0", "n1/0") in pairs(plan)


def test_a_target_behind_another_network_is_reached_through_one_that_has_both() -> None:
    ports = {("n0", "x"): 1.0, ("n1", "x"): 1.0, ("n1", "y"): 1.0, ("n2", "y"): 1.0}
    links = Links(ports={place: Port(RATE, RATE) for place in ports})
    for name, plan in all_plans(even_task(2), links).items():
        assert pairs(plan) == [("n0/0", "n1/0"), ("n1/0", "n2/0")], name
        assert [edge.network for edge in plan.edges] == ["x", "y"]


def test_the_faster_of_two_shared_networks_is_taken() -> None:
    links = even_links(2)
    fast = {(f"n{i}", "fast"): Port(2 * RATE, 2 * RATE) for i in range(2)}
    plan = planned("star", even_task(1), replace(links, ports={**links.ports, **fast}))
    assert plan.edges[0].network == "fast"


@pytest.mark.parametrize("name", ["star", "chain"])
def test_a_blob_that_nobody_has_is_named(name: str) -> None:
    task = replace(even_task(2), holders=(Holder("n0/0", EVERY - {3, 7}),))
    with pytest.raises(PlanError, match="nobody has blobs 3, 7"):
        STRATEGIES[name](Ground(task, even_links(3)))


@pytest.mark.parametrize("name", ["star", "chain"])
def test_a_target_that_cannot_be_reached_is_named(name: str) -> None:
    links = even_links(3)
    ports = {place: port for place, port in links.ports.items() if place[0] != "n2"}
    with pytest.raises(PlanError, match="n2/0 cannot be reached"):
        STRATEGIES[name](Ground(even_task(2), replace(links, ports=ports)))


def test_a_port_without_a_free_rate_joins_nobody() -> None:
    links = even_links(2)
    ports = {**links.ports, ("n0", "net"): Port(0.0, RATE)}
    with pytest.raises(PlanError, match="cannot be reached"):
        planned("star", even_task(1), replace(links, ports=ports))


def test_holders_of_blobs_that_do_not_exist_are_an_error() -> None:
    task = replace(even_task(1), holders=(Holder("n0/0", frozenset({99})),))
    with pytest.raises(ValueError, match="n0/0"):
        planned("star", task, even_links(2))
