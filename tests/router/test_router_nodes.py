"""What a router does where instances are other nodes': they decline, drain, come back, are late."""

import pytest

from blitzgw.core.peer import Loss
from blitzgw.core.request import TokenEvent
from blitzgw.errors import (
    GenerationFailed,
    InvalidRequest,
    Outdated,
    Overloaded,
    TooLarge,
    Unavailable,
    UnknownModel,
)
from blitzgw.router.affinity import SPAN_TOKENS
from blitzgw.router.dispatch import MAX_DECLINES
from blitzgw.router.refusal import bounded
from blitzgw.router.router import COOLING_S, MAX_MOVES
from tests.router.router_kit import HOLD_S, MAX_ATTEMPTS, MAX_HELD, Far, Instance, World


@pytest.fixture
def world():
    return World()


def run(world, instance, sink):
    while sink.request.id in instance.requests:
        world.router.on_tokens([instance.step(sink.request.id)])
    world.router.check_integrity()


def arrive(world, *instances):
    """Let everything arrive, until nothing is on its way any more."""
    while any(instance.inbox for instance in instances):
        for instance in instances:
            instance.arrive()
        world.router.check_integrity()


def counts(world):
    return world.router.statistics().counts


def test_a_declined_request_tries_the_next(world):
    far = [world.far(name) for name in "abc"]
    for instance in far[:2]:
        instance.refusal = Overloaded("full", retry_after_s=5)
    sink = world.ask()
    arrive(world, *far)
    assert list(far[2].requests) == ["r0"]
    run(world, far[2], sink)
    assert sink.tokens == sink.whole()
    assert sink.cached[0] == 1  # nothing of it had been told before


def test_what_was_declined_is_no_failure():
    world = World(max_attempts=1)
    far = [world.far(name) for name in "ab"]
    far[0].refusal = far[1].refusal = Overloaded("full")
    sink = world.ask()
    home = next(instance for instance in far if not instance.inbox)
    home.refusal = None
    arrive(world, *far)
    assert counts(world).declined == 1
    run(world, home, sink)
    assert sink.tokens == sink.whole()


def test_a_new_request_declined_by_all_gets_the_kindest_refusal(world):
    far = [world.far(name) for name in "abc"]
    for instance, refusal in zip(
        far,
        [
            Unavailable("none", retry_after_s=1),
            Overloaded("full", retry_after_s=7),
            Overloaded("full", retry_after_s=900),
        ],
        strict=True,
    ):
        instance.refusal = refusal
    sink = world.ask()
    arrive(world, *far)
    assert [(type(e), e.retry_after_s) for e in sink.errors] == [(Overloaded, 7)]
    assert all(instance.submitted == [] for instance in far)
    assert counts(world).refused == 1
    assert world.router.requests(0.0) == []


@pytest.mark.parametrize(
    ("told_s", "passed_on_s"),
    [(900, 120), (0.01, 1), (30, 30), (None, None), (-5, 1), (float("nan"), 120)],
)
@pytest.mark.parametrize("refuses", [Instance, Far])
def test_the_waiting_time_is_one_that_clients_obey(world, refuses, told_s, passed_on_s):
    instance = world.revive(refuses("a"))
    instance.refusal = Unavailable("none", retry_after_s=told_s)
    errors = []
    try:
        sink = world.ask()
        instance.arrive()
        errors = sink.errors
    except Unavailable as error:
        errors = [error]
    assert [error.retry_after_s for error in errors] == [passed_on_s]
    assert bounded(errors[0]) is errors[0]


@pytest.mark.parametrize("error", [InvalidRequest("no", param="prompt"), TooLarge("no")])
def test_the_requests_own_fault_ends_it_at_once(world, error):
    far = [world.far(name) for name in "ab"]
    far[0].refusal = far[1].refusal = error
    sink = world.ask()
    arrive(world, *far)
    assert sink.errors == [error]
    assert counts(world).declined == 0


