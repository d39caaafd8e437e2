"""Operations whose targets help while they load, in a virtual cluster."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.view import LoadFacts
from blitzgw.scaling.duties import PairInstance, UnpairInstance
from tests.scaling import operation_kit
from tests.scaling.operation_kit import CopyWanted, World

SEEDS = 60


def last(world, owner=0):
    return world.nodes[owner].owner.facts(world.now)[-1]


def answer(world, owner=0):
    return world.nodes[owner].answers[-1]


def busy(device, queued=24_000, waiting=24, rate=8_000.0):
    device.load = LoadFacts(device.instance, 0, waiting, queued, prefill_tokens_per_s=rate)
    return device


def pairings(world):
    return [e for _, _, e in world.effects if isinstance(e, PairInstance | UnpairInstance)]


def told(facts, what):
    return [event for event in facts.events if event.what == what]


def test_targets_help_the_home_and_the_operation_tells_so():
    world = World(nodes=4, devices=1)
    busy(world.put(0))
    world.scale(4)
    world.run(3.0)
    facts = last(world)
    assert facts.state == "done"
    assert facts.policy == "zigzag"
    assert {pair.worker: pair.home for pair in facts.pairs} == {
        f"n{i}/g0": "m@n0/g0" for i in (1, 2, 3)
    }
    assert sorted(e.instance for e in pairings(world)) == [f"m@n{i}/g0" for i in (1, 2, 3)]
    [policy] = told(facts, "policy")
    assert policy.detail.startswith("live policy zigzag: predicted mean ")
    assert ", stop " in policy.detail
    assert facts.alternatives["policy zigzag"] <= facts.alternatives["policy stop"]
    assert facts.alternatives["toy"] == 1.0
    helping = told(facts, "helping")
    assert {event.about for event in helping} == {f"n{i}/g0" for i in (1, 2, 3)}
    assert {event.detail for event in helping} == {"m@n0/g0"}
    world.assert_quiet()


def test_a_dry_run_tells_the_policy_and_what_it_brings():
    world = World(nodes=2, devices=1)
    busy(world.put(0))
    world.scale(2, dry_run=True)
    world.run(1.0)
    facts = answer(world).operation
    assert (facts.policy, len(facts.pairs)) == ("zigzag", 1)
    assert {"policy zigzag", "policy stop"} <= set(facts.alternatives)
    assert pairings(world) == []


@pytest.mark.parametrize("policy", ["stop", "best-effort", "pipeline"])
def test_an_order_names_the_policy(policy):
    world = World(nodes=2, devices=1)
    busy(world.put(0))
    world.scale(2, policy=policy)
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.policy) == ("done", policy)
    assert [e.policy for e in pairings(world)] == [policy]
    assert [e.detail for e in told(facts, "policy")] == [f"live policy {policy}: as ordered"]


@pytest.mark.parametrize(("policy", "code"), [("zagzig", "bad_request"), ("zigzag", "no_capacity")])
def test_what_cannot_be_is_refused(policy, code):
    world = World(nodes=2, devices=1, disks=1)
    world.scale(1, policy=policy)
    world.run(3.0)
    assert answer(world).code == code
    assert world.serving() == []
    assert world.nodes[0].owner.facts(world.now) == []


def test_from_zero_nobody_is_there_to_be_helped():
    world = World(nodes=3, devices=1, disks=1)
    world.scale(2)
    world.run(3.0)
    facts = last(world)
    assert (facts.state, facts.policy, facts.pairs) == ("done", "stop", ())
    assert pairings(world) == []


def test_a_second_order_by_another_policy_is_another_order():
    world = World(nodes=3, devices=1)
    world.put(0)
    world.scale(3)
    world.run(0.01)
    world.scale(3, policy="stop")
    world.run(0.02)
    assert answer(world).code == "scale_in_progress"
    world.scale(3)
    world.run(0.03)
    assert answer(world).operation.id == last(world).id


@pytest.mark.parametrize("how", ["dies", "goes"])
def test_when_a_home_is_gone_its_helpers_get_another(monkeypatch, how):
    monkeypatch.setattr(operation_kit, "BLOB_S", 1.5)
    world = World(nodes=4, devices=1)
    world.put(1)  # gives the weights
    home = busy(world.put(2))
    world.scale(4)
    world.run(0.5)
    assert [e.home for e in pairings(world)] == ["m@n2/g0"] * 2
    if how == "dies":
        world.crash(world.nodes[2])
    else:
        world.nodes[2].clear(home)
    world.run(4.0)
    facts = last(world)
    assert (facts.state, facts.epoch) == ("transferring", 2)
    assert [e.home for e in pairings(world)] == ["m@n2/g0"] * 2 + ["m@n1/g0"] * 2
    assert {pair.home for pair in facts.pairs} == {"m@n1/g0"}
    world.run(30.0)
    assert (last(world).state, last(world).epoch) == ("done", 2)


def test_homes_that_come_and_go_do_not_use_up_an_operation(monkeypatch):
    monkeypatch.setattr(operation_kit, "BLOB_S", 20.0)
    world = World(nodes=4, devices=1)
    world.put(1)
    busy(world.put(2))
    world.scale(3 + 1)
    for moment in range(80):
        world.run(0.5 + moment)
        homes = {pair.home for pair in last(world).pairs}
        for node in world.nodes[1:3]:
            device = node.devices["g0"]
            if moment % 2:
                device.state = operation_kit.InstanceState.SERVING
            elif device.instance in homes:
                device.state = operation_kit.InstanceState.DRAINING
    world.run(200.0)
    facts = last(world)
    assert (facts.state, facts.epoch) == ("done", 8)


def test_when_the_only_home_is_gone_nobody_helps(monkeypatch):
    monkeypatch.setattr(operation_kit, "BLOB_S", 1.5)
    world = World(nodes=3, devices=1, disks=1)
    home = busy(world.put(2))
    world.scale(2)
    world.run(0.5)
    assert len(pairings(world)) == 1
    world.nodes[2].clear(home)
    world.run(4.0)
    assert isinstance(pairings(world)[-1], UnpairInstance)
    assert (last(world).policy, last(world).pairs) == ("stop", ())
    world.run(30.0)
    facts = last(world)
    assert facts.state == "done"
    assert [e.detail[:18] for e in told(facts, "policy")] == [
        "live policy zigzag",
        "live policy stop: ",
    ]


def test_a_host_copy_helps_nobody():
    world = World(nodes=3, devices=1)
    busy(world.put(0))
    world.nodes[1].tell_owner(CopyWanted("m", "n1/g0"))
    world.run(2.0)
    facts = last(world, 1)
    assert (facts.state, facts.policy, facts.pairs) == ("done", "", ())
    assert pairings(world) == []


@pytest.mark.parametrize("part", range(4))
def test_whatever_goes_wrong_homes_are_there_and_stay(monkeypatch, part):
    monkeypatch.setattr(operation_kit, "BLOB_S", 0.6)
    for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
        rng = random.Random(seed)
        world = World(seed, nodes=6, devices=2)
        for node in rng.sample(range(6), rng.randint(1, 3)):
            busy(world.put(node), rng.choice([0, 100, 10**6]), rate=rng.choice([None, 5e3]))
        was_serving = set(world.serving())
        world.scale(rng.randint(len(was_serving) + 1, 11), policy=rng.choice(["", "zigzag"]))
        world.after(rng.uniform(0, 2), world.crash, rng.choice(world.nodes[1:]))
        a, b = rng.sample(world.nodes, 2)
        world.after(rng.uniform(0, 2), world.lose_link, a, b, rng.uniform(0, 0.5))
        world.run(60.0)
        homes: dict[str, str] = {}
        for _, _, effect in world.effects:
            if isinstance(effect, PairInstance):
                home = effect.home.removeprefix("m@")
                assert home in was_serving, (seed, effect)
                before = homes.get(effect.instance)
                dead = {n.name for n in world.nodes if not n.alive}
                kept = before in (None, effect.home) or before[2:].partition("/")[0] in dead
                assert kept, (seed, before, effect)
                homes[effect.instance] = effect.home
        world.assert_quiet()
