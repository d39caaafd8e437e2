"""What a router does in each situation, one at a time."""

import pytest

from blitzgw.core.peer import Loss
from blitzgw.core.request import FinishReason, TokenEvent
from blitzgw.errors import GenerationFailed, InvalidRequest, Overloaded, Unavailable
from blitzgw.router.refusal import kinder
from tests.router.router_kit import HOLD_S, MAX_ATTEMPTS, MAX_HELD, Instance, World


@pytest.fixture
def world():
    return World()


def run(world, instance, sink, steps=100):
    """Let an instance generate until it has no more of a request, or for some steps."""
    for _ in range(steps):
        if sink.request.id in instance.requests:
            world.router.on_tokens([instance.step(sink.request.id)])


def test_the_emptiest_instance_is_taken(world):
    for name in ("a", "b", "c"):
        world.up(name)
    for prompt in ((1,) * 9, (1,) * 3, (1,) * 5, (1,) * 3, (1,) * 2):
        world.ask(prompt=prompt)
    places = [world.router.instance_of(f"r{i}") for i in range(5)]
    assert places == ["a", "b", "c", "b", "c"]


@pytest.mark.parametrize(
    ("refusals", "kindest"),
    [
        ([Overloaded("x", retry_after_s=9), Overloaded("y", retry_after_s=2)], 1),
        ([Unavailable("x", retry_after_s=1), Overloaded("y", retry_after_s=9)], 1),
        ([Overloaded("x"), Overloaded("y", retry_after_s=9)], 1),
        ([Unavailable("x", retry_after_s=1), Unavailable("y")], 0),
        ([Overloaded("x", retry_after_s=1), Overloaded("y", retry_after_s=1)], 0),
    ],
)
def test_the_kindest_refusal_is_passed_on(refusals, kindest):
    known = None
    for refusal in refusals:
        known = kinder(known, refusal)
    assert known is refusals[kindest]


def test_a_request_is_answered_where_it_was_sent(world):
    a = world.up()
    sink = world.ask()
    assert world.router.instance_of("r0") == "a"
    run(world, a, sink)
    assert (sink.tokens, sink.finishes) == (sink.whole(), [FinishReason.LENGTH])
    assert sink.cached[0] == 1
    assert world.router.instance_of("r0") is None


def test_who_served_is_known_while_the_last_tokens_are_pushed(world):
    a = world.up()
    sink = world.ask()
    seen = []
    sink.on_push = lambda event: seen.append(world.router.instance_of("r0"))
    run(world, a, sink)
    assert seen == ["a"] * 5


def test_another_model_is_not_asked(world):
    other = world.up("a", model="other")
    world.ask()
    assert other.submitted == []
    assert (world.router.held("m"), world.router.held("other")) == (1, 0)


def test_an_id_is_taken_once(world):
    a = world.up()
    world.ask("same")
    with pytest.raises(InvalidRequest, match="already"):
        world.ask("same")
    assert list(a.requests) == ["same"]
    assert world.router.instance_of("same") == "a"


@pytest.mark.parametrize("refusal", [Overloaded("full"), Unavailable("gone")])
def test_a_refusal_tries_the_next(world, refusal):
    a, b = world.up("a"), world.up("b")
    a.refusal = refusal
    sink = world.ask()
    assert world.router.instance_of("r0") == "b"
    run(world, b, sink)
    assert sink.tokens == sink.whole()


def test_a_refusal_by_all_is_raised_and_forgotten(world):
    world.up("a").refusal = Unavailable("gone", retry_after_s=1)
    world.up("b").refusal = Overloaded("full", retry_after_s=3)
    with pytest.raises(Overloaded, match="full"):
        world.ask()
    assert world.router.instance_of("r0") is None
    assert world.router.held("m") == 0


def test_an_invalid_request_is_not_passed_around(world):
    world.up("a").refusal = InvalidRequest("too long")
    b = world.up("b")
    with pytest.raises(InvalidRequest):
        world.ask()
    assert b.submitted == []


def test_an_unexpected_error_leaves_nothing_behind(world):
    world.up("a").refusal = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        world.ask()
    assert world.router.instance_of("r0") is None
    world.revive(Instance("a"))
    world.ask("r0")


def test_requests_are_held_until_an_instance_is_up(world):
    sinks = [world.ask() for _ in range(MAX_HELD)]
    assert world.router.held("m") == MAX_HELD
    a = world.up()
    assert [request.id for request in a.submitted] == [sink.request.id for sink in sinks]
    for sink in sinks:
        run(world, a, sink)
        assert sink.tokens == sink.whole()


