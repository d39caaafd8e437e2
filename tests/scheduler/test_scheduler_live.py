"""A home and its helpers, path by path: who runs which layers, and what happens when they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.live import (
    Finished,
    Handoff,
    Lend,
    LivePolicy,
    Nothing,
    Offer,
    Pull,
    Purpose,
    Recall,
    Withdraw,
)
from blitzgw.core.parcels import Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.errors import Unavailable
from blitzgw.scheduler.events import (
    EndPairing,
    InstanceOpened,
    InstanceRemoved,
    LayersResident,
    PairingOpened,
    Refuse,
    RequestArrived,
    Ticked,
)
from blitzgw.scheduler.scheduler import Scheduler
from tests.scheduler.live_kit import LiveWorld, served

LONG = 40
"""Tokens that fill a batch of the kit's instances."""


def prompt(number: int, tokens: int = LONG) -> list[int]:
    return [(number * 13 + i * 7) % 89 + 1 for i in range(tokens)]


def pair(
    requests: int = 3, layers: int = 1, *, policy: LivePolicy = LivePolicy.ZIGZAG, **options
) -> LiveWorld:
    """Return a home with a queue, and a helper that has been lent all but the first request."""
    world = LiveWorld()
    world.add("home", max_in_flight=1, home_layers=1)
    world.add("help", loading=True, max_in_flight=1, **options)
    world.pair("help", "home", policy)
    world.layers("help", layers)
    world.talk()
    for number in range(requests):
        world.ask(prompt(number))
    world.talk()
    return world


def said(world: LiveWorld, kind: type) -> list:
    return [message for message in world.said if isinstance(message, kind)]


def until_handed(world: LiveWorld, helper_layers: int) -> None:
    """Let the helper take its first request so far, and the home recall it."""
    for _ in range(helper_layers):
        world.run_step("help")
        world.talk()
    while not said(world, Recall):
        world.run_step("home")
        world.talk()


def finish(world: LiveWorld) -> None:
    world.play()
    if "help" in world.nodes and not world.nodes["help"].complete:
        world.complete("help")
    world.play()
    world.assert_done()


def test_an_idle_home_takes_the_head_and_lends_the_rest():
    world = pair(4)
    assert [message.request.id for message in said(world, Lend)] == ["r2", "r3", "r4"]
    assert world.live("home").lent == world.live("help").tasks == 3
    assert world.live("home").helped == ("help",)
    assert world.live("help").helping == ("home",)
    finish(world)


@pytest.mark.parametrize("k", range(1, 5))
def test_a_request_goes_on_from_whatever_layer_it_has_reached(k):
    world = pair(2, layers=k)
    until_handed(world, k)
    assert [message.layer for message in said(world, Handoff)] == [k]
    world.play()
    route = world.stories["r2"].route
    stages = [(stage.instance, stage.span.start, stage.span.stop) for stage in route]
    assert stages == [("help", 0, k), ("home", k, 5)]
    assert world.live("home").split_total == 1
    finish(world)


def test_a_request_that_the_helper_has_not_begun_comes_back_without_parcels():
    world = pair(3)
    world.abort("r2")  # with the step that the helper has posted
    world.talk()
    until_handed(world, 0)
    assert [(message.request_id, message.layer) for message in said(world, Handoff)] == [("r3", 0)]
    finish(world)
    assert world.stories["r3"].route == ()


def test_the_helper_runs_one_layer_a_step_and_only_what_is_resident():
    world = pair(3, layers=2)
    for _ in range(4):
        world.run_step("help")
    assert world.spans("help") == [(0, 1), (1, 2), (0, 1), (1, 2)]
    assert not world.nodes["help"].worker.posted, "the third layer is not here"
    finish(world)


def test_requests_at_the_same_layer_share_a_step():
    world = LiveWorld()
    world.add("home", max_in_flight=1)
    world.add("help", loading=True, max_in_flight=1)
    world.pair("help", "home")
    world.layers("help", 1)
    world.talk()
    world.ask(prompt(0))
    for number in range(1, 4):
        world.ask(prompt(number, 10))
    world.talk()
    world.run_step("help")  # the first one alone: it had come before the others
    world.run_step("help")
    assert [row.count for row in world.nodes["help"].worker.ran[-1].rows] == [10, 10]
    finish(world)


