"""Growths beside each other: the later one gets blobs from where the former one brings them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blitzgw.core.operation import Retire
from blitzgw.core.plan import node_of
from blitzgw.scaling.events import CancelAsked, MessageCame
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.stalls import HANG_S
from tests.scaling.operation_kit import BLOB_S, MODEL, World, toy_choice

RATE = MODEL.size_bytes / (4 * BLOB_S)
"""Of a port: what the kit's edges come to."""

SEEDS = 64


def auto(world, instances):
    world.scale(instances, automatic=True)


def facts(world):
    """Return what is told of all operations, in the order in which they have begun."""
    known = world.nodes[0].owner.facts(world.now)
    return sorted(known, key=lambda each: each.instances_wanted)


def targets(operation):
    return [target.worker for target in operation.targets]


def sources(operation):
    """Who sends to an operation's targets and is none of them."""
    return {edge.source for edge in operation.edges} - set(targets(operation))


def until(world, holds, within_s=1.0):
    end_s = world.now + within_s
    while not holds():
        assert world.now < end_s
        world.run(world.now + 0.001)


def two(nodes=8, first=3, second=6, choose=choose, some=1):
    """Have a growth begin when some blobs have come to all targets of another one."""
    world = World(nodes=nodes, devices=1, rate=RATE, choose=choose)
    world.put(0)
    auto(world, first)
    world.run(0.005)

    def has_begun():
        shown = facts(world)[0].targets
        return shown and all(sum(at >= 0 for at in t.arrived_s) >= some for t in shown)

    until(world, has_begun)
    auto(world, second)
    until(world, lambda: facts(world)[-1].edges)
    return world


def ended(world, seconds=5.0):
    world.run(world.now + seconds)
    world.assert_quiet()
    return facts(world)


def test_the_last_of_a_chain_sends_on_what_it_gets():
    world = two()
    former, later = facts(world)
    tail = former.edges[-1].target
    assert former.state == "transferring"
    assert sources(later) == {tail}, "all others have promised their ports"
    former, later = ended(world)
    assert [former.state, later.state] == ["done", "done"]
    assert (former.epoch, later.epoch) == (1, 1)
    assert len(world.serving()) == 6
    ready_s = max(target.ready_s for target in later.targets)
    assert ready_s < 2.2 * 4 * BLOB_S, "they come at one pace"


def test_what_is_promised_counts_before_a_view_shows_it():
    world = two(first=2, second=3)
    former, later = facts(world)
    reserved = {node.name: node.host_facts.networks[0] for node in world.view().nodes.values()}
    assert reserved["n0"].reserved_tx_bytes_per_s == 0.0
    assert sources(later) == set(targets(former))
    assert [each.epoch for each in ended(world)] == [1, 1]


def test_none_waits_for_who_may_wait_for_it():
    """What an operation brings is known to those that have begun after it, and to nobody else."""
    world = two(first=3, second=5)
    auto(world, 7)
    owner, seen = world.nodes[0].owner, set()
    while running := [*owner._running.values()]:
        bringing = [set(each.due_s(world.now)) for each in running]
        for place, each in enumerate(running):
            known = set(each._around.due_s())
            assert known == set().union(*bringing[:place])
            seen.add((place, bool(known), any(bringing[place + 1 :])))
        world.run(world.now + 0.005)
    assert {(0, False, True), (1, True, False)} <= seen, "the later ones bring something, too"
    assert [each.state for each in ended(world, 10.0)] == ["done"] * 3


def crash(world, worker):
    world.crash(next(node for node in world.nodes if node.name == node_of(worker)))


def lose_worker(world, worker):
    node = next(node for node in world.nodes if node.name == node_of(worker))
    node.crash_worker(node.devices["g0"])


def cancel(world, worker):
    world.nodes[0].tell_owner(CancelAsked(facts(world)[0].id, "for a test"))


def retire(world, worker):
    node = next(node for node in world.nodes if node.name == node_of(worker))
    device = node.devices["g0"]
    node.tell_steward(MessageCame("boot-n0", Retire("other", device.instance, device.claim)))


