"""What a draining node does with its own requests: its instances are the last choice, not none."""

import pytest

from blitzgw.core.peer import Loss
from blitzgw.errors import Overloaded, Unavailable
from blitzgw.router.dispatch import MAX_DECLINES
from blitzgw.router.router import COOLING_S
from tests.router.router_kit import Far, Instance, World


@pytest.fixture
def world():
    return World()


@pytest.fixture
def ours(world):
    instance = world.up("ours")
    instance.reluctant = True
    return instance


def run(world, instance, sink):
    while sink.request.id in instance.requests:
        world.router.on_tokens([instance.step(sink.request.id)])
    world.router.check_integrity()


def test_a_request_that_nobody_else_can_take_is_taken_here(world, ours):
    sink = world.ask()
    run(world, ours, sink)
    assert sink.tokens == sink.whole()


def test_others_go_first_however_full_they_are(world, ours):
    far = world.far("far")
    far.told = 10**6
    world.ask()
    assert (len(far.inbox), ours.submitted) == (1, [])


def test_one_that_is_closed_is_no_choice(world, ours):
    far = world.far("far")
    far.told_open = False
    world.ask()
    assert (far.inbox, len(ours.requests)) == ([], 1)
    ours.open = False
    world.ask()
    assert world.router.held("m") == 1


@pytest.mark.parametrize("begun", [True, False])
def test_what_comes_back_is_taken_here(world, ours, begun):
    far = world.far("far")
    sink = world.ask()
    far.arrive()
    if begun:
        world.router.on_tokens([far.step("r0")])
    world.down(far)
    run(world, ours, sink)
    assert sink.tokens == sink.whole()


def test_what_a_draining_peer_gives_back_is_taken_here(world, ours):
    far = world.far("far")
    sink = world.ask()
    far.arrive()
    far.told_open = False
    far.give_away()
    run(world, ours, sink)
    assert sink.tokens == sink.whole()


def test_who_refuses_leaves_it_to_us(world, ours):
    world.up("full").refusal = Overloaded("full")
    world.ask()
    assert len(ours.requests) == 1


def test_who_declines_leaves_it_to_us_even_where_all_do(world, ours):
    far = [world.far(f"i{i}") for i in range(MAX_DECLINES + 2)]
    for instance in far:
        instance.refusal = Overloaded("full")
    sink = world.ask()
    for _ in far:
        for instance in far:
            instance.arrive()
    assert world.router.statistics().counts.declined == MAX_DECLINES
    run(world, ours, sink)
    assert sink.tokens == sink.whole()


def test_who_has_declined_a_moment_ago_is_asked_before_us(world, ours):
    far = world.far("far")
    far.refusal = Overloaded("full")
    world.ask("first")
    far.arrive()
    assert list(ours.requests) == ["first"]
    world.ask("second")
    assert [request.id for request in far.inbox] == ["second"]


def test_who_waits_waits_for_those_that_have_declined_a_moment_ago(world):
    sink = world.ask()
    far = Far("far")
    far.refusal = Overloaded("full")
    world.revive(far)
    far.arrive()
    ours = Instance("ours")
    ours.reluctant = True
    world.revive(ours)
    assert world.router.held("m") == 1
    world.wait(COOLING_S / 2)
    assert (far.inbox, ours.submitted) == ([], [])
    world.wait(COOLING_S / 2)
    assert len(far.inbox) == 1
    far.arrive()
    run(world, ours, sink)
    assert sink.tokens == sink.whole()


def test_a_full_instance_of_ours_refuses_as_ever(world, ours):
    ours.refusal = Overloaded("full", retry_after_s=3)
    with pytest.raises(Overloaded):
        world.ask()
    ours.refusal = Unavailable("gone", retry_after_s=3)
    with pytest.raises(Unavailable):
        world.ask()


def test_of_ours_the_one_that_has_not_failed_it_is_taken(world, ours):
    sink = world.ask()
    other = world.up("other")
    other.reluctant = True
    world.router.on_tokens([ours.step("r0")])
    other.requests["load"] = world.ask("load", prompt=(1,) * 99).request
    ours.requests.clear()
    world.router.on_lost([Loss("r0", 0)], "a step failed")
    assert "r0" in other.requests
    run(world, other, sink)
    assert sink.tokens == sink.whole()