def test_all_chunks_of_a_long_prompt_run_a_layer_before_the_next():
    world = pair(0, layers=2, max_batched_tokens=15)
    world.ask(prompt(0))
    world.ask(prompt(1))
    world.talk()
    for _ in range(4):
        world.run_step("help")
    rows = [(s.span.start, s.rows[0].start) for s in world.nodes["help"].worker.ran if s.rows]
    assert rows == [(0, 0), (0, 15), (0, 30), (1, 0)]
    while not said(world, Recall):
        world.run_step("home")
        world.talk()
    assert not said(world, Handoff), "a handoff has one frontier"
    finish(world)
    assert [message.layer for message in said(world, Handoff)] == [2]


def test_without_memory_for_it_the_helper_keeps_a_request():
    world = pair(0)
    home = world.nodes["home"].scheduler
    home._budget.total_bytes = 40  # room for one request and its answer
    for number in range(2):
        world.ask(prompt(number), 5)
    world.talk()
    while not world.stories["r1"].over:
        assert not said(world, Recall)
        world.run_step("home")
    assert [message.request_id for message in said(world, Recall)] == ["r2"]
    finish(world)


def test_a_request_whose_prefix_is_here_stays():
    world = LiveWorld()
    world.add("home", max_in_flight=1)
    world.ask(prompt(0))
    world.play()
    world.add("help", loading=True)
    world.pair("help", "home")
    world.layers("help", 1)
    world.talk()
    for number in (1, 0, 2):
        world.ask([*prompt(number), 5])
    world.talk()
    assert [message.request.id for message in said(world, Lend)] == ["r4"]
    finish(world)
    assert world.nodes["home"].scheduler.statistics().instances["home"].prefix_hits == 32


def test_the_prefix_is_named_once_all_of_the_kv_is_here():
    world = pair(2, layers=3)
    until_handed(world, 3)
    world.play()
    before = world.nodes["home"].scheduler.statistics().instances["home"].prefix_hits
    world.complete("help")
    world.talk()
    world.ask([*prompt(1), 4])
    finish(world)
    after = world.nodes["home"].scheduler.statistics().instances["home"].prefix_hits
    assert after - before == 32


def test_kv_that_has_not_come_is_not_named_and_nobody_decodes_on_it():
    world = pair(2, layers=3)
    for _ in range(3):
        world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.deliver("p1", "help")
    world.deliver("p1", "home")
    world.run_step("help")  # it only sends
    world.carry("p1")  # hidden states
    while world.nodes["home"].worker.posted:
        world.run_step("home")
    assert len(world.stories["r2"].outputs) == 1, "the prompt needs its own layers' KV only"
    slots = world.nodes["home"].scheduler.statistics().instances["home"].slots
    assert slots.active_slots == 1
    assert slots.retained_slots == 1, "that of the first request"
    world.talk()
    finish(world)
    assert len(world.stories["r2"].outputs) == 3


def test_an_answer_that_ends_with_its_first_token_needs_no_kv():
    world = pair(0, layers=3)
    for number in range(2):
        world.ask(prompt(number), 1)
    world.talk()
    for _ in range(3):
        world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.deliver("p1", "help")
    world.deliver("p1", "home")
    world.run_step("help")
    world.carry("p1")
    while world.nodes["home"].worker.posted:
        world.run_step("home")
    assert world.stories["r2"].over
    assert [message.request_id for message in said(world, Withdraw)] == ["r2"]
    finish(world)


@pytest.mark.parametrize("k", range(4))
def test_a_client_that_leaves_frees_everything_everywhere(k):
    world = pair(3, layers=3)
    for _ in range(k):
        world.run_step("help")
    world.abort("r2")
    world.talk()
    assert world.live("help").tasks == 1
    world.abort("r3")
    world.abort("r1")
    world.play()
    world.assert_done()