def test_what_an_instance_does_not_know_another_may(world):
    far = [world.far(name) for name in "ab"]
    far[0].refusal = far[1].refusal = UnknownModel("never heard of")
    sink = world.ask()
    arrive(world, *far)
    assert [type(error) for error in sink.errors] == [Unavailable]
    assert counts(world).declined == 2


def test_a_decline_of_another_attempt_is_ignored(world):
    a = world.far("a")
    sink = world.ask()
    arrive(world, a)
    world.router.on_declined("r0", 1, Overloaded("full"))
    world.router.on_declined("unknown", 0, Overloaded("full"))
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_a_crowd_of_declines_ends_the_search(world):
    far = [world.far(f"i{i}") for i in range(MAX_DECLINES + 4)]
    for instance in far:
        instance.refusal = Overloaded("full", retry_after_s=5)
    sink = world.ask()
    arrive(world, *far)
    assert [type(error) for error in sink.errors] == [Overloaded]
    assert counts(world).declined == MAX_DECLINES


def test_who_has_declined_is_asked_last_for_a_while(world):
    a, b = world.far("a"), world.far("b")
    a.refusal = Overloaded("full")
    b.told = 10**6  # by its figures it is the worse choice by far
    world.ask()
    arrive(world, a, b)
    assert len(b.requests) == 1
    world.ask()
    assert len(b.inbox) == 1
    world.wait(COOLING_S)
    world.ask()
    assert len(a.inbox) == 1


def test_a_lost_request_declined_by_all_waits(world):
    a, b = world.far("a"), world.far("b")
    sink = world.ask()
    arrive(world, a, b)
    home, other = (a, b) if a.requests else (b, a)
    other.refusal = Overloaded("full")
    world.down(home)
    arrive(world, other)
    assert not sink.ended
    assert world.router.held("m") == 1
    other.refusal = None
    world.wait(COOLING_S)
    arrive(world, other)
    run(world, other, sink)
    assert sink.tokens == sink.whole()


def test_a_held_request_that_is_declined_waits_on_but_no_longer(world):
    sink = world.ask()
    a = Far("a")
    a.refusal = Overloaded("full")
    world.revive(a)
    for _ in range(3):
        arrive(world, a)
        assert world.router.held("m") == 1
        world.wait(HOLD_S / 4)
    arrive(world, a)
    assert not sink.ended
    world.wait(HOLD_S / 4)
    assert [type(error) for error in sink.errors] == [Unavailable]
    assert counts(world).declined == 4


def absent(world, name="a"):
    """An instance whose node knows that it is not there, which this node has not heard yet."""
    instance = world.far(name)
    instance.refusal = Outdated(f"instance {name} is not here")
    return instance


def test_a_new_request_waits_for_an_instance_that_is_not_there_just_now(world):
    a = absent(world)
    sink = world.ask()
    for _ in range(3):
        arrive(world, a)
        assert world.router.held("m") == 1
        world.wait(COOLING_S)
    assert counts(world).declined >= 2
    a.inbox.clear()
    world.down(a)
    a = world.far("a")
    arrive(world, a)
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_it_waits_no_longer_than_where_no_instance_is_known(world):
    a = absent(world)
    sink = world.ask()
    arrive(world, a)
    world.wait(HOLD_S / 2)
    arrive(world, a)
    assert not sink.ended
    world.wait(HOLD_S)
    assert [type(error) for error in sink.errors] == [Unavailable]


def test_no_more_wait_for_it_than_where_no_instance_is_known(world):
    a = absent(world)
    sinks = [world.ask() for _ in range(MAX_HELD + 1)]
    arrive(world, a)
    assert [len(sink.errors) for sink in sinks] == [0] * MAX_HELD + [1]
    assert type(sinks[-1].errors[0]) is Unavailable


def test_who_is_not_there_does_not_hide_that_another_is_full(world):
    a, b = absent(world), world.far("b")
    b.refusal = Overloaded("full")
    sink = world.ask()
    for _ in range(2):
        arrive(world, a, b)
    assert [type(error) for error in sink.errors] == [Overloaded]


