"""Which losses count against a request, and where it goes after them."""

import pytest

from blitzgw.core.peer import Loss
from blitzgw.core.request import TokenEvent
from blitzgw.errors import GenerationFailed
from blitzgw.router.router import MAX_MOVES
from tests.router.router_kit import MAX_ATTEMPTS, World


@pytest.fixture
def world():
    return World()


def counts(world):
    found = world.router.statistics().counts
    return found.lost, found.moved


def run(world, instance, sink):
    while sink.request.id in instance.requests:
        world.router.on_tokens([instance.step(sink.request.id)])
    world.router.check_integrity()


def home(world):
    name = world.router.instance_of("r0")
    return None if name is None else world.router._fleet.get(name).port


@pytest.mark.parametrize("begun", [True, False])
def test_nodes_that_die_together_are_not_so_many_failures(world, begun):
    """Their links end one after the other, and the request goes to the next of them each time."""
    far = [world.far(f"i{i}") for i in range(MAX_ATTEMPTS + 2)]
    sink = world.ask()
    first = home(world)
    if begun:
        first.arrive()
        world.router.on_tokens([first.step("r0")])
    for _ in far:
        world.down(home(world))
        world.router.check_integrity()
        assert not sink.ended
    assert counts(world) == ((1, len(far) - 1) if begun else (0, len(far)))
    rescue = world.far("rescue")
    rescue.arrive()
    run(world, rescue, sink)
    assert sink.tokens == sink.whole()


def test_an_attempt_that_was_heard_of_has_failed(world):
    """Even if all that was heard was that it had begun."""
    sink = world.ask(max_tokens=MAX_ATTEMPTS + 1)
    for attempt in range(MAX_ATTEMPTS):
        far = world.far(f"i{attempt}")
        far.arrive()
        tokens = [] if attempt else far.step("r0").tokens
        world.router.on_tokens([TokenEvent("r0", attempt, tokens)])
        world.down(far)
    assert [type(error) for error in sink.errors] == [GenerationFailed]
    assert counts(world) == (MAX_ATTEMPTS, 0)


def test_what_was_heard_of_a_former_attempt_says_nothing_of_this_one(world):
    world.ask()
    far = world.far("a")
    far.arrive()
    stale = far.step("r0")
    world.down(far)
    far = world.far("b")
    world.router.on_tokens([stale])
    world.down(far)
    assert counts(world) == (0, 2)


@pytest.mark.parametrize("dies", [True, False])
def test_a_request_that_kills_workers_of_ours_has_failed_each_time(world, dies):
    """It may never come to a first token."""
    sink = world.ask()
    for attempt in range(MAX_ATTEMPTS):
        assert not sink.ended
        ours = world.up("a")
        if dies:
            world.down(ours)
        else:
            ours.requests.clear()
            ours.open = False
            world.router.on_lost([Loss("r0", attempt)], "a step failed")
            world.router.instance_down("a", "the worker begins anew")
    assert [type(error) for error in sink.errors] == [GenerationFailed]


def test_a_request_that_is_reported_to_kill_workers_of_others_has_failed_each_time(world):
    sink = world.ask()
    far = [world.far(f"i{i}") for i in range(MAX_ATTEMPTS + 1)]
    for attempt in range(MAX_ATTEMPTS):
        assert not sink.ended
        home(world).inbox.clear()
        world.router.on_lost([Loss("r0", attempt)], "the worker died")
    assert [type(error) for error in sink.errors] == [GenerationFailed]
    assert all(not instance.inbox for instance in far)


def test_a_request_that_takes_whole_nodes_down_does_so_only_so_often(world):
    sink = world.ask()
    for i in range(MAX_MOVES + MAX_ATTEMPTS):
        assert not sink.ended
        far = world.far(f"i{i}")
        assert len(far.inbox) == 1
        world.down(far)
    assert [type(error) for error in sink.errors] == [GenerationFailed]
    assert counts(world) == (MAX_ATTEMPTS, MAX_MOVES)


def test_who_has_failed_a_request_is_asked_last_from_then_on():
    world = World(max_attempts=10)
    for name in "abc":
        world.up(name)
    sink, met = world.ask(), []
    for attempt in range(3):
        met.append(home(world))
        met[-1].requests.clear()
        world.router.on_lost([Loss("r0", attempt)], "a step failed")
    assert len({instance.instance for instance in met}) == 3
    last = home(world)  # by now all have failed it
    last.requests.clear()
    fresh = world.up("d")
    fresh.requests.update({f"load{i}": sink.request for i in range(50)})  # by far the fullest
    world.router.on_lost([Loss("r0", 3)], "a step failed")
    assert home(world) is fresh
    fresh.requests.clear()
    world.router.instance_down("d", "died")
    run(world, home(world), sink)
    assert sink.tokens == sink.whole()


def test_who_has_failed_a_request_may_have_it_again_where_there_is_nobody_else(world):
    a = world.up("a")
    sink = world.ask()
    world.down(a)
    assert world.router.held("m") == 1
    world.revive(a)
    assert list(a.requests) == ["r0"]  # nobody else is there
    a.requests.clear()
    world.router.on_lost([Loss("r0", 1)], "a step failed")
    assert list(a.requests) == ["r0"]
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_a_held_request_goes_to_who_has_not_failed_it(world):
    a = world.up("a")
    sink = world.ask()
    world.down(a)
    b = world.far("b")
    b.arrive()
    b.requests.clear()
    assert len(b.submitted) == 1
    b.open = b.told_open = False
    world.router.on_lost([Loss("r0", 1)], "drained", planned=True)
    assert world.router.held("m") == 1
    a.router, a.room = world.router, 100
    b.open = b.told_open = True
    b.told = 10**6
    world.revive(a)  # the emptier one by far
    assert a.requests == {}
    b.arrive()
    run(world, b, sink)
    assert sink.tokens == sink.whole()