def test_so_many_are_held_for_each_model(world):
    for model in ("m", "other"):
        for _ in range(MAX_HELD):
            world.ask(model=model)
        with pytest.raises(Unavailable) as refusal:
            world.ask(model=model)
        assert refusal.value.retry_after_s
    assert world.router.held("m") == world.router.held("other") == MAX_HELD


def test_so_long_are_they_held(world):
    early = world.ask()
    world.wait(HOLD_S / 2)
    late = world.ask()
    world.wait(HOLD_S / 2)
    assert [type(error) for error in early.errors] == [Unavailable]
    assert early.errors[0].retry_after_s
    assert not late.ended
    world.wait(HOLD_S / 2)
    assert len(late.errors) == 1
    assert world.router.held("m") == 0


def test_what_did_not_fit_is_placed_when_there_is_room(world):
    first, second = world.ask(), world.ask()
    a = world.up(room=1)
    assert world.router.held("m") == 1
    world.wait(0.1)
    assert world.router.held("m") == 1
    run(world, a, first)
    world.wait(0.1)
    run(world, a, second)
    assert second.tokens == second.whole()


def test_a_full_model_does_not_keep_another_from_its_room(world):
    world.ask("m1"), world.ask("m2")
    world.ask("o1", model="other")
    world.up("a", room=1)
    b = world.up("b", model="other")
    assert list(b.requests) == ["o1"]
    assert world.router.held("m") == 1


def test_a_held_request_that_turns_out_invalid_is_failed(world):
    sink = world.ask()
    a = Instance("a")
    a.refusal = InvalidRequest("too long")
    world.revive(a)
    assert [type(error) for error in sink.errors] == [InvalidRequest]


def test_a_held_request_can_be_aborted(world):
    world.leave(world.ask())
    a = world.up()
    assert a.submitted == []


def test_an_abort_reaches_the_instance(world):
    a = world.up()
    sink = world.ask()
    world.leave(sink)
    assert a.requests == {}
    world.router.on_tokens([TokenEvent("r0", 0, [1])])
    world.router.abort("r0")
    world.router.abort("never heard of")
    assert sink.tokens == []


@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_lost_request_goes_on_elsewhere(world, before):
    a = world.up("a")
    sink = world.ask(choice=2, tenant="t", priority=3)
    run(world, a, sink, steps=before)
    b = world.up("b")
    world.down(a)
    (again,) = b.submitted
    first = sink.request
    assert again.tokens == first.tokens + tuple(sink.whole()[:before])
    assert (again.prompt_length, again.sampling) == (first.prompt_length, first.sampling)
    assert (again.choice, again.tenant, again.priority, again.attempt) == (2, "t", 3, 1)
    run(world, b, sink)
    assert sink.tokens == sink.whole()


@pytest.mark.parametrize("before", [0, 1])
def test_tokens_reused_by_a_later_attempt_are_not_the_prompts(world, before):
    """Unless nothing had been told before: then the later attempt is the one that counts."""
    a = world.up("a")
    sink = world.ask()
    run(world, a, sink, steps=before)
    sink.cached.clear()
    b = world.up("b")
    world.down(a)
    run(world, b, sink)
    assert sink.cached[0] == (0 if before else 1)


def test_events_of_a_former_attempt_are_dropped(world):
    a = world.up("a")
    sink = world.ask()
    stale = a.step("r0", 2)
    b = world.up("b")
    world.down(a)
    world.router.on_tokens([stale])
    assert sink.tokens == []
    run(world, b, sink)
    assert sink.tokens == sink.whole()


def test_a_resubmission_is_held_even_where_new_requests_are_not(world):
    a = world.up()
    lost = [world.ask() for _ in range(MAX_HELD + 3)]
    world.down(a)
    assert world.router.held("m") == MAX_HELD + 3
    with pytest.raises(Unavailable):
        world.ask("new")
    b = world.up("b")
    for sink in lost:
        run(world, b, sink)
        assert sink.tokens == sink.whole()


def test_a_resubmission_waits_where_everybody_is_full(world):
    a, b = world.up("a"), world.up("b")
    sink = world.ask()
    b.refusal = Overloaded("full")
    world.down(a)
    assert not sink.ended
    b.refusal = None
    world.wait(0.1)
    run(world, b, sink)
    assert sink.tokens == sink.whole()


