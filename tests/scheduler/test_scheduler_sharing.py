"""Choices of one request come together: their prompt is computed once."""

from __future__ import annotations

import pytest

from blitzgw.core.messages import StepFailed
from blitzgw.core.step import KvGeometry, Step
from blitzgw.scheduler.events import RunStep
from tests.scheduler.world import World, served

PROMPT = list(range(1, 74))
SHARED = 64
"""What the others can copy: its full blocks, the last token not among them."""

SHORT = [90, 91, 92]
"""Too short to share. With it the toy's figures are such that a step is worth three tokens."""


def world(**changes) -> World:
    made = World()
    made.add(served(**{"max_batched_tokens": 40} | changes))
    return made


def measured(**changes) -> World:
    made = world(**changes)
    made.ask(SHORT, 5)
    made.run()
    made.effects.clear()
    return made


def prefill(made: World) -> list[list[tuple[int, int]]]:
    """Return (start, tokens) of the prefill rows of each step that has some."""
    posted: list[Step] = [e.step for e in made.effects if isinstance(e, RunStep)]
    rows = [[(row.start, row.count) for row in step.rows if row.count > 1] for step in posted]
    return [row for row in rows if row]


def test_choices_of_one_prompt_compute_it_once():
    made = measured()
    names = [made.ask(PROMPT, 4) for _ in range(3)]
    made.run()
    assert prefill(made) == [[(0, 40)], [(40, 33)], [(SHARED, 9), (SHARED, 9)]]
    assert [made.story(name).cached_tokens for name in names] == [0, SHARED, SHARED]


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"prefix_caching": False}, {}),
        ({}, {"tenant": "bob"}),
        ({}, {"tokens": [*PROMPT[:-1], 90]}),
    ],
    ids=["nothing is kept", "another tenant", "another prompt"],
)
def test_only_who_can_copy_waits(options, other):
    made = measured(**options)
    made.ask(PROMPT, 4)
    made.ask(**{"tokens": PROMPT, "max_tokens": 4} | other)
    made.step()
    made.step()
    assert made.scheduler.statistics().instances["a"].waiting == 0


@pytest.mark.parametrize(
    ("primer", "expected"),
    [(SHORT, [[(0, 34)], [(32, 2)]]), ([90] * 40, [[(0, 34), (0, 34)]])],
    ids=["a step is worth 3 tokens", "a step is worth 40 tokens"],
)
def test_waiting_must_pay(primer, expected):
    made = world(max_batched_tokens=80)
    made.ask(primer, 30)
    for _ in range(4):
        made.step()
    made.effects.clear()
    for _ in range(2):
        made.ask(PROMPT[:34], 4)
    made.run()
    assert prefill(made) == expected


def test_a_prompt_that_is_there_is_not_waited_for():
    made = measured()
    made.ask(PROMPT, 4)
    made.run()
    made.effects.clear()
    for _ in range(3):
        made.ask(PROMPT, 4)
    made.run()
    assert prefill(made)[0] == [(SHARED, 9)]
    assert made.scheduler.statistics().instances["a"].prefix_hits == 3 * SHARED


def test_who_waits_goes_on_when_the_first_one_is_aborted():
    made = measured()
    first, *others = [made.ask(PROMPT, 4) for _ in range(3)]
    made.abort(first)
    made.run()
    assert [len(made.story(name).outputs) for name in others] == [4, 4]


def test_who_waits_goes_on_when_the_first_one_fails():
    made = measured()
    names = [made.ask(PROMPT, 4) for _ in range(3)]
    made.step(fail=True)
    made.run()
    assert sum(isinstance(event, StepFailed) for event in made.events) >= 1
    assert [len(made.story(name).outputs) for name in names] == [4, 4, 4]


def test_choices_wait_for_memory_in_turn():
    made = measured(kv=KvGeometry(2, 6, 10))
    names = [made.ask(PROMPT, 4) for _ in range(5)]
    made.run()
    assert [len(made.story(name).outputs) for name in names] == [4] * 5
