"""Orders while operations run: growths beside each other, retreats that are turned round."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import ScaleOrder
from blitzgw.scaling.conflicts import MAX_BESIDE, judge
from blitzgw.scaling.effects import BringUp
from blitzgw.scaling.growth import Growth
from blitzgw.scaling.retreat import Retreat
from tests.scaling.operation_kit import World
from tests.scaling.test_operation_facts import Lagging

SEEDS = 24


def auto(world, n, **more):
    world.scale(n, automatic=True, **more)
    return world.nodes[0].answers[-1] if world.nodes[0].answers else None


def answers(world):
    world.run(world.now + 0.001)
    return world.nodes[0].answers


def running(world):
    return [f for f in world.nodes[0].owner.facts(world.now) if f.state not in OVER]


OVER = ("done", "failed", "cancelled")


def brought_up(world):
    return [e for _, _, e in world.effects if isinstance(e, BringUp)]


@pytest.mark.parametrize("at", [0.0, 0.003, 0.02, 0.1])
def test_what_is_lacking_is_brought_up_besides(at):
    world = Lagging(nodes=8, devices=1, lag_s=0.5)
    world.put(0)
    world.watch()
    world.run(1.0)
    auto(world, 3)
    world.run(world.now + at)
    auto(world, 5)
    assert [f.instances_wanted for f in running(world)] == [3, 5]
    second = running(world)[1]
    assert (second.instances_before, len(second.targets)) == (3, 2)
    world.run(world.now + 4.0)
    assert {f.state for f in world.nodes[0].owner.facts(world.now)} == {"done"}
    assert len(world.serving()) == 5
    assert len(brought_up(world)) == 4
    world.assert_quiet()


def test_what_runs_already_suffices():
    world = World(nodes=6, devices=1)
    world.put(0)
    for _ in range(4):
        auto(world, 3)
        world.run(world.now + 0.01)
    assert len({a.operation.id for a in answers(world)}) == 1
    world.run(world.now + 3.0)
    assert len(world.serving()) == 3


def test_fewer_are_refused_to_the_owner_while_more_come_up():
    world = World(nodes=6, devices=1)
    world.put(0)
    auto(world, 5)
    world.run(0.05)
    auto(world, 2)
    assert answers(world)[-1].code == "scale_in_progress"
    world.run(3.0)
    assert len(world.serving()) == 5


def test_an_operator_goes_before_what_the_owner_does():
    world = World(nodes=6, devices=1)
    world.put(0)
    auto(world, 5)
    world.run(0.05)
    first = running(world)[0].id
    world.scale(2)
    world.run(3.0)
    assert world.nodes[0].owner.facts_of(first, world.now).state == "cancelled"
    assert "2 instances are wanted now" in world.nodes[0].owner.facts_of(first, 0.0).reason
    assert len(world.serving()) == 2
    world.scale(4)
    world.run(world.now + 0.02)
    auto(world, 6)
    world.run(world.now + 3.0)
    assert len(world.serving()) == 6
    world.assert_quiet()


def test_operators_do_not_meddle_with_each_other():
    world = World(nodes=6, devices=1)
    world.put(0)
    world.scale(3)
    world.scale(3)
    world.scale(5)
    world.scale(3, strategy="chain")
    got = answers(world)
    assert [a.code for a in got] == ["", "", "scale_in_progress", "scale_in_progress"]
    assert got[0].operation.id == got[1].operation.id


def test_down_and_further_down():
    world = World(nodes=6, devices=1, drain_s=0.5)
    for number in range(6):
        world.put(number)
    auto(world, 4)
    world.run(0.1)
    auto(world, 1)
    world.run(0.2)
    assert len(running(world)) == 1
    world.run(3.0)
    assert len(world.serving()) == 1
    world.assert_quiet()


def test_a_model_has_only_so_many_growths():
    world = World(nodes=3 + MAX_BESIDE, devices=1)
    world.put(0)
    for number in range(2, 3 + MAX_BESIDE):
        auto(world, number)
    assert len(running(world)) == MAX_BESIDE
    assert answers(world)[-1].code == "scale_in_progress"
    world.run(4.0)
    assert len(world.serving()) == 1 + MAX_BESIDE


def test_two_models_of_one_owner_ask_for_different_devices():
    world = Lagging(nodes=6, devices=1, lag_s=0.6)
    world.put(0)
    world.put(1, model="o")
    world.watch()
    world.run(1.0)
    auto(world, 3)
    auto(world, 3, model="o")
    facts = world.nodes[0].owner.facts(world.now)
    targets = [t.worker for f in facts for t in f.targets]
    assert len(targets) == len(set(targets)) == 4
    world.run(4.0)
    assert len(world.serving()) == len(world.serving("o")) == 3


def test_what_is_under_way():
    world = World(nodes=4, devices=1, keep_s=30.0, drain_s=1.0)
    world.put(0)
    owner = world.nodes[0].owner
    assert owner.underway("m", 0.0) == ()
    auto(world, 3)
    world.run(0.07)
    (found,) = owner.underway("m", world.now)
    assert (found.grows, found.wanted, len(found.coming)) == (True, 3, 2)
    assert sorted(c.instance for c in found.coming) == ["m@n1/g0", "m@n2/g0"]
    assert all(0 <= c.fraction < 1 for c in found.coming)
    assert all((c.left_s > 0) == (c.fraction > 0) for c in found.coming), "overdue: by progress"
    assert max(c.fraction for c in found.coming) > 0
    assert owner.underway("o", world.now) == ()
    world.run(3.0)
    assert owner.underway("m", world.now) == ()
    auto(world, 1)
    (found,) = owner.underway("m", world.now)
    assert (found.grows, found.wanted, found.coming) == (False, 1, ())


def test_what_is_claimed_is_in_the_owners_view():
    world = Lagging(nodes=4, devices=1, lag_s=1.0)
    world.put(0)
    world.watch()
    world.run(2.0)
    auto(world, 3)
    world.run(world.now + 0.05)
    states = [
        facts.state
        for node in world.nodes[0].owner.view().nodes.values()
        for facts in node.instances.values()
    ]
    assert sorted(states) == [InstanceState.LOADING, InstanceState.LOADING, InstanceState.SERVING]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_in_the_end_there_are_as_many_as_were_wanted_last(seed):
    """One owner, no faults: whatever it has ordered before, asked until it is not refused."""
    rng = random.Random(seed)
    lag = rng.choice([0.0, 0.05, 0.3])
    world = Lagging(
        seed,
        nodes=6,
        devices=1,
        lag_s=lag,
        keep_s=rng.choice([0.0, 0.5, 5.0]),
        drain_s=rng.choice([0.0, 0.1, 1.0]),
    )
    world.put(0)
    world.watch()
    world.run(0.5)
    wanted = 1
    for _ in range(rng.randint(2, 8)):
        wanted = rng.randint(1, 6)
        auto(world, wanted)
        world.run(world.now + rng.choice([0.0, 0.01, 0.1, 0.5]))
        assert len(brought_up(world)) <= 40
        serving_or_coming = sum(
            d.state in (InstanceState.SERVING, InstanceState.LOADING)
            for n in world.nodes
            for d in n.devices.values()
        )
        assert serving_or_coming <= 6
    for _ in range(60):
        if not running(world):
            auto(world, wanted)
        world.run(world.now + 0.1)
    assert len(world.serving()) == wanted, [
        (f.state, f.instances_wanted, f.reason) for f in world.nodes[0].owner.facts(world.now)
    ]


def test_the_table():
    growth, retreat = _Stub.of(Growth, 4), _Stub.of(Retreat, 1)
    by_owner = ScaleOrder(1, "m", 2, automatic=True)
    assert judge(by_owner, [], 0).answer is None
    assert judge(by_owner, [retreat], 3).undone == (retreat,)
    assert judge(by_owner, [growth], 4).reason
    assert judge(ScaleOrder(1, "m", 4, automatic=True), [growth], 4).answer is growth
    assert judge(ScaleOrder(1, "m", 4, automatic=True), [growth], 3).answer is None, "one is lost"
    assert judge(ScaleOrder(1, "m", 4), [growth], 4).answer is growth, "the same order"
    assert judge(ScaleOrder(1, "m", 5), [growth], 4).reason
    growth.automatic = True
    assert judge(ScaleOrder(1, "m", 2), [growth], 4).undone == (growth,)
    assert judge(ScaleOrder(1, "m", 5), [growth], 4) == judge(ScaleOrder(1, "m", 5), [], 4)


class _Stub:
    @staticmethod
    def of(kind, wanted):
        made = object.__new__(kind)
        made.id, made.wanted, made.state = "x", wanted, "transferring"
        made.strategy = made.policy = ""
        return made
