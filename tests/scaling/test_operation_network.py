"""Whole operations in a virtual cluster, with everything going wrong from a seed."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.instance import InstanceState
from tests.scaling.operation_kit import MODEL, CancelAsked, CopyWanted, World

SEEDS = 320


def last(world, owner=0):
    return world.nodes[owner].owner.facts(world.now)[-1]


def test_a_chain_of_targets_gets_ready():
    world = World(nodes=4, devices=2)
    world.put(0)
    world.scale(5)
    world.run(3.0)
    facts = last(world)
    assert facts.state == "done"
    assert facts.reason == ""
    assert len(world.serving()) == 5
    world.assert_quiet()
    assert facts.epoch == 1
    what = [event.what for event in facts.events]
    for phase in ("decided", "planned", "claimed", "connected", "first_byte", "blob", "complete"):
        assert phase in what
    assert what.count("blob") == 4 * len(MODEL.blob_bytes)
    assert what.index("planned") < what.index("claimed") < what.index("first_byte")
    assert what[-1] == "done"
    assert all(e.state == "done" for e in facts.edges)
    assert all(e.received_bytes == e.size_bytes == MODEL.size_bytes for e in facts.edges)
    assert 0 < facts.first_blob_s <= facts.coverage_s <= facts.elapsed_s


def test_a_dry_run_touches_nothing():
    world = World()
    world.put(0)
    world.scale(3, dry_run=True)
    world.run(1.0)
    answer = world.nodes[0].answers[-1]
    assert answer.operation.state == "planned"
    assert answer.operation.predicted_s == 1.0
    assert len(answer.operation.targets) == 2
    targets = {t.worker for t in answer.operation.targets}
    assert {e.target for e in answer.operation.edges} == targets
    assert all(e.size_bytes == MODEL.size_bytes for e in answer.operation.edges)
    assert world.serving() == ["n0/g0"]
    assert world.nodes[0].owner.facts(world.now) == []
    assert len(world.effects) == 1


def test_down_and_up_again():
    world = World()
    for node in range(4):
        world.put(node)
    world.scale(1)
    world.run(1.0)
    assert len(world.serving()) == 1
    assert last(world).state == "done"
    world.scale(8)
    world.run(4.0)
    assert len(world.serving()) == 8
    world.assert_quiet()


def test_as_many_as_there_are():
    world = World()
    world.put(0)
    world.scale(1)
    assert last(world).state == "done"
    assert "already" in last(world).reason


def test_without_a_source_nothing_is_claimed():
    world = World()
    world.scale(2)
    assert last(world).state == "claiming", "facts may be on their way"
    world.run(1.2)
    facts = last(world)
    assert facts.state == "failed"
    assert "nobody has blob 0" in facts.reason
    assert len([e for _, _, e in world.effects if type(e).__name__ == "Send"]) == 1


def test_a_disk_on_one_node_serves_all():
    world = World(disks=1)
    world.scale(8)
    world.run(3.0)
    assert len(world.serving()) == 8
    world.assert_quiet()


def test_a_disk_of_a_node_without_free_devices_is_read_into_a_store_that_goes():
    world = World(nodes=2, devices=1, disks=1)
    world.nodes[0].devices["g0"].instance = "other@n0/g0"
    world.nodes[0].devices["g0"].state = InstanceState.SERVING
    world.nodes[0].devices["g0"].store = set()
    view = world.nodes[0].view
    world.nodes[0].view = lambda detected: _without_weights(view(detected))
    world.scale(1)
    world.run(3.0)
    assert last(world).state == "done", last(world).reason
    assert world.nodes[1].devices["g0"].state is InstanceState.SERVING
    assert world.nodes[0].devices["g0"].copy is None


def _without_weights(view):
    from dataclasses import replace

    instances = {k: replace(v, weights="", model="other") for k, v in view.instances.items()}
    return replace(view, instances=instances)


def test_a_host_copy_comes_over_the_network():
    world = World(nodes=2, devices=1)
    world.put(0)
    node = world.nodes[1]
    node.tell_owner(CopyWanted("m", "n1/g0"))
    world.run(2.0)
    assert node.devices["g0"].copy == set(range(len(MODEL.blob_bytes)))
    assert [(end.state, end.copy) for end in node.ends] == [("done", True)]
    world.assert_quiet()


def test_orders_of_a_model_are_one_at_a_time():
    world = World()
    world.put(0)
    world.scale(3)
    world.scale(3)
    world.scale(4)
    world.run(3.0)
    answers = world.nodes[0].answers
    assert answers[0].operation.id == answers[1].operation.id
    assert answers[2].code == "scale_in_progress"
    assert len(world.serving()) == 3


@pytest.mark.parametrize("at", [0.0, 0.001, 0.006, 0.02, 0.05, 0.1, 0.2])
def test_cancelled_at_any_moment_nothing_stays(at):
    world = World(seed=int(at * 1000), nodes=4, devices=1)
    world.put(0)
    world.scale(4)
    world.run(at)
    name = world.nodes[0].owner.facts(world.now)[-1].id
    world.nodes[0].tell_owner(CancelAsked(name, "not wanted"))
    world.run(at + 2.0)
    facts = last(world)
    assert facts.state in ("cancelled", "done")
    if facts.state == "cancelled":
        assert world.serving() == ["n0/g0"]
        assert facts.reason == "not wanted"
    world.assert_quiet()


def test_a_relay_that_dies_is_planned_around():
    world = World(nodes=5, devices=1)
    world.put(0)
    world.scale(5)
    world.run(0.06)
    world.crash(world.nodes[1])
    world.run(6.0)
    facts = last(world)
    assert facts.state == "done"
    assert "3 of 4" in facts.reason
    assert facts.epoch >= 2
    assert len(world.serving()) == 4
    world.assert_quiet()


def test_a_death_that_nobody_knows_of_yet_holds_up_only_the_dead():
    world = World(nodes=6, devices=1)
    world.put(0)
    world.scale(6)
    world.run(0.06)
    world.crash(world.nodes[1])  # known after a second
    world.run(0.7)
    assert len(world.serving()) == 5
    world.run(3.0)
    assert last(world).state == "done"
    assert last(world).epoch <= 4
    world.assert_quiet()


def test_the_owner_dies_and_everybody_lets_go():
    world = World(nodes=5, devices=1)
    world.put(0)
    world.scale(5, owner=4)
    world.run(0.06)
    world.crash(world.nodes[4])
    world.run(8.0)
    assert len(world.serving()) >= 1
    world.assert_quiet()


def test_two_owners_never_share_a_device():
    world = World(nodes=4, devices=2)
    world.put(0)
    world.scale(8, owner=1)
    world.scale(8, owner=2)
    world.run(12.0)
    assert {last(world, 1).state, last(world, 2).state} <= {"done", "failed"}
    assert len(world.serving()) > 1
    world.assert_quiet()


def test_ports_are_not_promised_twice():
    world = World(nodes=6, devices=1, rate=1e4)
    world.put(0)
    world.scale(3, owner=1)
    world.scale(3, owner=2)
    for step in range(100):
        world.run(step * 0.01)
        for node in world.nodes:
            for tx, rx in node.steward.reserved().values():
                assert max(tx, rx) <= 1e4 * 1.01
    world.run(12.0)
    world.assert_quiet()


def test_the_same_events_give_the_same_effects():
    first, second = (run_wild(7) for _ in range(2))
    assert first.effects == second.effects
    assert len(first.effects) > 20


def run_wild(seed):
    rng = random.Random(seed)
    n_nodes = rng.randint(2, 6)
    world = World(
        seed,
        nodes=n_nodes,
        devices=rng.randint(1, 2),
        disks=rng.choice([0, 0, 1, 2]),
        load_failures=rng.choice([0.0, 0.2]),
        rate=rng.choice([0.0, 1e5]),
    )
    world.put(0)
    owner = rng.randrange(n_nodes)
    world.scale(rng.randint(2, n_nodes * 2), owner=owner)
    if rng.random() < 0.2:
        world.scale(rng.randint(2, n_nodes * 2), owner=rng.randrange(n_nodes))
    for _ in range(rng.randint(0, 4)):
        at = rng.uniform(0, 0.4)
        a, b = rng.choice(world.nodes), rng.choice(world.nodes)
        match rng.randrange(6):
            case 0:
                world.after(at, world.crash, a)
            case 1 | 2:
                device = rng.choice(list(a.devices.values()))
                world.after(at, a.crash_worker, device)
            case 3:
                world.after(at, world.lose_link, a, b, 0.0)
            case 4:
                world.after(at, world.lose_link, a, b, rng.choice([0.5, 3.0, 8.0]))
            case 5:
                world.after(at, cancel_all, world.nodes[owner])
    world.run(45.0)
    return world


def cancel_all(node):
    for facts in node.owner.facts(0.0):
        node.tell_owner(CancelAsked(facts.id, "cancelled"))


@pytest.mark.parametrize("part", range(8))
def test_whatever_happens_it_ends_and_nothing_is_left(part):
    ends = {}
    for seed in range(part, SEEDS, 8):
        world = run_wild(seed)
        try:
            check(world, ends)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert ends.get("done", 0) > 5


def check(world, ends):
    world.assert_quiet()
    for node in world.nodes:
        if not node.alive:
            continue
        for facts in node.owner.facts(world.now):
            ends[facts.state] = ends.get(facts.state, 0) + 1
            assert facts.state in ("done", "failed", "cancelled")
            if facts.state in ("failed", "cancelled"):
                assert facts.reason
                assert all(t.state in ("failed", "released") for t in facts.targets)
