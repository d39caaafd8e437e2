"""The quickest plan wins, a named one is obeyed, and what cannot be planned is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Holder, Port, Prediction, Task, Tier
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.choose import MANY_EDGES, ON_REQUEST, STRATEGIES, choose, usable_s
from tests.scaling.planner_kit import RATE, even_links, even_task, planned

EVERY = frozenset(range(32))


def test_one_source_makes_a_chain() -> None:
    choice = choose(even_task(6), even_links(7))
    assert choice.plan.strategy == "chain"
    assert choice.alternatives["star"] > 5 * choice.alternatives["chain"]
    assert set(choice.alternatives) | set(choice.reasons) == set(STRATEGIES) - ON_REQUEST


def test_one_target_makes_one_edge() -> None:
    assert len(choose(even_task(1), even_links(2)).plan.edges) == 1


def test_at_the_same_time_the_one_wins_whose_targets_can_compute_earlier() -> None:
    task, links = even_task(4, 4), even_links(8)
    choice = choose(task, links)
    assert choice.plan.strategy == "multi-chain"
    assert choice.alternatives["binomial"] == pytest.approx(choice.prediction.complete_s)
    assert usable_s(choice.prediction) < 0.52 * choice.prediction.complete_s
    parted = choose(task, links, "binomial").prediction
    assert parted.coverage_s < parted.complete_s / 3
    assert usable_s(parted) > 0.7 * parted.complete_s


def test_a_blob_is_of_use_with_all_before_it() -> None:
    def found(*arrivals: tuple[float, ...]) -> float:
        named = {f"n{i}": each for i, each in enumerate(arrivals)}
        return usable_s(Prediction(named, 4.0, 1.0, 2.0))

    assert found((1.0, 2.0, 3.0, 4.0)) == 2.5
    assert found((3.0, 4.0, 1.0, 2.0)) == 3.75
    assert found((0.0, 0.0), (2.0, 4.0)) == 1.5
    assert found() == 0.0


def test_a_faster_link_among_targets_makes_lanes() -> None:
    links = even_links(4)
    fast = {(f"n{i}", "fast"): Port(9 * RATE, 9 * RATE) for i in (2, 3)}
    choice = choose(even_task(2, 2), replace(links, ports={**links.ports, **fast}))
    assert choice.plan.strategy == "lanes"
    assert choice.prediction.complete_s <= 0.6 * choice.alternatives["chain"]


@pytest.mark.parametrize(("disk", "strategy"), [(3 * RATE, "disk"), (RATE / 2, "disk-shards")])
def test_disks_are_used_where_they_are_quicker(disk: float, strategy: str) -> None:
    task = even_task(4)
    own = tuple(Holder(target, EVERY, Tier.DISK) for target in task.targets)
    choice = choose(replace(task, holders=(*task.holders, *own)), even_links(5, disks=disk))
    assert choice.plan.strategy == strategy


@pytest.mark.parametrize("strategy", ["star", "chain", "multi_chain", "multi-chain", "binomial"])
def test_a_named_strategy_is_obeyed(strategy: str) -> None:
    choice = choose(even_task(4, 2), even_links(6), strategy)
    assert choice.plan.strategy == strategy.replace("_", "-")
    assert "chain" in choice.alternatives


def test_a_named_strategy_that_does_not_apply_is_refused() -> None:
    with pytest.raises(PlanError, match="lanes does not apply"):
        choose(even_task(2), even_links(3), "lanes")


def test_a_strategy_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(PlanError, match=r"no strategy 'magic'.*star, chain"):
        choose(even_task(2), even_links(3), "magic")


@pytest.mark.parametrize("busy", ["n0", "n1"])
@pytest.mark.parametrize("targets", [1, 2, 5])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_source_that_serves_is_left_alone_while_there_is_another(
    busy: str, targets: int, share: float
) -> None:
    links = even_links(targets + 2)
    ports = {**links.ports, (busy, "net"): Port(RATE, RATE, share * RATE)}
    choice = choose(even_task(targets, 2), replace(links, ports=ports))
    assert all(edge.source != f"{busy}/0" for edge in choice.plan.edges)


def test_a_source_that_serves_is_used_where_it_is_the_only_one() -> None:
    links = even_links(2)
    ports = {**links.ports, ("n0", "net"): Port(RATE, RATE, 0.5 * RATE)}
    choice = choose(even_task(1), replace(links, ports=ports))
    assert choice.plan.edges[0].source == "n0/0"


def test_a_source_that_serves_gives_only_what_the_other_has_not() -> None:
    task = even_task(2, 2)
    task = replace(task, holders=(task.holders[0], Holder("n1/0", EVERY - {4})))
    links = even_links(4)
    ports = {**links.ports, ("n0", "net"): Port(RATE, RATE, 0.5 * RATE)}
    choice = choose(task, replace(links, ports=ports))
    sent = [edge.blobs for edge in choice.plan.edges if edge.source == "n0/0"]
    assert sent == [(4,)]


def test_a_crawling_source_is_no_reason_to_spare_a_busy_one() -> None:
    links = even_links(3)
    ports = {
        **links.ports,
        ("n0", "net"): Port(RATE, RATE, 0.2 * RATE),
        ("n1", "net"): Port(RATE / 100, RATE),
    }
    choice = choose(even_task(1, 2), replace(links, ports=ports))
    assert choice.plan.edges[0].source == "n0/0"


def test_a_plan_of_very_many_edges_is_made_on_request_only() -> None:
    task, links = even_task(64, blobs=66), even_links(65)
    choice = choose(task, links)
    assert choice.plan.strategy == "chain"
    assert "on request" in choice.reasons["binomial"]
    assert len(planned("binomial", task, links).edges) > MANY_EDGES


def test_what_cannot_be_planned_is_explained() -> None:
    with pytest.raises(PlanError, match="nobody has blobs 0, 1"):
        choose(Task((1, 1), ("n0/0",), ()), even_links(1))
