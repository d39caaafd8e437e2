"""Instances that drain, are kept, come back or make room: real deciders in a virtual cluster."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import Claim
from blitzgw.scaling.effects import BringUp, DropInstance, ToWorker
from blitzgw.scaling.events import CancelAsked
from tests.scaling.operation_kit import World
from tests.scaling.test_operation_facts import Lagging

SEEDS = 20


def last(world, owner=0):
    return world.nodes[owner].owner.facts(world.now)[-1]


def settled(world, instances, **more):
    world.scale(instances, **more)
    while last(world).state not in ("done", "failed", "cancelled"):
        world.run(world.now + 0.005)
    return last(world)


def states(world):
    return [d.state for n in world.nodes if n.alive for d in n.devices.values()]


def moved(world, since):
    """What has begun to move since then."""
    return [e for at, _, e in world.effects if at >= since and isinstance(e, ToWorker | BringUp)]


def full(nodes=4, **more):
    world = (
        Lagging(nodes=nodes, devices=1, **more)
        if "lag_s" in more
        else World(nodes=nodes, devices=1, **more)
    )
    for number in range(nodes):
        world.put(number)
    if isinstance(world, Lagging):
        world.watch()
        world.run(2.0)
    return world


@pytest.mark.parametrize("lag", [{}, {"lag_s": 1.0}])
@pytest.mark.parametrize("wait_s", [0.0, 0.5, 2.5])
def test_what_is_kept_serves_again_at_once_and_without_a_byte(wait_s, lag):
    world = full(keep_s=30.0, **lag)
    assert settled(world, 1).state == "done"
    assert states(world).count(InstanceState.KEPT) == 3
    assert len(world.serving()) == 1
    world.run(world.now + wait_s)
    began = world.now
    facts = settled(world, 4)
    assert (facts.state, facts.reason) == ("done", "")
    assert facts.elapsed_s < 0.05
    assert world.revived == 3
    assert len(world.serving()) == 4
    assert moved(world, began) == []
    assert [e.what for e in facts.events].count("revived") == 3
    assert facts.first_blob_s == -1.0
    world.run(world.now + 40.0)
    assert len(world.serving()) == 4, "nothing is over that serves again"
    world.assert_quiet()


def test_from_zero_what_is_kept_needs_nobody_to_get_weights_from():
    world = full(nodes=2, keep_s=5.0)
    settled(world, 0)
    assert world.serving() == []
    world.run(world.now + 0.2)
    facts = settled(world, 1)
    assert (facts.state, facts.reason) == ("done", "")
    assert facts.elapsed_s < 0.05
    world.run(world.now + 6.0)
    assert states(world).count(InstanceState.GONE) == 1


def test_one_that_is_kept_gives_its_weights_to_others():
    world = World(nodes=3, devices=1, keep_s=30.0)
    world.put(0)
    settled(world, 0)
    world.run(world.now + 0.1)
    facts = settled(world, 3)
    assert (facts.state, facts.reason) == ("done", "")
    assert {edge.source for edge in facts.edges} <= {t.worker for t in facts.targets}
    assert world.revived == 1
    assert len(world.serving()) == 3
    world.run(world.now + 0.1)
    world.assert_quiet()


def test_when_its_time_is_over_it_is_gone():
    world = full(keep_s=1.0)
    settled(world, 2)
    world.run(world.now + 0.9)
    assert states(world).count(InstanceState.KEPT) == 2
    world.run(world.now + 0.3)
    assert states(world).count(InstanceState.GONE) == 2
    facts = settled(world, 4)
    assert facts.state == "done"
    assert world.revived == 0
    assert len([e for e in moved(world, 0.0) if isinstance(e, BringUp)]) == 2
    world.run(world.now + 0.1)
    world.assert_quiet()


def test_another_model_takes_the_device_of_what_is_kept():
    world = World(nodes=3, devices=1, keep_s=30.0)
    world.put(0)
    world.put(1)
    world.put(2, model="o")
    settled(world, 1)
    facts = settled(world, 2, model="o")
    assert (facts.state, facts.reason) == ("done", "")
    assert len(world.serving("o")) == 2
    assert len(world.serving()) == 1
    dropped = [e for _, _, e in world.effects if isinstance(e, DropInstance)]
    assert [e.reason for e in dropped] == ["its device is claimed for o"]
    assert dropped[0].planned
    facts = settled(world, 2)
    assert facts.state == "failed", "there is nothing left to revive"
    world.assert_quiet()


def test_a_free_device_is_taken_before_one_with_something_kept():
    world = World(nodes=4, devices=1, keep_s=30.0)
    world.put(0)
    world.put(1)
    world.put(3, model="o")
    settled(world, 1)
    world.run(world.now + 0.1)
    settled(world, 2, model="o")
    assert world.serving("o") == ["n2/g0", "n3/g0"]
    assert states(world).count(InstanceState.KEPT) == 1


@pytest.mark.parametrize("lag", [{}, {"lag_s": 1.0}])
def test_one_that_drains_serves_again(lag):
    world = full(drain_s=5.0, **lag)
    world.scale(1)
    world.run(world.now + 0.1)
    assert states(world).count(InstanceState.DRAINING) == 3
    retreat = last(world)
    began = world.now
    world.scale(3, automatic=True)
    world.run(world.now + 0.1)
    assert states(world).count(InstanceState.DRAINING) == 1
    assert len(world.serving()) == 3
    assert moved(world, began) == []
    assert world.nodes[0].owner.facts_of(retreat.id, world.now).state == "cancelled"
    assert last(world).state == "done"
    world.run(world.now + 10.0)
    assert len(world.serving()) == 3
    world.assert_quiet()


def test_a_growth_that_is_cancelled_gives_back_what_it_has_revived():
    world = World(nodes=3, devices=1, keep_s=30.0)
    world.put(0)
    world.put(1)
    settled(world, 1)
    world.run(world.now + 0.1)
    world.scale(3)
    world.run(world.now + 0.05)
    assert world.revived == 1
    assert last(world).state == "transferring"
    world.nodes[0].tell_owner(CancelAsked(last(world).id, "not wanted"))
    world.run(world.now + 1.0)
    assert len(world.serving()) == 1
    assert states(world).count(InstanceState.KEPT) == 1
    world.assert_quiet()


def test_a_worker_that_dies_takes_what_is_kept_along():
    world = full(nodes=2, keep_s=30.0)
    settled(world, 1)
    kept = next(d for n in world.nodes for d in n.devices.values() if d.state is InstanceState.KEPT)
    home = next(n for n in world.nodes if kept in n.devices.values())
    assert home.steward.statistics().kept == 1
    home.crash_worker(kept)
    assert home.steward.statistics().kept == 0
    assert home.steward.deadline() is None
    assert settled(world, 2).state == "done"
    assert world.revived == 0


def run_wild(seed):
    rng = random.Random(seed)
    world = Lagging(
        seed,
        lag_s=rng.uniform(0.05, 0.5),
        nodes=rng.randint(3, 5),
        devices=rng.randint(1, 2),
        disks=1,
        keep_s=rng.choice([0.0, 0.3, 2.0]),
        drain_s=rng.choice([0.0, 0.05, 0.5]),
        load_failures=rng.choice([0.0, 0.0, 0.2]),
    )
    world.put(0)
    world.put(1, model="o")
    world.watch()
    for _ in range(rng.randint(4, 10)):
        world.run(world.now + rng.choice([0.0, 0.02, 0.2, 1.0]))
        model, owner = rng.choice("mmmo"), rng.choice([0, 0, 0, 2])
        number = rng.randint(0 if model == "m" else 1, len(world.nodes) * 2)
        world.scale(number, owner=owner, model=model, automatic=rng.random() < 0.8)
        a, b = rng.sample(world.nodes, 2)
        match rng.randrange(8):
            case 0:
                world.after(0.1, a.crash_worker, rng.choice(list(a.devices.values())))
            case 1:
                world.lose_link(a, b, rng.choice([0.0, 0.3]))
            case 2 if a not in world.nodes[:3]:
                world.after(0.1, world.crash, a)
            case 3:
                running = world.nodes[0].owner.running("m")
                if running is not None:
                    world.nodes[0].tell_owner(CancelAsked(running, "not wanted", seed % 2 == 0))
    world.run(world.now + 25.0)
    return world


@pytest.mark.parametrize("part", range(2))
def test_whatever_happens_every_instance_goes_the_legal_way(part):
    revived = kept = 0
    for seed in range(part, SEEDS, 2):
        try:
            world = run_wild(seed)  # the kit checks every transition, claim and book
            world.assert_quiet()
            revived, kept = revived + world.revived, kept + world.kept
            assert not states(world).count(InstanceState.KEPT), "kept for ever"
            # what is left to itself comes right by one more order
            for model in "mo":
                n_devices = sum(len(n.devices) for n in world.nodes if n.alive)
                facts = settled(world, min(2, n_devices - 1), model=model)
                assert facts.state in ("done", "failed")
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert revived > 0
    assert kept > 5


def test_claims_name_the_claim_that_the_device_is_at():
    world = full(nodes=2, keep_s=30.0)
    settled(world, 1)
    world.run(world.now + 0.1)
    began = world.now
    settled(world, 2)
    claims = [
        e.message
        for at, _, e in world.effects
        if at >= began and isinstance(getattr(e, "message", None), Claim)
    ]
    assert len(claims) == 1, "it is known where it is kept, and at which claim"