def test_a_resubmission_waits_no_longer_than_others(world):
    a = world.up()
    sink = world.ask()
    world.clock.seconds += 5 * HOLD_S
    world.down(a)
    world.wait(HOLD_S / 2)
    assert not sink.ended
    world.wait(HOLD_S / 2)
    assert [type(error) for error in sink.errors] == [Unavailable]


def test_attempts_are_bounded(world):
    instance = world.up()
    sink = world.ask()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert not sink.ended
        run(world, instance, sink, steps=1)
        world.down(instance)
        if attempt < MAX_ATTEMPTS:
            instance = world.up()
    assert [type(error) for error in sink.errors] == [GenerationFailed]
    assert sink.tokens == sink.whole()[:MAX_ATTEMPTS]
    assert world.router.held("m") == 0


def test_one_attempt_means_no_retry():
    world = World(max_attempts=1)
    a = world.up("a")
    sink = world.ask()
    world.up("b")
    world.down(a)
    assert [type(error) for error in sink.errors] == [GenerationFailed]


def test_a_failed_step_is_retried_at_the_same_instance(world):
    a = world.up()
    sink = world.ask()
    run(world, a, sink, steps=2)
    a.requests.clear()
    losses = [Loss("r0", 1), Loss("unknown", 0)]
    world.router.on_lost(losses, "another attempt failed")
    assert len(a.submitted) == 1
    world.router.on_lost([Loss("r0", 0)], "a step failed")
    run(world, a, sink)
    assert sink.tokens == sink.whole()
    assert len(a.submitted) == 2


def test_a_resubmission_that_lacked_only_its_end_is_ended_at_once(world):
    a = world.up("a")
    sink = world.ask()
    a.step("r0", 5)  # the last tokens arrive without their end
    world.router.on_tokens([TokenEvent("r0", 0, sink.whole())])
    world.up("b")
    world.down(a)
    assert (sink.tokens, sink.finishes) == (sink.whole(), [FinishReason.LENGTH])
    assert world.router.instance_of("r0") is None


def test_the_same_of_a_held_one(world):
    a = world.up("a")
    sink = world.ask()
    world.router.on_tokens([TokenEvent("r0", 0, sink.whole())])
    world.down(a)
    assert not sink.ended
    world.up("b")
    assert sink.finishes == [FinishReason.LENGTH]
    assert world.router.held("m") == 0


def test_giving_a_model_up_answers_who_waits_and_who_comes(world):
    held, other = world.ask(), world.ask(model="other")
    world.router.give_up("m", "it is broken")
    assert [error.message for error in held.errors] == ["it is broken"]
    assert not other.ended
    with pytest.raises(Unavailable, match="it is broken"):
        world.ask()
    a = world.up()
    run(world, a, world.ask("later"))
    assert world.sinks["later"].finishes


def test_giving_a_model_up_answers_who_is_lost(world):
    a = world.up("a")
    sink = world.ask()
    world.router.give_up("m", "it is broken")
    world.down(a)
    assert [error.message for error in sink.errors] == ["it is broken"]


# What a sink or a port calls back.


def test_a_sink_that_aborts_its_siblings_when_it_fails(world):
    """All choices of one client request end together: none may be called, or placed, after."""
    sinks = [world.ask() for _ in range(3)]
    for sink in sinks:
        sink.on_fail = lambda error: [world.leave(s) for s in sinks if not s.ended]
    world.wait(HOLD_S)
    assert [len(sink.errors) for sink in sinks] == [1, 0, 0]


def test_siblings_of_an_invalid_request_are_not_placed(world):
    sinks = [world.ask() for _ in range(3)]
    sinks[0].on_fail = lambda error: [world.leave(s) for s in sinks[1:]]
    a = Instance("a")
    refuse_first(a, InvalidRequest("too long"))
    world.revive(a)
    assert a.submitted == []


def refuse_first(instance, error):
    submit = instance.submit

    def once(request):
        instance.submit = submit
        raise error

    instance.submit = once


def test_siblings_of_one_given_up_are_not_called(world):
    sinks = [world.ask() for _ in range(3)]
    sinks[0].on_fail = lambda error: [world.leave(s) for s in sinks[1:]]
    world.router.give_up("m", "broken")
    assert [len(sink.errors) for sink in sinks] == [1, 0, 0]


def test_siblings_of_one_that_failed_for_good_are_not_resubmitted():
    world = World(max_attempts=1)
    a = world.up("a")
    sinks = [world.ask() for _ in range(3)]
    sinks[0].on_fail = lambda error: [world.leave(s) for s in sinks[1:]]
    b = world.up("b")
    world.down(a)
    assert [len(sink.errors) for sink in sinks] == [1, 0, 0]
    assert b.submitted == []


