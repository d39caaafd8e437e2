"""A request goes on only under the definition of its model that it was tokenised for."""

import pytest

from blitzgw.core.peer import Loss
from blitzgw.errors import GenerationFailed, Overloaded, Unavailable
from tests.router.router_kit import HOLD_S, Far, Instance, World


@pytest.fixture
def world():
    world = World()
    world.router.redefined("m", "old")
    return world


def run(world, instance, sink, steps=100):
    for _ in range(steps):
        if sink.request.id in instance.requests:
            world.router.on_tokens([instance.step(sink.request.id)])
    world.router.check_integrity()


@pytest.mark.parametrize(
    ("asked", "served", "goes"),
    [("x", "x", True), ("x", "y", False), ("", "y", True), ("x", "", True), ("", "", True)],
)
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", [Instance, Far])
def test_a_request_goes_where_its_definition_is_served(asked, served, goes, held, kind):
    world, instance = World(), kind("a")
    if held:
        world.ask(digest=asked)
    world.revive(instance, served)
    if not held:
        world.ask(digest=asked)
    assert world.router.held("m") == (not goes)
    assert world.router.instance_of("r0") == ("a" if goes else None)
    world.router.check_integrity()


def test_a_lost_request_does_not_go_on_under_another_definition(world):
    a, b = world.revive(Instance("a"), "old"), world.revive(Instance("b"), "new")
    sink = world.ask(digest="old")
    run(world, a, sink, steps=2)
    world.down(a)
    assert (b.submitted, world.router.held("m")) == ([], 1)
    c = world.revive(Instance("c"), "old")
    run(world, c, sink)
    assert sink.tokens == sink.whole()


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("comes_back", ["before", "after", "given away", "declined"])
def test_who_comes_back_after_a_change_is_answered_at_once(world, begun, comes_back):
    a = world.revive(Far("a"), "old")
    sink = world.ask(digest="old")
    if comes_back != "declined":
        a.arrive()
    if begun and comes_back != "declined":
        world.router.on_tokens([a.step("r0")])
    if comes_back == "before":
        world.down(a)
        assert not sink.ended
    world.router.redefined("m", "new")
    world.revive(Instance("b"), "new")
    if comes_back != "before":
        assert not sink.ended  # where it is, it may well come to its end
    if comes_back == "after":
        world.router.instance_down("a", "another definition holds", planned=True)
    elif comes_back == "given away":
        a.give_away()
    elif comes_back == "declined":
        a.refusal = Unavailable("stale")
        a.arrive()
        begun = False
    (error,) = sink.errors
    assert type(error) is (GenerationFailed if begun else Unavailable)
    assert error.retry_after_s == (None if begun else 1.0)
    assert "definition of model m has changed" in error.message
    assert world.router.requests(0.0) == []
    world.router.check_integrity()


def test_who_is_at_an_instance_when_the_definition_changes_may_finish(world):
    a = world.revive(Instance("a"), "old")
    sink = world.ask(digest="old")
    world.router.redefined("m", "new")
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_a_failed_attempt_under_a_former_definition_is_not_repeated(world):
    a = world.revive(Instance("a"), "old")
    sink = world.ask(digest="old")
    run(world, a, sink, steps=1)
    world.router.redefined("m", "new")
    world.revive(Instance("b"), "new")
    world.router.on_lost([Loss("r0", 0)], "a step failed")
    assert [type(error) for error in sink.errors] == [GenerationFailed]


def test_a_change_answers_only_who_waits_for_another_definition(world):
    old, new = world.ask(digest="old"), None
    other = world.ask(model="other", digest="old")
    any_ = world.ask()
    world.router.redefined("m", "new")
    assert [error.retry_after_s for error in old.errors] == [1.0]
    assert not any_.ended
    assert not other.ended
    new = world.ask(digest="new")
    a = world.revive(Instance("a"), "new")
    for sink in (any_, new):
        run(world, a, sink)
        assert sink.tokens == sink.whole()


def test_who_asks_under_a_former_definition_is_refused_at_once(world):
    """Its prompt was tokenised while the definition changed."""
    a = world.revive(Instance("a"), "old")
    world.router.redefined("m", "new")
    with pytest.raises(Unavailable, match="has changed") as refusal:
        world.ask("late", digest="old")
    assert refusal.value.retry_after_s == 1.0
    assert a.submitted == []
    assert world.router.requests(0.0) == []


def test_a_model_that_nobody_defines_any_more_is_waited_for(world):
    sink = world.ask(digest="old")
    world.router.redefined("m", "")
    other = world.ask(digest="new")
    world.revive(Instance("a"), "new")
    assert not sink.ended
    assert world.router.instance_of(other.request.id) == "a"
    world.wait(HOLD_S)
    assert [type(error) for error in sink.errors] == [Unavailable]


def test_siblings_of_one_that_a_change_ends_are_not_called(world):
    sinks = [world.ask(digest="old") for _ in range(3)]
    sinks[0].on_fail = lambda error: [world.leave(s) for s in sinks[1:]]
    world.router.redefined("m", "new")
    assert [len(sink.errors) for sink in sinks] == [1, 0, 0]


def test_who_waits_for_one_definition_keeps_nobody_from_another():
    world = World()
    first, second = world.ask(digest="old"), world.ask(digest="new")
    a = world.revive(Instance("a"), "new")
    run(world, a, second)
    assert second.tokens == second.whole()
    assert not first.ended


def test_a_digest_that_becomes_known_is_taken_over():
    world = World()
    a = world.revive(Instance("a"))
    running = world.ask(digest="x")
    world.revive(a, "x")
    assert world.router.instance_of("r0") == "a"
    world.ask(digest="y")
    assert world.router.held("m") == 1
    run(world, a, running)
    assert len(a.submitted) == 1


def test_a_full_instance_of_another_definition_refuses_nobody(world):
    """Its refusal would be passed on as if it spoke for the model."""
    world.revive(Instance("a"), "new").refusal = Overloaded("full", retry_after_s=5)
    world.ask(digest="old")
    assert world.router.held("m") == 1
