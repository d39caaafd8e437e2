"""Predictions against the figures of the algorithms, and against sums done by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from blitzgw.core.plan import Edge, Holder, Links, Plan, Port, Read, Task, Tier
from tests.scaling.planner_kit import PIECE, RATE, crossed, even_links, even_task, planned, predict

SIZE = 32 * 8 * PIECE
ONE_S = SIZE / RATE
"""What one copy takes over one link."""

COUNTS = (1, 2, 3, 5, 8)


@pytest.mark.parametrize("targets", COUNTS)
def test_a_star_takes_n_times_as_long(targets: int) -> None:
    task, links = even_task(targets), even_links(targets + 1)
    done = predict(planned("star", task, links), task, links)
    assert done.complete_s == pytest.approx(targets * ONE_S, rel=1e-3)
    assert done.first_blob_s == pytest.approx(targets * ONE_S / 32, rel=1e-3)


@pytest.mark.parametrize("targets", [*COUNTS, 64])
@pytest.mark.parametrize("hop_s", [0.0, 0.001])
def test_a_chain_is_flat(targets: int, hop_s: float) -> None:
    task, links = even_task(targets), even_links(targets + 1, hop_s=hop_s)
    done = predict(planned("chain", task, links), task, links)
    latency_s = (targets - 1) * (PIECE / RATE + hop_s)
    assert done.complete_s == pytest.approx(ONE_S + latency_s, rel=2e-3)
    first = done.arrivals[planned("chain", task, links).edges[0].target]
    assert first == pytest.approx([ONE_S * (i + 1) / 32 for i in range(32)], rel=1e-3)


def test_connecting_counts_once() -> None:
    task = even_task(6)
    quick, slow = even_links(7), even_links(7, setup_s=0.3)
    plan = planned("chain", task, quick)
    more_s = predict(plan, task, slow).complete_s - predict(plan, task, quick).complete_s
    assert more_s == pytest.approx(0.3, abs=1e-3)


def test_smaller_pieces_make_a_shorter_chain() -> None:
    task = even_task(8)
    coarse, fine = (even_links(9, piece_bytes=size) for size in (4 * PIECE, PIECE // 4))
    plan = planned("chain", task, fine)
    assert predict(plan, task, fine).complete_s < predict(plan, task, coarse).complete_s


@pytest.mark.parametrize(("sources", "most"), [(2, 0.6), (4, 0.35)])
def test_k_way_covers_early(sources: int, most: float) -> None:
    task, links = even_task(8 - sources, sources), even_links(8)
    done = predict(planned("binomial", task, links), task, links)
    assert done.coverage_s <= most * ONE_S
    assert done.coverage_s >= ONE_S / sources * 0.999
    assert done.complete_s <= 1.1 * ONE_S


@pytest.mark.parametrize("targets", range(1, 9))
def test_a_binomial_pipeline_is_near_its_steps(targets: int) -> None:
    """Dataflow shares a node's tx among its edges, which costs some of what the steps promise."""
    task, links = even_task(targets), even_links(targets + 1)
    done = predict(planned("binomial", task, links), task, links)
    assert ONE_S * 0.999 <= done.complete_s <= 1.25 * ONE_S


def test_two_chains_are_no_slower_than_one() -> None:
    task, links = even_task(6, 2), even_links(8)
    one = predict(planned("chain", task, links), task, links).complete_s
    two = predict(planned("multi-chain", task, links), task, links).complete_s
    assert two <= one
    assert two == pytest.approx(ONE_S + 2 * PIECE / RATE, rel=2e-3)


@pytest.mark.parametrize("lanes", [2, 4])
def test_lanes_divide_the_time(lanes: int) -> None:
    task, links = even_task(lanes, lanes), even_links(2 * lanes)
    fast = {(f"n{i}", "fast"): Port(10 * RATE, 10 * RATE) for i in range(lanes, 2 * lanes)}
    joined = replace(links, ports={**links.ports, **fast})
    done = predict(planned("lanes", task, joined), task, joined)
    assert done.complete_s <= 1.1 * ONE_S / lanes
    assert done.coverage_s <= 1.05 * ONE_S / lanes