def test_a_sink_that_leaves_while_it_is_pushed_to(world):
    a = world.up()
    sink, other = world.ask(), world.ask()
    sink.on_push = lambda event: world.leave(sink)
    world.router.on_tokens([a.step("r0"), a.step("r1")])
    assert a.requests.keys() == {"r1"}
    run(world, a, other)
    assert other.tokens == other.whole()


def test_a_sink_that_takes_its_siblings_along(world):
    a = world.up()
    sink, sibling = world.ask(), world.ask()
    sink.on_push = lambda event: [world.leave(s) for s in (sink, sibling)]
    world.router.on_tokens([a.step("r0"), a.step("r1")])
    assert sibling.tokens == []
    assert a.requests == {}


def test_a_sink_that_asks_again(world):
    a = world.up()
    sink = world.ask()
    sink.on_push = lambda event: event.finish and world.ask("next")
    run(world, a, sink)
    run(world, a, world.sinks["next"])
    assert world.sinks["next"].tokens == sink.tokens == sink.whole()


def test_tokens_that_come_before_submit_returns(world):
    held = [world.ask(), world.ask()]
    world.up("a", at_once=True)
    now = world.ask()
    for sink in (*held, now):
        assert (sink.tokens, len(sink.finishes)) == (sink.whole(), 1)


def test_a_sink_that_leaves_before_submit_returns(world):
    sink = world.ask()
    sink.on_push = lambda event: world.leave(sink)
    a = world.up("a", at_once=True)
    assert len(sink.tokens) == 1
    assert a.requests == {}
    assert world.router.held("m") == 0


def test_an_instance_that_is_lost_before_submit_returns(world):
    sink = world.ask()
    a = Instance("a")
    submit = a.submit

    def fall(request):
        submit(request)
        world.down(a)

    a.submit = fall
    world.revive(a)
    assert not sink.ended
    assert world.router.held("m") == 1
    b = world.up("b")
    run(world, b, sink)
    assert sink.tokens == sink.whole()


def test_an_instance_that_goes_down_while_others_are_placed(world):
    sinks = [world.ask() for _ in range(3)]
    a, b = Instance("a", at_once=True), world.up("b", room=0)
    sinks[1].on_push = lambda event: world.router.instance_down("a", "died")
    a.router = world.router
    world.router.instance_up(a)
    b.room = 100
    world.wait(0.1)
    for sink in sinks:
        run(world, b, sink)
        assert (sink.tokens, len(sink.finishes)) == (sink.whole(), 1)


# What the model's owner wants to know.


def test_who_comes_waits_and_is_refused_is_counted_by_model():
    world = World(max_held=1)
    stirred = []
    world.router.watch(stirred.append, lambda _: None)
    world.ask("first", prompt=(1, 2, 3))
    world.clock.seconds += 2.0
    assert (world.router.queue("m").requests, world.router.queue("m").tokens) == (1, 3)
    assert world.router.queue("m").since_s == 100.0
    with pytest.raises(Unavailable):
        world.ask("second")
    arrived = world.router.arrived("m")
    assert (arrived.requests, arrived.refused) == (2, 1)
    assert stirred == ["m", "m", "m"], "two came, and one of them is held"
    world.up().at_once = True
    world.router.tick()
    assert world.router.queue("m").requests == 0
    assert world.router.queue("m").since_s is None


@pytest.mark.parametrize(
    ("eta_s", "retry_s"), [(None, 10.0), (3.5, 3.5), (0.1, 1.0), (1000.0, 120.0)]
)
def test_who_is_refused_while_a_model_scales_is_told_when_to_come_back(eta_s, retry_s):
    world = World(max_held=0)
    world.router.watch(lambda _: None, lambda _: eta_s)
    with pytest.raises(Unavailable) as refusal:
        world.ask("first")
    assert refusal.value.retry_after_s == retry_s


def test_an_instance_that_is_sooner_free_than_another_one_comes_is_believed():
    for eta_s, retry_s in ((9.0, 2.0), (1.5, 1.5)):
        world = World()
        world.router.watch(lambda _: None, lambda _, eta_s=eta_s: eta_s)
        world.up(room=0)
        with pytest.raises(Overloaded) as refusal:
            world.ask("first")
        assert refusal.value.retry_after_s == retry_s
