"""Requests whose instance says who keeps what was computed of them."""

from __future__ import annotations

import pytest

from blitzgw.core.peer import Loss
from blitzgw.core.request import Stage, TokenEvent
from blitzgw.core.span import Span
from tests.router.router_kit import World


@pytest.fixture
def world():
    return World()


def give_to(world, source, kept, *, planned=True):
    """Have an instance say that another one keeps what it has."""
    losses = [Loss(r.id, r.attempt, kept) for r in source.requests.values()]
    source.requests.clear()
    world.router.on_lost(losses, "it moves", planned=planned)


def test_a_request_goes_to_who_keeps_it_however_busy_that_is(world):
    a, b, c = world.up("a"), world.up("b"), world.up("c")
    sink = world.ask()
    (source,) = [each for each in (a, b, c) if each.requests]
    others = [each for each in (a, b, c) if each is not source]
    for other in others:  # whichever is the busier one
        give_to(world, source, other.instance)
        assert list(other.requests) == [sink.request.id]
        source = other
    world.router.check_integrity()


def test_moving_is_no_failed_attempt(world):
    a, b = world.up("a"), world.up("b")
    world.ask()
    for turn in range(10):  # more often than attempts may fail
        source, other = (a, b) if a.requests else (b, a)
        give_to(world, source, other.instance)
        assert other.requests["r0"].attempt == turn + 1
    assert world.router.statistics().migrations == {("m", "kv"): 10}


def test_an_instance_that_is_not_known_yet_is_summoned(world):
    a = world.up("a")
    sink = world.ask()
    summoned = []

    def summon(instance):
        summoned.append(world.up(instance))

    world.router.summon = summon
    give_to(world, a, "new")
    (new,) = summoned
    assert list(new.requests) == [sink.request.id]


def test_one_that_cannot_be_summoned_is_done_without(world):
    a, b = world.up("a"), world.up("b")
    sink = world.ask()
    source, other = (a, b) if a.requests else (b, a)
    give_to(world, source, "nowhere")
    assert list(other.requests) == [sink.request.id]


def test_a_failure_names_nobody_who_would_be_asked_first(world):
    a, b = world.up("a"), world.up("b")
    world.ask()
    summoned = []
    world.router.summon = summoned.append
    source, other = (a, b) if a.requests else (b, a)
    give_to(world, source, "new", planned=False)
    assert not summoned
    assert "r0" in other.requests


def test_who_ran_which_layers_is_told(world):
    a = world.up("a")
    sink = world.ask()
    assert world.router.route_of("r0") == ()
    route = (Stage("b", Span(0, 3)), Stage("a", Span(3, 7)))
    event = a.step("r0")
    world.router.on_tokens([TokenEvent("r0", 0, event.tokens, route=route)])
    assert sink.tokens == event.tokens
    assert world.router.route_of("r0") == route
    assert world.router.route_of("unknown") == ()
    assert world.router.statistics().splits == {"m": 1}