def test_a_client_that_leaves_after_the_recall_gets_nothing():
    world = pair(2, layers=3)
    for _ in range(3):
        world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.deliver("p1", "help")
    world.abort("r2")  # the handoff is on its way
    world.talk()
    finish(world)
    assert not world.stories["r2"].outputs


@pytest.mark.parametrize("steps", range(9))
def test_a_helper_that_dies_leaves_its_requests_to_the_home(steps):
    world = pair(3, layers=3)
    for _ in range(steps):
        for name in ("help", "home"):
            if world.nodes[name].worker.posted:
                world.run_step(name)
        world.talk()
    world.kill("help")
    world.play()
    world.assert_done()
    assert all(not story.failures for story in world.stories.values())


@pytest.mark.parametrize("steps", range(9))
def test_a_home_that_dies_leaves_nothing_at_the_helper(steps):
    world = pair(3, layers=3)
    world.add("spare")
    for _ in range(steps):
        for name in ("help", "home"):
            if world.nodes[name].worker.posted:
                world.run_step(name)
        world.talk()
    world.kill("home")
    world.play()
    world.assert_done()


def test_a_helper_keeps_what_it_has_begun_and_the_queue_is_dealt_out():
    world = pair(8, layers=2, in_flight=2)
    world.run_step("help")
    world.layers("help", 5)
    world.complete("help")
    finished = said(world, Finished)[0]
    assert [kept.request_id for kept in finished.kept] == ["r2"]
    world.talk()
    at = [story.instance for story in world.stories.values()]
    assert at.count("help") == 4
    assert world.live("help").kept == 0, "its ingress has come"
    finish(world)
    assert world.live("home").dealt_total == at.count("help")
    assert world.live("home").helped == ()
    assert not world.pairings["p1"].alive


def test_tokens_of_a_kept_sequence_wait_for_its_ingress():
    world = pair(2, layers=2)
    world.run_step("help")
    world.complete("help")
    while world.nodes["help"].worker.posted:
        world.run_step("help")
    assert world.live("help").kept == 1
    assert not world.stories["r2"].outputs
    world.talk()
    assert len(world.stories["r2"].outputs) == 3
    assert world.stories["r2"].route == (), "one instance has run it all"
    finish(world)


def test_nobody_comes_for_what_is_kept():
    world = pair(2, layers=2)
    world.run_step("help")
    world.complete("help")
    help_ = world.nodes["help"].scheduler
    world.kill("home")
    world.stories["r2"].over = world.stories["r1"].over = True
    for _ in range(10):
        assert help_.expects_ticks
        world.tick()
    assert not help_.expects_ticks
    world.play()
    world.assert_done()


def test_a_resubmission_that_does_not_continue_what_is_kept_starts_afresh():
    world = pair(2, layers=2)
    world.run_step("help")
    world.complete("help")
    story = world.stories["r2"]
    story.instance = "help"
    story.request = replace(story.request, attempt=1, sampling=replace(story.request.sampling))
    changed = replace(story.request, tokens=(*story.request.tokens[:-1], 9))
    story.request = changed
    world.tell("help", RequestArrived("help", changed))
    assert world.live("help").kept == 0
    finish(world)


def test_a_recall_that_crosses_finished_is_void():
    world = pair(2, layers=2)
    world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.complete("help")
    finish(world)
    assert not said(world, Handoff)
    assert not said(world, Nothing)
    assert world.stories["r2"].instance == "help"


def test_a_request_that_cannot_run_at_the_helper_comes_back_and_stays():
    world = pair(2, max_model_len=20)
    assert [message.request_id for message in said(world, Nothing)] == ["r2"]
    assert len(said(world, Lend)) == 1
    finish(world)


@pytest.mark.parametrize("step", range(4))
def test_a_step_that_fails_at_the_helper_costs_no_attempt(step):
    world = pair(3, layers=3)
    for _ in range(step):
        world.run_step("help")
    world.run_step("help", fail=True)
    finish(world)
    assert said(world, Nothing)
    assert all(not story.failures for story in world.stories.values())


