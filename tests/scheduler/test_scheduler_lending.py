"""What a home takes next, and from where it goes on, beside those who decode and who are due first.

The kit's instances have 5 layers and batches of 40 tokens.
"""

from __future__ import annotations

import pytest

from blitzgw.core.live import Handoff, Lend, Recall, Withdraw
from tests.scheduler.live_kit import LiveWorld
from tests.scheduler.test_scheduler_live import LONG, finish, prompt, said

LONGER = 66
"""Tokens of two batches."""


def home(**options) -> LiveWorld:
    """Return a home, and a helper with a layer that takes so many batches `in_flight`."""
    world = LiveWorld()
    in_flight = options.pop("in_flight", None)
    world.add("home", max_in_flight=1, **{"home_layers": 1} | options)
    world.add("help", loading=True, max_in_flight=1, in_flight=in_flight)
    world.pair("help", "home")
    world.layers("help", 1)
    world.talk()
    return world


def decoding(**options) -> LiveWorld:
    """Return the same where somebody decodes, and how fast that is has been measured."""
    world = home(**options)
    world.ask(prompt(0, 20), 30)
    for _ in range(9):
        world.run_step("home")
    assert len(world.stories["r1"].outputs) > 5
    world.nodes["home"].worker.ran.clear()
    return world


def rows(world: LiveWorld) -> list[tuple[tuple[int, int], list[int]]]:
    """Return the span of each of the home's steps, and the tokens of their rows."""
    ran = world.nodes["home"].worker.ran
    return [((s.span.start, s.span.stop), [row.count for row in s.rows]) for s in ran if s.rows]


def until(world: LiveWorld, kind: type, count: int = 1) -> None:
    while len(said(world, kind)) < count:
        world.run_step("home")
        world.talk()


# Who is due first.


def test_what_is_due_first_goes_before_what_the_home_has_begun():
    world = home()
    world.ask(prompt(0, LONGER), priority=1)
    world.run_step("home")
    world.ask(prompt(1, 10))
    world.talk()
    assert not said(world, Lend), "the home is about to take it itself"
    while not world.stories["r2"].outputs:
        world.run_step("home")
    assert not world.stories["r1"].outputs
    finish(world)


def test_what_is_due_first_is_recalled_while_the_home_is_at_something_else():
    world = home()
    world.layers("help", 3)
    world.ask(prompt(0, LONGER), priority=1)
    world.run_step("home")
    world.ask(prompt(1), 1, priority=-1)
    world.run_step("home")
    world.run_step("home")
    world.ask(prompt(2))
    world.talk()
    assert [message.request.id for message in said(world, Lend)] == ["r3"]
    for _ in range(3):
        world.run_step("help")
    until(world, Handoff)
    assert world.stories["r2"].outputs
    world.nodes["home"].worker.ran.clear()
    while not world.stories["r3"].outputs:
        world.run_step("home")
    assert rows(world)[-2:] == [((3, 4), [40]), ((4, 5), [40])]
    assert [counts for _, counts in rows(world)[:-2]] == [[40], [26]], "what had been begun"
    finish(world)


def test_what_is_due_first_goes_before_what_is_lent():
    world = home(in_flight=1)
    world.ask(prompt(0), priority=-1)
    world.ask(prompt(1), priority=1)
    world.talk()
    assert [message.request.id for message in said(world, Lend)] == ["r2"]
    world.ask(prompt(2))
    world.talk()
    assert world.live("home").lent == 1, "the helper has as much as it takes"
    while not world.stories["r3"].outputs:
        world.run_step("home" if world.nodes["home"].worker.posted else "help")
        world.talk()
    assert not world.stories["r2"].outputs
    finish(world)


def test_what_is_due_later_waits_for_what_the_home_has_begun():
    world = home()
    world.ask(prompt(0, LONGER))
    world.ask(prompt(1), priority=1)
    world.talk()
    for _ in range(4):
        world.run_step("home")
    assert not said(world, Recall)
    finish(world)


