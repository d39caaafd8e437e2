"""Sources that differ in their names alone: plans are the same however many are left out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blitzgw.core.plan import Holder, Links, Port, Task, Tier
from blitzgw.scaling.planner import choose as chosen
from blitzgw.scaling.planner.choose import STRATEGIES, choose
from blitzgw.scaling.planner.thin import thinned

RATE, BLOBS = 100.0, 6
EVERYTHING = frozenset(range(BLOBS))


def crowded(seed: int) -> tuple[Task, Links]:
    """Return many sources of few kinds, some with parts only, and a few targets."""
    rng = random.Random(seed)
    nodes = [f"n{i}" for i in range(24)]
    kinds = [
        (Port(RATE, RATE), Tier.DISK, "r1"),
        (Port(RATE, RATE), None, "r1"),
        (Port(RATE / 4, RATE), None, "r2"),
        (Port(RATE, RATE, RATE / 2), None, ""),
    ]
    drawn = rng.choices(kinds, weights=[rng.choice((0, 1, 5)) + 0.01 for _ in kinds], k=24)
    ports = {(name, "net"): port for name, (port, _, _) in zip(nodes, drawn, strict=True)}
    zones = {name: zone for name, (_, _, zone) in zip(nodes, drawn, strict=True)}
    disks = {name: RATE / rng.choice((2, 10)) for name in nodes}
    targets = tuple(f"{name}/t" for name in rng.sample(nodes, rng.randint(1, 4)))
    holders = [
        Holder(f"{name}/0", EVERYTHING, tier)
        for name, (_, tier, _) in zip(nodes, drawn, strict=True)
        if rng.random() < 0.9
    ]
    holders.append(Holder("n5/1", frozenset({0, 1})))
    rng.shuffle(holders)
    return Task((50,) * BLOBS, targets, tuple(holders)), Links(ports, disks, {}, zones)


@pytest.mark.parametrize("strategy", ["", *STRATEGIES])
def test_a_plan_is_the_same_without_sources_that_are_like_others(strategy, monkeypatch):
    fewer = 0
    for seed in range(60):
        task, links = crowded(seed)
        fewer += len(thinned(task, links).holders) < len(task.holders)
        found = [_plan(task, links, strategy)]
        with monkeypatch.context() as patched:
            patched.setattr(chosen, "thinned", lambda task, _: task)
            found.append(_plan(task, links, strategy))
        assert found[0] == found[1], seed
    assert fewer > 30


def _plan(task: Task, links: Links, strategy: str) -> object:
    try:
        return choose(task, links, strategy)
    except chosen.PlanError as error:
        return str(error)


def test_of_thousands_of_checkpoints_one_is_left_for_a_target():
    nodes = [f"n{i}" for i in range(3000)]
    holders = tuple(Holder(f"{name}/0", EVERYTHING, Tier.DISK) for name in nodes)
    links = Links({(name, "net"): Port(RATE, RATE) for name in ("t", *nodes)})
    left = thinned(Task((50,) * BLOBS, ("t/0",), holders), links)
    assert [holder.worker for holder in left.holders] == ["n0/0"]


def test_holders_that_are_not_named_count_where_they_are_very_many():
    nodes = [f"n{i}" for i in range(1200)]
    holders = tuple(Holder(f"{name}/0", EVERYTHING, Tier.DISK) for name in nodes)
    links = Links({(name, "net"): Port(RATE, RATE) for name in ("t", "p", *nodes)})
    part = Holder("p/0", frozenset({0}))
    whole = Task((50,) * BLOBS, ("t/0",), (*holders, part))
    few = Task((50,) * BLOBS, ("t/0",), (holders[0], part), others=1199)
    assert thinned(whole, links).holders == thinned(few, links).holders == holders[:1]
    assert thinned(replace(few, others=3), links).holders == few.holders