def test_parcels_that_cannot_be_sent_are_computed_at_home():
    world = pair(2, layers=3)
    for _ in range(3):
        world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.deliver("p1", "help")
    world.run_step("help")
    send = world.nodes["help"].worker.outgoing["p1"].popleft().send
    world.tell("help", ParcelsSent("p1", send.ticket, 0, 0.0, "no memory to read into"))
    finish(world)
    assert world.stories["r2"].route == ()


def test_a_send_step_that_fails_is_told():
    world = pair(2, layers=3)
    for _ in range(3):
        world.run_step("help")
    while not said(world, Recall):
        world.run_step("home")
    world.deliver("p1", "help")
    world.run_step("help", fail=True)
    finish(world)
    assert said(world, Nothing)


def test_a_helper_that_is_removed_and_a_home_that_is_removed():
    for victim in ("help", "home"):
        world = pair(3, layers=3)
        world.add("spare")
        world.run_step("help")
        node = world.nodes[victim]
        node.complete = False
        for _ in range(len(node.worker.posted)):
            node.worker.run_next()
        world.tell(victim, InstanceRemoved(victim))
        del world.nodes[victim]
        assert not world.pairings["p1"].alive
        if victim == "home":
            world.complete("help")
        world.play()
        world.assert_done()


def test_best_effort_runs_half_at_most_and_offers():
    world = pair(3, layers=4, policy=LivePolicy.BEST_EFFORT)
    world.play()
    assert {message.layer for message in said(world, Offer)} == {2}
    assert len(said(world, Offer)) == 3
    assert {message.layer for message in said(world, Handoff)} == {2}
    finish(world)


def test_stop_helps_nobody_before_it_is_complete():
    world = pair(4, layers=4, policy=LivePolicy.STOP)
    assert not said(world, Lend)
    world.complete("help")
    world.talk()
    assert [story.instance for story in world.stories.values()].count("help") == 2
    finish(world)


def test_a_helper_asks_for_less_when_it_is_almost_complete():
    world = pair(0, layers=1, in_flight=4)
    world.layers("help", 4)
    assert [message.tokens for message in said(world, Pull)] == [4 * 40, 2 * 40]


def test_two_helpers_share_a_queue():
    world = pair(0)
    world.add("other", loading=True, max_in_flight=1)
    world.pair("other", "home")
    world.layers("other", 1)
    world.talk()
    for number in range(5):
        world.ask(prompt(number))
    world.talk()
    assert [message.pairing for message in said(world, Lend)] == ["p1", "p2", "p1", "p2"]
    world.complete("other")
    finish(world)


def test_an_instance_that_is_loading_takes_no_requests():
    scheduler = Scheduler(1000)
    scheduler.handle(InstanceOpened(served("a")), 0.0)
    assert not scheduler.outlook("a").open
    world = pair(1)
    request = world.stories["r1"].request
    (refusal,) = scheduler.handle(RequestArrived("a", request), 0.0)
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, Unavailable)


def test_what_nobody_knows_of_is_ignored():
    world = pair(2)
    for name in ("home", "help"):
        for event in (
            LayersResident("nobody", 3),
            Recall("p9", "r1", 0),
            Handoff("p1", "r9", 0, 2),
            Handoff("p1", "r2", 7, 2),
            Nothing("p1", "r1", 0),
            Withdraw("p1", "r2", 5),
            ParcelArrived("p1", Parcel(99, Span(1, 1), 0, 4)),
            ParcelsSent("p1", 99, 0, 0.0),
            Ticked(),
        ):
            world.tell(name, event)
    finish(world)


def test_a_pairing_that_cannot_be_is_ended():
    scheduler = Scheduler(1000)
    opened = PairingOpened("p", Purpose.HELP, "a", "b", guest=True)
    (end,) = scheduler.handle(opened, 0.0)
    assert isinstance(end, EndPairing)