def test_what_is_due_first_goes_first_when_helpers_are_gone_too():
    world = home()
    world.ask(prompt(0, LONGER), priority=1)
    world.run_step("home")
    world.complete("help")
    world.talk()
    world.ask(prompt(1, 10))
    while not world.stories["r2"].outputs:
        world.run_step("home")
    assert not world.stories["r1"].outputs
    finish(world)


# Who decodes.


def test_a_request_with_all_layers_before_it_shares_the_steps_of_those_who_decode():
    world = decoding()
    world.ask(prompt(1, LONGER))
    for _ in range(3):
        world.run_step("home")
    assert rows(world) == [((0, 5), [1]), ((0, 5), [1, 39]), ((0, 5), [1, 27])]
    finish(world)


def test_such_a_step_is_filled():
    world = decoding(in_flight=1)
    world.ask(prompt(1, 20))
    world.run_step("home")
    for number, tokens in enumerate((LONGER, 10, LONG, LONG + 1), 2):
        world.ask(prompt(number, tokens))
        world.talk()
    assert [message.request.id for message in said(world, Lend)] == ["r3"], "it takes no more"
    for _ in range(3):
        world.run_step("home")
    assert rows(world)[1:] == [
        ((0, 5), [1, 20]),
        ((0, 5), [1, 1, 10, 28]),
        ((0, 5), [1, 1, 1, 12, 25]),
    ]
    finish(world)


def test_what_was_begun_without_helpers_goes_on_before_what_is_due_later():
    world = LiveWorld()
    world.add("home", max_in_flight=1, home_layers=1)
    world.ask(prompt(0, LONG + 20))
    world.add("help", loading=True, max_in_flight=1, in_flight=1)
    world.pair("help", "home")
    world.layers("help", 1)
    world.talk()
    world.ask(prompt(1), priority=2)
    world.ask(prompt(2, LONGER), priority=1)
    world.talk()
    for _ in range(2):
        world.run_step("home")
    assert rows(world) == [((0, 5), [40]), ((0, 5), [20, 20])]
    finish(world)


def handed(layers: int, tokens: int = LONGER, **options) -> LiveWorld:
    """Return a home that somebody decodes at, and that has recalled a request at some layer."""
    world = decoding(**options)
    world.layers("help", layers)
    world.ask(prompt(1, LONGER))
    world.run_step("home")
    world.ask(prompt(2, tokens), priority=1)
    world.talk()
    while world.nodes["help"].worker.posted:
        world.run_step("help")
    until(world, Handoff)
    assert said(world, Handoff)[0].layer == layers
    world.nodes["home"].worker.ran.clear()
    while not world.stories["r3"].outputs:
        world.run_step("home")
    return world


@pytest.mark.parametrize(
    ("patience", "layers", "expected"),
    [
        (0.0, 3, [(3, 5), (0, 5), (3, 5)]),
        (100.0, 3, [(3, 5), (3, 5)]),
        (100.0, 2, [(2, 5), (0, 5), (2, 5)]),
    ],
)
def test_a_request_that_has_some_layers_takes_turns_with_those_who_decode(
    patience, layers, expected
):
    world = handed(layers, patience=patience)
    first = [span for span, _ in rows(world)].index((layers, 5))
    assert [span for span, _ in rows(world)][first:] == expected
    finish(world)


@pytest.mark.parametrize(("layers", "anew"), [(1, True), (3, False)])
def test_a_request_that_has_too_few_layers_begins_anew(layers, anew):
    world = handed(layers, 8)
    assert [message.request_id for message in said(world, Withdraw)] == ["r3"] * anew
    finish(world)
    assert (world.stories["r3"].route == ()) == anew


@pytest.mark.parametrize(("tokens", "goes"), [(LONG, True), (1, False)])
def test_what_decoding_would_cost_more_than_a_helper_saves_is_not_lent(tokens, goes):
    world = decoding()
    world.ask(prompt(1, LONGER))
    world.run_step("home")
    world.ask(prompt(2, tokens), priority=1)
    world.talk()
    assert bool(said(world, Lend)) == goes
    finish(world)