def test_held_requests_leave_those_alone_that_have_declined(world):
    for _ in range(MAX_HELD):
        world.ask()
    a = world.far("a", room=1)
    arrive(world, a)
    assert counts(world).declined == MAX_HELD - 1
    world.wait(COOLING_S / 2)
    assert a.inbox == []
    world.wait(COOLING_S / 2)
    assert len(a.inbox) == MAX_HELD - 1


def test_who_came_before_goes_before(world):
    early = [world.ask() for _ in range(2)]
    a = world.up("a", room=1)
    run(world, a, early[0])
    with pytest.raises(Overloaded):
        world.ask()  # there was room for one
    assert list(a.requests) == [early[1].request.id]


def test_a_lost_request_goes_before_new_ones(world):
    a = world.up("a")
    lost = [world.ask() for _ in range(2)]
    a.refusal = Unavailable("no more")
    world.down(a)
    new = [world.ask() for _ in range(2)]
    world.wait(1)
    b = world.up("b")
    assert [r.id for r in b.submitted] == [sink.request.id for sink in lost + new]


def test_a_lost_request_goes_even_before_those_that_came_before_it(world):
    early = world.ask("early", prompt=(1,) * 50)
    a = Instance("a")
    submit = a.submit

    def choosy(request):
        if request.id == "early":
            raise Overloaded("no room for that many tokens")
        submit(request)

    a.submit = choosy
    world.revive(a)
    late = world.ask("late")
    assert (list(a.requests), world.router.held("m")) == (["late"], 1)
    world.down(a)
    b = world.up("b")
    assert [r.id for r in b.submitted] == ["late", "early"]
    for sink in (late, early):
        run(world, b, sink)
        assert sink.tokens == sink.whole()


def test_a_held_request_that_is_declined_does_not_go_to_who_declines_already(world):
    world.ask()
    a, b = Far("a"), Far("b")
    for instance in (a, b):
        instance.refusal = Overloaded("full")
        world.revive(instance)
        arrive(world, instance)
    assert a.inbox == []
    assert world.router.held("m") == 1
    assert counts(world).declined == 2


def test_what_is_held_can_neither_be_lost_nor_declined(world):
    world.ask()
    world.router.on_lost([Loss("r0", 0)], "a mistake")
    world.router.on_declined("r0", 0, InvalidRequest("a mistake"))
    assert world.router.held("m") == 1
    assert (counts(world).lost, counts(world).declined) == (0, 0)
    world.router.check_integrity()


@pytest.mark.parametrize("state", ["shut", "gone"])
def test_while_nobody_is_open_requests_are_held(world, state):
    a = world.far("a")
    a.told_open = False
    if state == "gone":
        world.down(a)
    sink = world.ask()
    assert world.router.held("m") == 1
    a.told_open = True
    if state == "gone":
        world.revive(a)
    world.router.instance_changed("a")
    world.router.instance_changed("unknown")
    arrive(world, a)
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_what_is_given_away_is_no_failed_attempt():
    world = World(max_attempts=1)
    far = [world.far(name) for name in "ab"]
    sink = world.ask()
    for turn in range(5):
        arrive(world, *far)
        (home,) = [instance for instance in far if instance.requests]
        request = home.requests["r0"]
        assert request.attempt == turn
        world.router.on_tokens([home.step("r0")] if turn < 4 else [])
        home.give_away()
        home.told_open = home.open = True
    arrive(world, *far)
    (home,) = [instance for instance in far if instance.requests]
    run(world, home, sink)
    assert sink.tokens == sink.whole()
    assert (counts(world).moved, counts(world).lost) == (5, 0)


def test_what_is_given_away_does_not_go_back_at_once(world):
    a = world.far("a")
    sink = world.ask()
    arrive(world, a)
    a.give_away()
    assert a.inbox == []
    world.router.tick()  # nobody else has come: it may be open by now
    arrive(world, a)
    run(world, a, sink)
    assert sink.tokens == sink.whole()


