"""A plan that is wrong in any way is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Edge, Holder, Plan, Read, Task, Tier
from blitzgw.scaling.planner.check import faults, undelivered
from tests.scaling.planner_kit import crossed, even_links

TASK = Task(
    (10, 10, 10),
    ("n1/0", "n2/0"),
    (
        Holder("n0/0", frozenset({0, 1, 2})),
        Holder("n2/0", frozenset({2})),
        Holder("n1/0", frozenset({0}), Tier.HOST),
    ),
)
READ = Read("n1/0", Tier.HOST, (0,))
GOOD = Plan(
    "by hand",
    TASK.targets,
    (Edge("n0/0", "n1/0", (1, 2), "net"), Edge("n1/0", "n2/0", (0, 1), "net")),
    (READ,),
)


def edges(*made: Edge) -> Plan:
    return replace(GOOD, edges=made)


FIRST, SECOND = GOOD.edges

WRONG = {
    "missing": (edges(FIRST), "does not get blob"),
    "no read": (replace(GOOD, reads=()), "does not get blob 0"),
    "twice": (edges(FIRST, SECOND, Edge("n0/0", "n2/0", (1,), "net")), "gets blob 1 2 times"),
    "read and sent": (edges(replace(FIRST, blobs=(0, 1, 2)), SECOND), "gets blob 0 2 times"),
    "has it": (edges(FIRST, replace(SECOND, blobs=(0, 1, 2))), "has blob 2 already"),
    "from nothing": (edges(FIRST, replace(SECOND, source="n3/0")), "n3/0 sends blob 0"),
    "a circle": (
        edges(
            replace(FIRST, blobs=(2,)),
            Edge("n2/0", "n1/0", (1,), "net"),
            SECOND,
        ),
        "waits for itself",
    ),
    "no network": (edges(FIRST, replace(SECOND, network="fast")), "do not share network 'fast'"),
    "to itself": (edges(FIRST, SECOND, Edge("n0/0", "n0/0", (1,), "")), "to itself"),
    "no blobs": (edges(FIRST, SECOND, Edge("n0/0", "n2/0", (), "net")), "without blobs"),
    "two edges": (
        edges(replace(FIRST, blobs=(1,)), replace(FIRST, blobs=(2,)), SECOND),
        "two edges",
    ),
    "unknown blob": (edges(FIRST, replace(SECOND, blobs=(0, 1, 7))), "blob 7"),
    "not on disk": (replace(GOOD, reads=(replace(READ, tier=Tier.DISK),)), "on its disk"),
    "reads nothing": (
        replace(GOOD, reads=(READ, Read("n1/0", Tier.DISK, ()))),
        "reads nothing",
    ),
    "other targets": (replace(GOOD, targets=("n1/0",)), "other targets"),
    "local over a network": (
        edges(FIRST, SECOND, Edge("n0/0", "n0/1", (0,), "net")),
        "on one node",
    ),
}


def test_a_right_plan_has_no_faults() -> None:
    assert faults(GOOD, TASK, even_links(4)) == []


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_is_found_out(case: str) -> None:
    plan, words = WRONG[case]
    assert any(words in fault for fault in faults(plan, TASK, even_links(4)))


def test_orders_that_wait_for_each_other_are_found_out() -> None:
    task, plan = crossed()
    found = faults(plan, task, even_links(4))
    assert found
    assert all("waits for itself" in fault for fault in found)
    assert {("n0/0", 0), ("n1/0", 1), ("n3/0", 2)} <= set(undelivered(plan, task))
