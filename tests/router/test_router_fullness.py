"""Who is refused at once, because the one before it was a moment ago."""

import random

import pytest

from blitzgw.core.peer import Loss
from blitzgw.errors import InvalidRequest, Overloaded, RequestError, Unavailable
from blitzgw.router.fullness import FULL_S
from tests.router.router_kit import MAX_HELD, World


@pytest.fixture
def world():
    return World()


def turned_away(world, model="m", digest=""):
    try:
        world.router.turn_away(model, digest)
    except RequestError as error:
        return error
    return None


def fill(world, room=2, **fields):
    """An instance that has as much as it takes, and has refused one more."""
    a = world.up(room=room)
    for _ in range(room):
        world.ask(**fields)
    with pytest.raises(Overloaded):
        world.ask(**fields)
    return a


def test_the_next_one_is_told_the_same_without_asking(world):
    assert turned_away(world) is None
    a = fill(world)
    a.submit = None
    told = turned_away(world)
    assert (type(told), told.message, told.retry_after_s) == (Overloaded, "full", 2.0)
    assert turned_away(world) is not told  # an exception keeps where it was raised


def test_it_counts_as_demand_that_was_refused(world):
    stirred = []
    fill(world)
    world.router.watch(stirred.append, lambda _: None)
    before = world.router.arrived("m")
    requests, tokens, refused = before.requests, before.tokens, before.refused
    for _ in range(3):
        turned_away(world)
    after = world.router.arrived("m")
    assert (after.requests, after.tokens) == (requests + 3, tokens + 3 * 3)
    assert after.refused == refused + 3
    assert stirred == ["m"] * 3
    assert world.router.statistics().counts.refused == 1 + 3


def test_it_is_found_out_anew_after_a_moment_whoever_asks_meanwhile(world):
    a = fill(world)
    a.requests.popitem()  # unseen: a peer's request has ended
    for _ in range(4):
        assert turned_away(world)
        world.clock.seconds += 0.3 * FULL_S
    assert turned_away(world) is None
    world.ask()


@pytest.mark.parametrize("how", ["finish", "leave", "lost", "up", "changed", "redefined"])
def test_whatever_may_make_room_opens_at_once(world, how):
    a = fill(world)
    first = world.sinks["r0"]
    match how:
        case "finish":
            world.router.on_tokens([a.step("r0", 5)])
            assert first.finishes
        case "leave":
            world.leave(first)
        case "lost":
            del a.requests["r0"]
            world.router.on_lost([Loss("r0", 0)], "failed")
        case "up":
            world.up("b")
        case "changed":
            world.router.instance_changed("a")
        case "redefined":
            world.router.redefined("m", "d2")
    assert turned_away(world) is None


def test_other_models_and_definitions_are_not_concerned(world):
    fill(world, digest="d1")
    assert turned_away(world, digest="d1")
    assert turned_away(world, "other", "d1") is None
    assert turned_away(world, digest="d2") is None


def test_a_request_at_fault_says_nothing_about_the_next(world):
    world.up().refusal = InvalidRequest("too long")
    with pytest.raises(InvalidRequest):
        world.ask()
    assert turned_away(world) is None


def test_too_many_that_wait_for_an_instance_are_told_at_once_too(world):
    for _ in range(MAX_HELD):
        world.ask()
    with pytest.raises(Unavailable):
        world.ask()
    assert isinstance(turned_away(world), Unavailable)
    world.up()
    assert turned_away(world) is None


def test_who_is_declined_by_another_node_closes_it_too(world):
    far = world.far(room=0)
    sink = world.ask()
    far.arrive()
    assert [type(error) for error in sink.errors] == [Overloaded]
    assert isinstance(turned_away(world), Overloaded)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_turned_away_who_would_be_taken(seed):
    rng, world = random.Random(seed), World()
    instances = [world.up(name, room=rng.randint(1, 3)) for name in "abc"[: rng.randint(1, 3)]]
    away = 0
    for _ in range(300):
        world.clock.seconds += rng.choice((0.0, 0.001, 0.01))
        under_way = [request for a in instances for request in a.requests]
        match rng.randrange(4):
            case 0 if under_way:
                name = rng.choice(under_way)
                (a,) = [a for a in instances if name in a.requests]
                world.router.on_tokens([a.step(name, rng.randint(1, 5))])
            case 1 if under_way and rng.random() < 0.3:
                world.leave(world.sinks[rng.choice(under_way)])
            case _:
                full = all(len(a.requests) >= a.room for a in instances)
                if turned_away(world):
                    away += 1
                    assert full
                elif full:
                    with pytest.raises(Overloaded):
                        world.ask()
                else:
                    world.ask()
        world.router.check_integrity()
    assert away > 20