def test_nobody_hands_a_request_round_for_ever(world):
    far = [world.far(name) for name in "ab"]
    sink = world.ask()
    for _ in range(MAX_MOVES + MAX_ATTEMPTS):
        assert not sink.ended
        arrive(world, *far)
        for instance in far:
            instance.give_away()
    assert [type(error) for error in sink.errors] == [GenerationFailed]


def test_a_request_lost_by_a_step_prefers_another_instance(world):
    a, b = world.up("a"), world.up("b")
    sink = world.ask()
    world.ask("at-b", prompt=(1,) * 50)
    assert list(a.requests) == ["r0"]
    del a.requests["r0"]
    world.router.on_lost([Loss("r0", 0)], "a step failed")
    run(world, b, sink)
    assert sink.tokens == sink.whole()


def test_an_instance_that_begins_anew_has_nothing_of_what_it_had(world):
    a = world.far("a")
    sink = world.ask()
    arrive(world, a)
    again = world.far("a")
    arrive(world, again)
    assert again.requests["r0"].attempt == 1
    world.router.on_tokens([TokenEvent("r0", 0, [1])])
    run(world, again, sink)
    assert sink.tokens == sink.whole()
    world.router.instance_up(again)  # the same once more: nothing has happened
    assert (counts(world).lost, counts(world).moved) == (0, 1)


def test_an_instance_that_goes_down_while_it_refuses(world):
    """A port may notice that its link is broken when something is to be sent."""
    a, b = Instance("a"), world.up("b")

    def submit(request):
        world.router.instance_down("a", "the link broke")
        raise Unavailable("the link is broken")

    a.submit = submit
    world.revive(a)
    world.ask("first", prompt=(1,) * 9)  # b is the fuller one by now
    assert "first" in b.requests
    world.revive(a)
    sink = world.ask()
    world.router.check_integrity()
    run(world, b, sink)
    assert sink.tokens == sink.whole()
    assert len(b.submitted) == 2


def test_sessions_stay_where_they_are_and_leave_with_the_instance(world):
    far = [world.far(name) for name in "abcd"]
    places = {}
    for turn in range(3):
        for session in ("s", "t", "u", "v"):
            name = f"{session}{turn}"
            sink = world.ask(name, prompt=(1,) * (turn * 9 + 3), session=session)
            arrive(world, *far)
            (home,) = [i for i in far if name in i.requests]
            assert places.setdefault(session, home) is home
            run(world, home, sink)
    world.down(places["s"])
    far.remove(places["s"])
    world.ask("s3", session="s")
    arrive(world, *far)
    assert sum(len(instance.requests) for instance in far) == 1


def test_prompts_follow_their_beginning_until_the_instance_is_lost(world):
    far = [world.far(name) for name in "abcdef"]
    prompt = tuple(range(10 * SPAN_TOKENS))
    world.ask("first", prompt=prompt)
    (home,) = [instance for instance in far if instance.inbox]
    for i in range(10):
        world.ask(f"like{i}", prompt=(*prompt, i))
    assert len(home.inbox) == 11
    world.ask("stranger", prompt=prompt, tenant="t")
    arrive(world, *far)
    home.requests.clear()
    world.router.instance_down(home.instance, "died")
    world.revive(home)
    assert {"first", *(f"like{i}" for i in range(10))} == {
        request.id for instance in far for request in instance.inbox
    }
    world.ask("again", prompt=prompt[:SPAN_TOKENS], tenant="new")
    world.router.check_integrity()


def test_requests_are_reported(world):
    a = world.up("a")
    world.ask("running", prompt=(1, 2), max_tokens=9)
    world.router.on_tokens([a.step("running", 3)])
    world.ask("held", model="other")
    world.clock.seconds += 2.5
    running, held = world.router.requests(world.clock.now())
    assert (running.id, running.model, running.instance) == ("running", "m", "a")
    assert (running.prompt_tokens, running.output_tokens, running.max_tokens) == (2, 3, 9)
    assert (running.attempt, running.age_s) == (0, 2.5)
    assert (held.id, held.instance, held.output_tokens) == ("held", "", 0)
    figures = world.router.statistics()
    assert (figures.active, figures.held, figures.instances) == (2, {"other": 1}, 1)
