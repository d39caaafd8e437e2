"""Operations whose targets serve together while they load, in a virtual cluster."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blitzgw.core.live import LivePolicy, Pair, StagePlan
from blitzgw.core.operation import Claim, Engage
from blitzgw.core.span import Span
from blitzgw.scaling.duties import PairInstance, StageInstance, UnstageInstance
from blitzgw.scaling.events import InstanceServes, MessageCame
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.steward import Steward
from tests.scaling import operation_kit
from tests.scaling.operation_kit import World
from tests.scaling.test_operation_helping import busy, last, told

SEEDS = 40
LAYERS = 10


@pytest.fixture(autouse=True)
def _a_model_of_more_blobs(monkeypatch):
    model = replace(operation_kit.MODEL, blob_bytes=(100,) * (LAYERS + 2))
    monkeypatch.setattr(operation_kit, "MODEL", model)


def world_of(nodes, sources=2, seed=0):
    """Nodes with one device each, the first of which serve; the planner is the real one."""
    world = World(seed, nodes=nodes, devices=1, rate=1e3, choose=choose)
    for number in range(sources):
        busy(world.put(number))
    return world


def stagings(world):
    return [e for _, _, e in world.effects if isinstance(e, StageInstance | UnstageInstance)]


def pairings(world):
    return [e for _, _, e in world.effects if isinstance(e, PairInstance)]


@pytest.mark.parametrize("strategy", ["", "binomial"])
def test_targets_of_two_sources_make_a_pipeline_that_the_first_one_leads(strategy):
    world = world_of(4)
    world.scale(4, policy="pipeline", strategy=strategy)
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.policy, facts.strategy) == ("done", "pipeline", "binomial")
    ((lead, end),) = facts.pipelines
    assert {lead.worker, end.worker} == {"n2/g0", "n3/g0"}
    assert (lead.span, end.span) == (Span(0, 5), Span(5, 10))
    assert {pair.worker for pair in facts.pairs} == {lead.worker, end.worker}
    assert {e.instance: (e.span, e.next) for e in stagings(world)} == {
        f"m@{lead.worker}": (lead.span, f"m@{end.worker}"),
        f"m@{end.worker}": (end.span, ""),
    }
    assert {e.instance: e.policy for e in pairings(world)} == {
        f"m@{lead.worker}": LivePolicy.PIPELINE,
        f"m@{end.worker}": LivePolicy.STOP,
    }, "the others help when they are complete"
    (event,) = told(facts, "pipeline")
    assert event.about == lead.worker
    assert event.detail.startswith(f"{lead.worker} [0, 5) → {end.worker} [5, 10), predicted 0.")
    world.assert_quiet()


def test_who_has_no_partner_helps_a_home():
    world = world_of(5)
    world.scale(5, policy="pipeline")
    world.run(3.0)
    facts = last(world)
    ((lead, end),) = facts.pipelines
    assert {pair.worker for pair in facts.pairs} == {"n2/g0", "n3/g0", "n4/g0"}
    waiting = [e.instance for e in pairings(world) if e.policy is LivePolicy.STOP]
    assert waiting == [f"m@{end.worker}"]
    assert lead.worker != end.worker
    world.assert_quiet()


@pytest.mark.parametrize(
    "order",
    [{"policy": "zigzag"}, {"policy": "pipeline", "strategy": "star"}, {"policy": ""}],
)
def test_only_where_it_is_wanted_and_the_strategy_lets_them(order):
    world = world_of(4)
    world.scale(4, **order)
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.pipelines, stagings(world)) == ("done", (), [])
    assert {pair.worker for pair in facts.pairs} == {"n2/g0", "n3/g0"}


def test_with_one_source_each_helps_with_its_home_as_a_stage():
    world = world_of(3, sources=1)
    world.scale(3, policy="pipeline")
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.policy, facts.pipelines) == ("done", "pipeline", ())
    assert len(facts.pairs) == len(pairings(world)) == 2


def test_with_one_source_and_a_target_that_has_a_copy_the_others_make_pipelines():
    world = world_of(6, sources=1)
    world.nodes[5].devices["g0"].copy = set(range(LAYERS + 2))
    world.scale(6, policy="pipeline")
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.strategy) == ("done", "binomial")
    assert {order.worker for order in facts.reads} == {"n5/g0"}
    staged = [stage.worker for stages in facts.pipelines for stage in stages]
    assert sorted(staged) == ["n1/g0", "n2/g0", "n3/g0", "n4/g0"]
    assert all(len(stages) == 2 for stages in facts.pipelines)
    world.assert_quiet()


def test_a_dry_run_tells_of_pipelines():
    world = world_of(4)
    world.scale(4, policy="pipeline", dry_run=True)
    world.run(1.0)
    facts = world.nodes[0].answers[-1].operation
    assert len(facts.pipelines) == 1
    assert len(told(facts, "pipeline")) == 1
    assert stagings(world) == []


def test_a_pipeline_whose_member_dies_is_over_and_the_others_help(monkeypatch):
    monkeypatch.setattr(operation_kit, "BLOB_S", 1.5)
    world = world_of(6)
    world.scale(6, policy="pipeline")
    world.run(0.5)
    first, second = last(world).pipelines
    world.crash(world.by_boot[f"boot-{first[1].worker.partition('/')[0]}"])
    world.run(4.0)
    facts = last(world)
    assert facts.pipelines == (second,), "the other one stays as it is"
    lead = f"m@{first[0].worker}"
    assert [e for e in stagings(world) if isinstance(e, UnstageInstance)] == [
        UnstageInstance("g0", lead)
    ]
    assert first[0].worker in {pair.worker for pair in facts.pairs}
    world.run(40.0)
    facts = last(world)
    assert facts.state == "done"
    assert len([e for e in stagings(world) if isinstance(e, StageInstance)]) == 4
    world.assert_quiet()


@pytest.mark.parametrize("part", range(4))
def test_whatever_goes_wrong_stages_are_whole_and_stay(monkeypatch, part):
    monkeypatch.setattr(operation_kit, "BLOB_S", 0.6)
    seen = 0
    for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
        rng = random.Random(seed)
        world = world_of(7, rng.randint(2, 3), seed)
        world.scale(rng.randint(5, 7), policy="pipeline")
        world.after(rng.uniform(0, 2), world.crash, rng.choice(world.nodes[1:]))
        a, b = rng.sample(world.nodes, 2)
        world.after(rng.uniform(0, 2), world.lose_link, a, b, rng.uniform(0, 0.5))
        world.run(90.0)
        spans: dict[str, tuple[Span, str]] = {}
        for _, _, effect in world.effects:
            if isinstance(effect, StageInstance):
                assert spans.setdefault(effect.instance, (effect.span, effect.next)) == (
                    effect.span,
                    effect.next,
                ), (seed, effect)
        for span, behind in spans.values():
            assert (span.stop == LAYERS) == (not behind), seed
        seen += bool(spans)
        world.assert_quiet()
    assert seen >= SEEDS // 8


# -- the steward -----------------------------------------------------------------------------------


def engaged(epoch, *pipelines, pairs=()):
    return Engage(
        "op", epoch, "m", "d", "w", (), policy=LivePolicy.PIPELINE, pairs=pairs,
        pipelines=pipelines,
    )  # fmt: skip


CHAIN = (
    StagePlan("n/g0", Span(0, 3)),
    StagePlan("far/x", Span(3, 5)),
    StagePlan("n/g1", Span(5, 8)),
)


class House:
    """Premises of a node whose devices are free and know every model."""

    def claim(self, _device):
        return 1

    def objection(self, _device, _model, _digest):
        return ""

    def device_of(self, _instance):
        return None

    def has_weights(self, _device, _weights):
        return True

    def rates(self):
        return {}


def test_a_steward_tells_its_own_stages_whom_they_are_before():
    steward = Steward("n", "boot", House())

    def say(message):
        effects = steward.handle(MessageCame("owner", message), 0.0)
        steward.check_integrity()
        staged = (StageInstance, UnstageInstance, PairInstance)
        return [effect for effect in effects if isinstance(effect, staged)]

    for device in ("g0", "g1"):
        assert say(Claim("op", device, 1, "m", "d")) == []
    pair = (Pair("n/g0", "m@home/x"), Pair("n/g1", "m@home/y"))
    first = StageInstance("g0", "m@n/g0", Span(0, 3), "m@far/x")
    assert say(engaged(1, CHAIN, pairs=pair)) == [
        PairInstance("g0", "m@n/g0", "m@home/x", LivePolicy.PIPELINE),
        first,
        PairInstance("g1", "m@n/g1", "m@home/y", LivePolicy.STOP),
        StageInstance("g1", "m@n/g1", Span(5, 8), ""),
    ]
    assert say(engaged(2, CHAIN, pairs=pair)) == [], "the same in a new plan"
    steward.handle(InstanceServes("g1", "m@n/g1"), 0.0)
    assert say(engaged(3, CHAIN, pairs=pair)) == [], "who is complete goes on as a stage"
    assert say(engaged(4, pairs=pair)) == [
        UnstageInstance("g0", "m@n/g0"),
        UnstageInstance("g1", "m@n/g1"),
    ]
    assert say(engaged(5, CHAIN, pairs=pair)) == [first], "and begins as none"
