"""Sources that get their own blobs by another operation: how soon they give, and before whom."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.plan import Edge, Holder, Plan, Port, Task, Tier
from blitzgw.scaling.planner.check import faults
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.planner.coarse import grouped
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.thin import thinned
from tests.scaling.planner_kit import PIECE, RATE, all_plans, even_links, planned, predict

BLOBS = 32
SIZE = BLOBS * 8 * PIECE
ONE_S = SIZE / RATE
EVERY = frozenset(range(BLOBS))
LAG_S = 2 * PIECE / RATE


def evenly(begin_s, end_s, there=0):
    """Blobs that come one after another, the first of which are there."""
    step_s = (end_s - begin_s) / (BLOBS - there)
    return (0.0,) * there + tuple(begin_s + step_s * (i + 1) for i in range(BLOBS - there))


def task(due_s, targets=("n1/0",), *more):
    holders = (Holder("n0/0", EVERY, due_s=due_s), *more)
    return Task((SIZE // BLOBS,) * BLOBS, tuple(targets), holders)


def complete_s(due_s, nodes=2, **links):
    asked = task(due_s, [f"n{i}/0" for i in range(1, nodes)])
    return predict(planned("chain", asked, even_links(nodes)), asked, even_links(nodes)).complete_s


@pytest.mark.parametrize("nodes", [2, 6])
@pytest.mark.parametrize(
    ("due_s", "expected_s"),
    [
        ((0.0,) * BLOBS, ONE_S),
        (evenly(0.0, 0.7 * ONE_S, there=10), ONE_S),  # what comes keeps ahead of what goes
        (evenly(0.0, ONE_S), ONE_S),
        (evenly(0.0, 3 * ONE_S), 3 * ONE_S),
        (evenly(0.0, 3 * ONE_S, there=10), 3 * ONE_S),
        (evenly(ONE_S, 2 * ONE_S), 2 * ONE_S),  # nothing comes at first
        (tuple(reversed(evenly(0.0, ONE_S))), 2 * ONE_S - ONE_S / BLOBS),  # the first comes last
    ],
)
def test_nothing_is_sent_before_it_is_there(due_s, expected_s, nodes):
    found_s = complete_s(due_s, nodes)
    lag_s = (nodes - 1) * LAG_S
    assert expected_s - 1e-6 <= found_s <= 1.01 * expected_s + lag_s


def test_each_blob_is_later_than_at_its_source():
    due_s = evenly(0.2 * ONE_S, 2 * ONE_S, there=4)
    asked, links = task(due_s), even_links(2)
    arrivals = predict(planned("chain", asked, links), asked, links).arrivals["n1/0"]
    assert all(at_s >= due - 1e-6 for at_s, due in zip(arrivals, due_s, strict=True))


def promised(links, *nodes):
    """A twentieth is left of what these nodes send."""
    ports = {
        (node, net): replace(port, tx_bytes_per_s=RATE / 20) if node in nodes else port
        for (node, net), port in links.ports.items()
    }
    return replace(links, ports=ports)


def test_those_come_first_that_have_everything_unless_they_have_promised_it():
    coming, whole = Holder("n0/0", EVERY, due_s=evenly(0, ONE_S, 8)), Holder("n9/0", EVERY)
    asked = Task((SIZE // BLOBS,) * BLOBS, ("n1/0",), (coming, whole))
    links = even_links(10)
    for near in (links, replace(links, zones={"n0": "z", "n1": "z", "n9": "y"})):
        ground = Ground(asked, near)
        assert ground.sources() == ["n9/0", "n0/0"]
        assert ground.ranked(ground.givers(), "n1/0", EVERY) == ["n9/0", "n0/0"]
    assert Ground(asked, promised(links, "n9")).sources() == ["n0/0"]


def test_who_gets_the_last_layers_first_is_a_slow_source():
    asked = task(tuple(reversed(evenly(0.0, ONE_S))), ["n1/0"], Holder("n2/0", EVERY))
    ground = Ground(asked, even_links(3))
    assert ground.giving_rate("n0/0", "n1/0") == pytest.approx(RATE / 2, rel=0.05)
    assert ground.sources()[0] == "n2/0"


@pytest.mark.parametrize(("quick", "by"), [(True, "n0/0"), (False, "")])
def test_disks_are_read_where_they_are_sooner(quick, by):
    due_s = evenly(0, ONE_S if quick else 40 * ONE_S, 2)
    targets = ("n1/0", "n2/0", "n3/0")
    disks = [Holder(target, EVERY, Tier.DISK) for target in targets]
    made = choose(task(due_s, targets, *disks), even_links(4, disks=RATE / 5))
    assert {edge.source for edge in made.plan.edges} >= ({by} if by else set())
    assert bool(made.plan.reads) is not quick
    assert made.prediction.complete_s < 3 * ONE_S


def test_what_is_brought_need_not_be_brought_by_the_plan():
    asked = task(evenly(0, ONE_S), ["n1/0", "n2/0"])
    links = even_links(3)
    for name, plan in all_plans(asked, links).items():
        assert faults(plan, asked, links) == [], name
    edges = (Edge("n0/0", "n1/0", tuple(range(BLOBS)), "net"),)
    twice = Plan("bad", ("n1/0",), (*edges, Edge("n1/0", "n0/0", (3,), "net")))
    assert "n0/0 has blob 3 already" in faults(twice, task(evenly(0, ONE_S)))


def test_a_group_is_due_with_its_last_blob():
    made = grouped(task(evenly(0.0, 1.0, there=16)), 4)
    holder = made.task.holders[0]
    assert len(holder.due_s) == len(made.groups) == 4
    assert holder.due_s == pytest.approx((0.0, 0.0, 0.5, 1.0))


def test_of_very_many_the_last_ones_are_left_out():
    targets = [f"t{i}/0" for i in range(512)]
    sources = [Holder(f"s{i}/0", EVERY, due_s=evenly(0.0, 1.0 + i)) for i in range(5)]
    links = even_links(1)
    ports = {(node.split("/")[0], "net"): Port(RATE, RATE) for node in targets}
    ports |= {(f"s{i}", "net"): Port(RATE, RATE) for i in range(6)}
    asked = Task((SIZE // BLOBS,) * BLOBS, tuple(targets), (*sources, Holder("s5/0", EVERY)))
    kept = thinned(asked, replace(links, ports=ports)).holders
    assert [holder.worker for holder in kept] == ["s0/0", "s5/0"]


@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.0]), min_size=6, max_size=6),
    st.integers(1, 4),
    st.sampled_from([1e6, RATE, 1e9]),
)
@settings(deadline=None)
def test_whatever_is_due_when_plans_complete_and_not_before_it(due_s, targets, rate):
    every = frozenset(range(6))
    holders = (Holder("n0/0", every, due_s=tuple(due_s)),)
    asked = Task((PIECE * 4,) * 6, tuple(f"n{i}/0" for i in range(1, targets + 1)), holders)
    links = even_links(targets + 1, rate=rate)
    for name, plan in all_plans(asked, links).items():
        assert faults(plan, asked, links) == [], name
        done = predict(plan, asked, links)
        least_s = 6 * PIECE * 4 / rate
        assert done.complete_s >= max(least_s, *due_s) * (1 - 1e-6), name
        assert done.complete_s <= (max(due_s) + targets * 2 * least_s) * 1.01 + 1e-3, name


def test_many_that_are_coming_do_not_hold_up_a_plan():
    targets = [f"n{i}/0" for i in range(64, 96)]
    holders = [Holder(f"n{i}/0", EVERY, due_s=evenly(0.0, ONE_S, there=i % 16)) for i in range(64)]
    asked = Task((SIZE // BLOBS,) * BLOBS, tuple(targets), tuple(holders))
    links = even_links(96)
    begun = time.process_time()
    choose(asked, links)
    there = Task(asked.blob_bytes, asked.targets, tuple(replace(h, due_s=()) for h in holders))
    middle = time.process_time()
    choose(there, links)
    assert middle - begun < 5 * (time.process_time() - middle) + 0.2