@pytest.mark.parametrize("how", [crash, lose_worker, cancel, retire])
@pytest.mark.parametrize("after_s", [0.0, 0.03])
def test_a_source_that_goes_is_planned_around(how, after_s):
    world = two()
    (source,) = sources(facts(world)[-1])
    world.run(world.now + after_s)
    how(world, source)
    later = ended(world, 10.0)[-1]
    assert later.state == "done"
    assert later.epoch > 1
    assert {target.state for target in later.targets} == {"ready"}
    assert source not in sources(later)
    assert set(targets(later)) <= set(world.serving())


def test_a_source_that_is_planned_for_anew_gets_its_blobs_later():
    world = two(first=4, second=6)
    former, later = facts(world)
    (source,) = sources(later)
    relay = former.edges[0].target
    assert relay != source
    lose_worker(world, relay)
    former, later = ended(world, 10.0)
    assert former.epoch > 1
    assert {target.state for target in later.targets} == {"ready"}
    assert later.state == "done"


def test_who_waits_for_another_operation_has_until_that_is_due():
    """What comes to its source stops for as long as a target may be without a byte."""
    world = two(first=2, second=3, choose=slowly)
    (source,) = targets(facts(world)[0])
    (flow,) = (f for f in world.flows.values() if f.target and f.target[0].name == node_of(source))
    flow.over = True  # nothing goes on, and nobody is told
    world.run(world.now + HANG_S + 1.0)
    former, later = facts(world)
    assert {edge.source for edge in later.edges} == {source}
    assert former.epoch == 2
    assert later.epoch == 1
    assert [event.what for event in later.events].count("lost") == 0
    flow.over = False
    world.step(flow)
    assert {each.state for each in ended(world)} == {"done"}


def slowly(task, links, strategy=""):
    """Take who gets blobs itself for a source, and twice as long as a target may be without any."""
    holders = sorted(task.holders, key=lambda holder: not any(holder.due_s))
    made = toy_choice(replace(task, holders=tuple(holders)), links, strategy)
    times = tuple(2 * HANG_S * (i + 1) for i in range(len(task.blob_bytes)))
    arrivals = dict.fromkeys(task.targets, times)
    return replace(made, prediction=replace(made.prediction, arrivals=arrivals))


@pytest.mark.parametrize("part", range(4))
def test_whatever_happens_all_end_and_nothing_is_left(part):
    for seed in range(part, SEEDS, 4):
        world = run_wild(seed)
        try:
            world.assert_quiet()
            for each in facts(world) if world.nodes[0].alive else []:
                assert each.state in ("done", "failed", "cancelled")
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def run_wild(seed):
    rng = random.Random(seed)
    world = World(
        seed,
        nodes=10,
        devices=1,
        disks=rng.choice([0, 0, 2]),
        rate=RATE,
        load_failures=rng.choice([0.0, 0.1]),
        choose=rng.choice([choose, toy_choice]),
    )
    world.put(0)
    instances = 1
    for _ in range(rng.randint(2, 4)):
        instances += rng.randint(1, 3)
        world.after(rng.uniform(0, 0.2), auto, world, instances)
    for _ in range(rng.randint(0, 4)):
        at = rng.uniform(0.02, 0.4)
        a, b = rng.choice(world.nodes[1:]), rng.choice(world.nodes)
        match rng.randrange(5):
            case 0:
                world.after(at, world.crash, a)
            case 1 | 2:
                world.after(at, a.crash_worker, a.devices["g0"])
            case 3:
                world.after(at, world.lose_link, a, b, rng.choice([0.0, 0.5, 3.0]))
            case 4:
                world.after(at, cancel_one, world, rng)
    world.run(60.0)
    return world


def cancel_one(world, rng):
    known = facts(world)
    if known and world.nodes[0].alive:
        world.nodes[0].tell_owner(CancelAsked(rng.choice(known).id, "cancelled"))
