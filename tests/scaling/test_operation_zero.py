"""Operations from zero: targets that serve together, with no home, in a virtual cluster."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blitzgw.core.span import Span
from blitzgw.scaling.duties import StageInstance, UnstageInstance
from blitzgw.scaling.planner.choose import choose
from tests.scaling import operation_kit
from tests.scaling.operation_kit import World
from tests.scaling.test_operation_helping import busy, last, told

SEEDS = 24
LAYERS = 10
BLOB_BYTES = 10**8
"""Of a blob: 0.1 s of a disk."""


@pytest.fixture(autouse=True)
def _a_large_model(monkeypatch):
    model = replace(operation_kit.MODEL, blob_bytes=(BLOB_BYTES,) * (LAYERS + 2))
    monkeypatch.setattr(operation_kit, "MODEL", model)


def stagings(world):
    return [e for _, _, e in world.effects if isinstance(e, StageInstance | UnstageInstance)]


def slow_network(nodes, disks, seed=0, **more):
    """Nodes with one device each, that get a blob from each other in a second."""
    return World(seed, nodes=nodes, devices=1, disks=disks, rate=1e8, choose=choose, **more)


@pytest.mark.parametrize("policy", ["", "auto", "pipeline"])
def test_targets_with_disks_of_their_own_serve_together(policy):
    world = slow_network(2, 2)
    world.scale(2, policy=policy)
    world.run(5.0)
    facts = last(world)
    assert (facts.state, facts.policy, facts.pairs) == ("done", "pipeline", ())
    ((lead, end),) = facts.pipelines
    assert (lead.span, end.span) == (Span(0, 5), Span(5, 10))
    assert {e.instance: (e.span, e.next) for e in stagings(world)} == {
        f"m@{lead.worker}": (lead.span, f"m@{end.worker}"),
        f"m@{end.worker}": (end.span, ""),
    }
    [event] = told(facts, "policy")
    assert "nobody serves: targets have the model together after 0.6" in event.detail
    [event] = told(facts, "pipeline")
    assert event.about == lead.worker
    world.assert_quiet()


def test_targets_of_two_disks_elsewhere_do_so_too():
    world = slow_network(4, 0)
    for node in world.nodes[2:]:
        node.disk = node.draining = True
    world.scale(2)
    world.run(1.0)
    facts = last(world)
    assert (facts.policy, facts.strategy, len(facts.pipelines)) == ("pipeline", "binomial", 1)


@pytest.mark.parametrize(
    ("nodes", "disks", "order"),
    [
        (2, 2, {"policy": "stop"}),
        (2, 2, {"strategy": "disk"}),
        (1, 1, {}),
        (3, 1, {}),
    ],
)
def test_not_where_it_is_not_wanted_or_no_sooner(nodes, disks, order):
    world = slow_network(nodes, disks)
    world.scale(min(nodes, 2), **order)
    world.run(40.0)
    facts = last(world)
    assert (facts.state, facts.policy, facts.pipelines) == ("done", "stop", ())
    assert stagings(world) == []
    world.assert_quiet()


def test_what_is_there_in_a_moment_is_not_worth_it(monkeypatch):
    model = replace(operation_kit.MODEL, blob_bytes=(10**6,) * (LAYERS + 2))
    monkeypatch.setattr(operation_kit, "MODEL", model)
    world = slow_network(2, 2)
    world.scale(2)
    world.run(5.0)
    assert (last(world).policy, stagings(world)) == ("stop", [])


def test_with_a_home_targets_help_it_as_ever():
    world = slow_network(3, 3)
    busy(world.put(0))
    world.scale(3)
    world.run(5.0)
    facts = last(world)
    assert (facts.policy, facts.pipelines, len(facts.pairs)) == ("zigzag", (), 2)


def test_who_is_left_of_a_pipeline_goes_on_alone(monkeypatch):
    monkeypatch.setattr(operation_kit, "BLOB_S", 0.2)
    world = slow_network(3, 3)
    world.scale(2)
    world.run(0.5)
    (stages,) = last(world).pipelines
    lost = next(s for s in stages if not s.worker.startswith("n0/"))
    world.crash(world.by_boot[f"boot-{lost.worker.partition('/')[0]}"])
    world.run(60.0)
    facts = last(world)
    assert (facts.state, facts.pipelines) == ("done", ())
    undone = [e for e in stagings(world) if isinstance(e, UnstageInstance)]
    left = [s.worker for s in stages if s is not lost]
    assert [e.instance for e in undone] == [f"m@{worker}" for worker in left]
    world.assert_quiet()


def test_a_dry_run_tells_what_would_serve_first():
    world = slow_network(2, 2)
    world.scale(2, dry_run=True)
    world.run(1.0)
    facts = world.nodes[0].answers[-1].operation
    assert (facts.policy, len(facts.pipelines)) == ("pipeline", 1)
    assert stagings(world) == []


@pytest.mark.parametrize("part", range(2))
def test_whatever_goes_wrong_from_zero_stages_are_whole_and_stay(monkeypatch, part):
    monkeypatch.setattr(operation_kit, "BLOB_S", 0.1)
    seen = 0
    for seed in range(part * SEEDS // 2, (part + 1) * SEEDS // 2):
        rng = random.Random(seed)
        world = slow_network(5, rng.randint(2, 5), seed)
        world.scale(rng.randint(2, 4))
        world.after(rng.uniform(0, 1.5), world.crash, rng.choice(world.nodes[1:]))
        a, b = rng.sample(world.nodes, 2)
        world.after(rng.uniform(0, 1.5), world.lose_link, a, b, rng.uniform(0, 0.5))
        world.run(120.0)
        spans: dict[str, tuple[Span, str]] = {}
        for _, _, effect in world.effects:
            if isinstance(effect, StageInstance):
                staged = (effect.span, effect.next)
                assert spans.setdefault(effect.instance, staged) == staged, (seed, effect)
        for span, behind in spans.values():
            assert (span.stop == LAYERS) == (not behind), seed
        seen += bool(spans)
        world.assert_quiet()
    assert seen >= SEEDS // 6