@pytest.mark.parametrize("targets", [2, 4, 8])
def test_disk_shards_cover_after_a_part_of_a_disk(targets: int) -> None:
    every = frozenset(range(32))
    workers = tuple(f"n{i}/0" for i in range(targets))
    holders = tuple(Holder(worker, every, Tier.DISK) for worker in workers)
    task = Task((SIZE // 32,) * 32, workers, holders)
    links = even_links(targets, disks=RATE / 2)
    done = predict(planned("disk-shards", task, links), task, links)
    alone = predict(planned("disk", task, links), task, links)
    assert alone.complete_s == pytest.approx(2 * ONE_S, rel=1e-3)
    assert done.coverage_s == pytest.approx(2 * ONE_S / targets, rel=1e-2)
    bound_s = max(2 * ONE_S / targets, (targets - 1) / targets * ONE_S)
    assert bound_s * 0.999 <= done.complete_s <= bound_s + 0.1 * ONE_S


def test_both_directions_of_a_port_are_its_own() -> None:
    """Two workers that exchange halves are done in half the time of one copy."""
    low, high = frozenset(range(16)), frozenset(range(16, 32))
    workers = ("n0/0", "n1/0")
    task = Task((SIZE // 32,) * 32, workers, (Holder("n0/0", low), Holder("n1/0", high)))
    links = even_links(2)
    done = predict(planned("chain", task, links), task, links)
    assert done.complete_s == pytest.approx(ONE_S / 2, rel=1e-3)


def test_serving_takes_its_share_of_tx_only() -> None:
    task, links = even_task(1), even_links(2)
    sending = replace(links, ports={**links.ports, ("n0", "net"): Port(RATE, RATE, 0.75 * RATE)})
    taking = replace(links, ports={**links.ports, ("n1", "net"): Port(RATE, RATE, 0.75 * RATE)})
    plan = planned("star", task, links)
    assert predict(plan, task, sending).complete_s == pytest.approx(4 * ONE_S, rel=1e-3)
    assert predict(plan, task, taking).complete_s == pytest.approx(ONE_S, rel=1e-3)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_each_worker_may_send_is_shared_by_its_edges_on_all_networks(workers: int) -> None:
    """Two workers of a node together send twice as much as one may, where its ports allow it."""
    nodes, every = ("n0", "n1", "n2"), tuple(range(32))
    networks = dict(zip(nodes, ("net", "net", "other"), strict=True))
    ports = {(node, network): Port(RATE, RATE) for node, network in networks.items()}
    for network in ("net", "other"):
        ports["n0", network] = Port(RATE, RATE, worker_tx_bytes_per_s=RATE / 4)
    sources = [f"n0/{i % workers}" for i in range(2)]
    targets = ("n1/0", "n2/0")
    task = Task(
        (SIZE // 32,) * 32,
        targets,
        tuple(Holder(s, frozenset(every)) for s in dict.fromkeys(sources)),
    )
    edges = zip(sources, targets, strict=True)
    plan = Plan(
        "two", targets, tuple(Edge(s, t, every, networks[t.partition("/")[0]]) for s, t in edges)
    )
    done = predict(plan, task, Links(ports=ports))
    assert done.complete_s == pytest.approx(8 / workers * ONE_S, rel=1e-3)


def test_a_full_port_still_gives_a_little() -> None:
    task, links = even_task(1), even_links(2)
    full = replace(links, ports={**links.ports, ("n0", "net"): Port(RATE, RATE, 2 * RATE)})
    assert predict(planned("star", task, full), task, full).complete_s < 100 * ONE_S


def test_a_slow_disk_paces_what_is_sent_from_it() -> None:
    task = Task((SIZE // 32,) * 32, ("n1/0",), (Holder("n0/0", frozenset(range(32)), Tier.DISK),))
    links = even_links(2, disks=RATE / 5)
    done = predict(planned("chain", task, links), task, links)
    assert done.complete_s == pytest.approx(5 * ONE_S + PIECE / RATE, rel=2e-3)


def test_a_relay_that_falls_behind_does_not_hold_up_its_source() -> None:
    links = even_links(3)
    slow = replace(links, ports={**links.ports, ("n2", "net"): Port(RATE, RATE / 4)})
    task = even_task(2)
    done = predict(planned("chain", task, slow), task, slow)
    assert done.arrivals["n1/0"][-1] == pytest.approx(ONE_S, rel=1e-3)
    assert done.arrivals["n2/0"][-1] == pytest.approx(4 * ONE_S, rel=1e-2)


def test_a_late_edge_catches_up_with_what_comes_in() -> None:
    """What comes in slowly is passed on as it comes, and what is there follows at full rate."""
    links = Links(
        ports={
            ("a", "slow"): Port(RATE / 4, RATE / 4),
            ("b", "net"): Port(RATE, RATE),
            ("b", "slow"): Port(RATE / 4, RATE / 4),
            ("c", "net"): Port(RATE, RATE),
        },
        piece_bytes=PIECE,
    )
    size = 64 * PIECE
    task = Task(
        (size, size), ("b/0", "c/0"), (Holder("a/0", frozenset({0})), Holder("b/0", frozenset({1})))
    )
    plan = Plan(
        "by hand",
        task.targets,
        (Edge("a/0", "b/0", (0,), "slow"), Edge("b/0", "c/0", (0, 1), "net")),
    )
    done = predict(plan, task, links)
    first_s = size / (RATE / 4)
    assert done.arrivals["b/0"] == pytest.approx((first_s, 0.0), rel=1e-3)
    assert done.arrivals["c/0"][0] == pytest.approx(first_s + PIECE / RATE, rel=1e-3)
    assert done.arrivals["c/0"][1] == pytest.approx(first_s + (PIECE + size) / RATE, rel=1e-3)


TWO = Task((10, 10), ("n1/0",), (Holder("n0/0", frozenset({0, 1})),))


@pytest.mark.parametrize(
    "edges",
    [
        (Edge("n0/0", "n1/0", (0,), "net"),),
        (Edge("n2/0", "n1/0", (0, 1), "net"),),
        (Edge("n0/0", "n1/0", (0, 1), "no such"),),
        (Edge("n0/0", "n1/0", (0, 1, 1), "net"),),
        (Edge("n1/0", "n2/0", (0, 1), "net"), Edge("n2/0", "n1/0", (0, 1), "net")),
    ],
)
def test_a_plan_that_cannot_complete_is_an_error(edges: tuple[Edge, ...]) -> None:
    with pytest.raises(ValueError, match=r"blob|network"):
        predict(Plan("bad", ("n1/0",), edges), TWO, even_links(3))


def test_orders_that_wait_for_each_other_are_an_error() -> None:
    task, plan = crossed()
    with pytest.raises(ValueError, match="blob"):
        predict(plan, task, even_links(4))


def test_reads_share_a_disk() -> None:
    every = frozenset({0})
    task = Task((1000,), ("n0/0", "n0/1"), (Holder("n0/0", every, Tier.DISK),))
    reads = (Read("n0/0", Tier.DISK, (0,)), Read("n0/1", Tier.DISK, (0,)))
    done = predict(Plan("x", task.targets, (), reads), task, Links(ports={}, disks={"n0": 100.0}))
    assert done.complete_s == pytest.approx(20.0)


def test_prediction_is_quick() -> None:
    """A bound that a slow and busy machine keeps too: it is the event count that matters."""
    task, links = even_task(64, blobs=66), even_links(65)
    plan = planned("chain", task, links)
    turns: list[float] = []
    predict(plan, task, links, lambda now_s, *_: turns.append(now_s))
    assert len(turns) <= 4 * 64
    begin = time.perf_counter()
    predict(plan, task, links)
    assert time.perf_counter() - begin < 1.0
