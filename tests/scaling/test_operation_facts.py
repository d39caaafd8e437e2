"""Owners whose view lags: what they have just done counts, and what is to come is waited for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import Claim, Claimed, Retire
from blitzgw.scaling.effects import BringUp
from blitzgw.scaling.events import CancelAsked, MessageCame
from blitzgw.scaling.hindsight import KEPT_S, Hindsight, Outcome
from tests.scaling.operation_kit import MODEL, World
from tests.scaling.view_kit import device, instance, node, view

N_BLOBS = len(MODEL.blob_bytes)


class Lagging(World):
    """What everybody sees is the cluster as it was `lag_s` ago."""

    def __init__(self, *args, lag_s=1.0, **more):
        self.lag_s, self.history = lag_s, []
        super().__init__(*args, **more)

    def view(self):
        self.history.append((self.now, super().view()))
        while len(self.history) > 1 and self.history[1][0] <= self.now - self.lag_s:
            del self.history[0]
        return self.history[0][1]

    def watch(self):
        self.view()
        self.after(0.02, self.watch)


def last(world, owner=0):
    return world.nodes[owner].owner.facts(world.now)[-1]


def settled(world, instances):
    world.scale(instances)
    while last(world).state not in ("done", "failed", "cancelled"):
        world.run(world.now + 0.01)
    return last(world)


@pytest.mark.parametrize("numbers", [(4, 1, 4), (8, 3, 5, 0, 2), (2, 1, 2, 1, 2, 1)])
def test_orders_follow_upon_each_other_at_once(numbers):
    world = Lagging(nodes=4, devices=2, disks=1)
    world.put(0)
    world.watch()
    world.run(2.0)
    for number in numbers:
        facts = settled(world, number)
        assert (facts.state, facts.reason) == ("done", "")
        assert len(world.serving()) == number
    world.run(world.now + 4.0)
    assert len(world.serving()) == numbers[-1]


def test_after_a_cancelled_order_nothing_of_it_counts():
    world = Lagging(nodes=4, devices=1)
    world.put(0)
    world.watch()
    world.run(2.0)
    world.scale(4)
    world.run(world.now + 0.06)
    world.nodes[0].tell_owner(CancelAsked(last(world).id, "not wanted"))
    world.run(world.now + 0.01)
    facts = settled(world, 2)
    assert (facts.state, facts.reason) == ("done", "")
    world.run(world.now + 3.0)
    assert len(world.serving()) == 2


@pytest.mark.parametrize("rest", [False, True])
def test_what_is_ready_stays_where_only_the_rest_is_given_up(rest):
    world = World(nodes=4, devices=1)
    world.put(0)
    world.scale(4)
    for _ in range(3000):
        world.run(world.now + 0.001)
        states = [target.state for target in last(world).targets]
        if "ready" in states and set(states) != {"ready"}:
            break
    n_ready = states.count("ready")
    assert 0 < n_ready < 3
    world.nodes[0].tell_owner(CancelAsked(last(world).id, "not wanted", rest=rest))
    facts = last(world)
    assert facts.state == ("done" if rest else "cancelled")
    assert facts.reason == (f"{n_ready} of 3 instances: not wanted" if rest else "not wanted")
    world.run(world.now + 4.0)
    assert len(world.serving()) == 1 + (n_ready if rest else 0)
    world.assert_quiet()


def test_more_than_there_are_devices():
    world = World(nodes=4, devices=1)
    world.put(0)
    world.nodes[3].draining = True
    world.scale(9)
    world.run(3.0)
    facts = last(world)
    assert facts.state == "done"
    assert facts.reason == (
        "2 of 8 instances: wants 8 more, 2 devices are free: 1 busy with an instance,"
        " 1 on a draining node"
    )
    assert len(world.serving()) == 3
    world.scale(9)
    world.run(6.0)
    assert last(world).state == "failed"
    assert "no device is free: wants 6 more" in last(world).reason
    assert "3 busy with an instance" in last(world).reason


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("what", ["devices", "source"])
def test_facts_that_come_a_moment_later_are_waited_for(what, dry_run):
    world = World(nodes=4, devices=1)
    devices = [d for n in world.nodes[1:] for d in n.devices.values()]
    if what == "devices":
        world.put(0)
        for each in devices[1:]:
            each.up = False
            world.after(0.4, setattr, each, "up", True)
    else:
        for each in devices:
            each.up = True
        world.after(0.4, world.put, 0)
    world.scale(4, dry_run=dry_run)
    world.run(3.0)
    if dry_run:
        (answer,) = world.nodes[0].answers
        assert answer.operation.state == "planned"
        assert len(answer.operation.targets) == 3
        assert world.nodes[0].owner.deadline() is None
    else:
        facts = last(world)
        assert (facts.state, facts.reason, facts.instances_before) == ("done", "", 1)
        assert len(world.serving()) == 4


def test_facts_that_show_that_nothing_is_lacking_end_an_order():
    world = World(nodes=3, devices=1)
    world.after(0.3, world.put, 0)
    world.scale(1)
    world.run(0.2)
    assert last(world).state == "claiming"
    world.run(1.5)
    assert (last(world).state, last(world).reason) == ("done", "there are 1 instances already")
    assert world.serving() == ["n0/g0"]


def test_while_it_looks_nobody_is_asked_and_it_can_be_cancelled():
    world = World(nodes=3, devices=1)
    world.scale(2)
    world.run(0.1)
    for other in world.nodes[1:]:
        world.lose_link(world.nodes[0], other)
    world.crash(world.nodes[2])
    world.run(0.6)
    claims = [e for _, _, e in world.effects if isinstance(getattr(e, "message", None), Claim)]
    assert not claims
    world.nodes[0].tell_owner(CancelAsked(last(world).id, "not wanted"))
    assert last(world).state == "cancelled"
    world.run(3.0)
    world.assert_quiet()


def test_a_claim_that_has_moved_on_unseen_is_asked_again():
    world = Lagging(nodes=2, devices=1)
    world.put(0)
    world.watch()
    world.run(2.0)
    world.nodes[1].devices["g0"].claim += 3
    facts = settled(world, 2)
    assert (facts.state, facts.reason) == ("done", "")
    refused = [m for _, _, m in world.effects if isinstance(getattr(m, "message", None), Claimed)]
    assert len(refused) == 2


def test_a_node_that_does_not_know_the_model_yet_is_asked_again():
    world = World(nodes=3, devices=1)
    world.put(0)
    slow = world.nodes[1]
    slow.unknown.add("m")
    world.after(0.3, slow.unknown.clear)
    facts = settled(world, 3)
    assert (facts.state, facts.reason) == ("done", "")
    assert sorted(world.serving()) == ["n0/g0", "n1/g0", "n2/g0"]


def test_one_that_never_gets_to_know_it_is_left_out_with_the_reason():
    world = World(nodes=3, devices=1)
    world.put(0)
    world.nodes[1].unknown.add("m")
    facts = settled(world, 3)
    assert facts.state == "done"
    assert "it does not know m" in facts.reason
    assert sorted(world.serving()) == ["n0/g0", "n2/g0"]
    world.assert_quiet()


def test_a_node_that_dies_while_it_is_asked_is_replaced():
    world = World(nodes=4, devices=1)
    world.put(0)
    world.scale(3)
    world.run(0.0001)
    world.crash(world.nodes[1])
    world.detect(world.nodes[1])
    world.run(3.0)
    assert last(world).state == "done"
    assert sorted(world.serving()) == ["n0/g0", "n2/g0", "n3/g0"]
    world.assert_quiet()


@pytest.mark.parametrize("n_others", [0, 2])
def test_a_target_that_fails_to_load_leaves_nothing_and_tells_why(n_others):
    world = World(nodes=2 + n_others, devices=1)
    world.put(0)
    broken = world.nodes[1]
    perform = broken.perform

    def fails(effect):
        perform(effect)
        if isinstance(effect, BringUp):
            found = broken.devices["g0"]
            world.after(0.03, broken.end_instance, found, found.life, "no memory")

    broken.perform = fails
    world.scale(2 + n_others)
    world.run(4.0)
    facts = last(world)
    assert "no memory" in facts.reason
    assert facts.state == ("done" if n_others else "failed")
    assert len(world.serving()) == 1 + n_others
    world.assert_quiet()


# Fewer.


def test_one_that_was_not_there_at_that_claim_is_told_again():
    world = Lagging(nodes=2, devices=1)
    for number in (0, 1):
        world.put(number)
    world.watch()
    world.run(2.0)
    for number in (0, 1):
        restarted = world.nodes[number].devices["g0"]
        restarted.claim += 1  # both workers have restarted since: whoever goes is not found
        restarted.life += 1
    facts = settled(world, 1)
    assert facts.state == "done"
    assert len(world.serving()) == 1
    retired = [m for _, _, m in world.effects if isinstance(getattr(m, "message", None), Retire)]
    assert len(retired) == 2


def test_a_number_that_does_not_come_right_is_a_failure():
    world = World(nodes=2, devices=1)
    for number in (0, 1):
        world.put(number)
    for home in world.nodes:
        home.claim = lambda device: 99  # what they publish is never what they have
    facts = settled(world, 1)
    assert facts.state == "failed"
    assert facts.reason.startswith("there are 2 instances, not 1: ")
    assert "not there at that claim" in facts.reason
    assert len(world.serving()) == 2


def test_others_that_go_by_themselves_are_not_made_up_for_silently():
    world = World(nodes=3, devices=1)
    for number in range(3):
        world.put(number)
    world.scale(2)
    gone = [t.worker for t in last(world).targets]
    assert gone == ["n0/g0"]
    world.crash(world.nodes[1])
    world.detect(world.nodes[1])
    world.run(20.0)
    assert last(world).state == "failed"
    assert "there are 1 instances, not 2" in last(world).reason


# Whatever happens.


def run_lagging(seed):
    rng = random.Random(seed)
    world = Lagging(
        seed,
        lag_s=rng.uniform(0.05, 1.0),
        nodes=rng.randint(2, 5),
        devices=rng.randint(1, 2),
        disks=rng.choice([0, 1, 2]),
        load_failures=rng.choice([0.0, 0.2]),
    )
    world.put(0)
    world.watch()
    world.run(rng.uniform(0.0, 1.5))
    for _ in range(rng.randint(2, 6)):
        world.scale(rng.randint(1, 2 * len(world.nodes)))
        a, b = rng.choice(world.nodes), rng.choice(world.nodes)
        at = rng.uniform(0.0, 0.5)
        match rng.randrange(6):
            case 0:
                world.after(at, a.crash_worker, rng.choice(list(a.devices.values())))
            case 1:
                world.after(at, world.lose_link, a, b, rng.choice([0.0, 0.5]))
            case 2 if a is not world.nodes[0]:
                world.after(at, world.crash, a)
            case 3:
                name = last(world).id if world.nodes[0].owner.facts(0.0) else ""
                event = CancelAsked(name, "not wanted", rest=seed % 2 == 0)
                world.after(at, world.nodes[0].tell_owner, event)
        world.run(world.now + rng.choice([0.0, 0.2, 2.0]))
    world.run(world.now + 25.0)
    return world


@pytest.mark.parametrize("part", range(4))
def test_orders_that_follow_each_other_all_end(part):
    ends = set()
    for seed in range(part, 40, 4):
        world = run_lagging(seed)
        try:
            world.assert_quiet()
            for facts in world.nodes[0].owner.facts(world.now):
                assert facts.state in ("done", "failed", "cancelled")
                assert facts.reason or facts.state == "done"
                ends.add(facts.state)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert "done" in ends


# Hindsight by itself.


STATES = st.sampled_from([InstanceState.SERVING, InstanceState.DRAINING, InstanceState.GONE])


@given(state=STATES, claim=st.integers(1, 5), told=st.integers(0, 5), at=st.integers(1, 5))
@settings(max_examples=120, deadline=None)
def test_an_outcome_holds_until_a_view_is_as_new(state, claim, told, at):
    known = instance("g0")
    there = [replace(known, claim=told)] if told else []
    seen = view(node("a", instances=there, devices={"g0": device("g0", claim=at)}))
    hindsight = Hindsight()
    hindsight.note([Outcome("boot-a", replace(known, claim=claim, state=state))], 0.0)
    shown = hindsight.correct(seen, 1.0).nodes["boot-a"].instances
    if at > claim:
        assert shown == seen.nodes["boot-a"].instances, "the device has been put to another use"
    elif told <= claim and not (told == 0 and state is not InstanceState.SERVING):
        found = shown.get(known.id)
        assert found is not None
        assert found.state is state or (told == claim and state is InstanceState.SERVING)
    hindsight.note([Outcome("boot-a", replace(known, claim=claim, state=state))], 1.0)
    later = hindsight.correct(seen, 1.0 + KEPT_S)
    assert later is seen
    assert len(hindsight) == 0


def test_outcomes_of_the_dead_and_the_unknown_are_forgotten():
    hindsight = Hindsight()
    hindsight.note([Outcome("boot-z", instance("g0"))], 0.0)
    seen = view(node("a"))
    assert hindsight.correct(seen, 0.1) is seen
    assert len(hindsight) == 0


def test_a_message_of_an_operation_long_forgotten_is_ignored():
    world = World()
    world.nodes[0].tell_owner(MessageCame("boot-n1", Claimed("nothing", "g0", 3, "m@n1/g0")))
    assert world.nodes[0].owner.facts(0.0) == []
