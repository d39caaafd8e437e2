"""Steps that have the rows of the one before: carried out as if told in full, or refused."""

import pytest

from blitzgw.core.span import Span
from blitzgw.core.step import LastRows, NewSequence, Row, Step
from blitzgw.worker.execution import Executor
from blitzgw.worker.executor import InstanceExecutor, StepRefused
from tests.worker.handoff_kit import paced_engine
from tests.worker.worker_kit import GREEDY

LAYERS = 3
WHOLE = Span(0, LAYERS)
FIRST = Step(
    1,
    "a",
    WHOLE,
    (Row(1, 0, 14, True, (4,)), Row(2, 0, 15, True, (8,))),
    new=(
        NewSequence(1, tuple(range(14)), 14, 0, GREEDY),
        NewSequence(2, tuple(range(30, 45)), 15, 0, GREEDY),
    ),
)


def told_in_full(step, *rows):
    return Step(step, "a", WHOLE, tuple(Row(seq, at, 1, True, blocks) for seq, at, blocks in rows))


IN_FULL = [
    told_in_full(2, (1, 14, ()), (2, 15, ())),
    told_in_full(3, (1, 15, ()), (2, 16, (9,))),
    told_in_full(5, (1, 16, (5,)), (2, 17, ())),
    told_in_full(6, (1, 17, ()), (2, 18, ())),
]
ONWARD = [
    IN_FULL[0],
    Step(3, "a", WHOLE, (Row(2, 16, 1, True, (9,)),), after=2),
    Step(4, "a", WHOLE, (), release=((20, 4),)),
    Step(5, "a", WHOLE, (Row(1, 16, 1, True, (5,)),), after=3),
    Step(6, "a", WHOLE, (), after=5),
]


def worker(*steps):
    executor = Executor(now=lambda: 0.0)
    executor.instances["a"] = InstanceExecutor(paced_engine(), LAYERS)
    for step in (FIRST, *steps):
        executor.execute(step)
    return executor


def test_steps_that_go_on_are_those_told_in_full():
    last = LastRows()
    for step in (FIRST, IN_FULL[0]):
        assert last.in_full(step) is step
    told = [last.in_full(step) for step in ONWARD[1:]]
    assert [step for step in told if step.rows] == IN_FULL[1:]
    assert not told[1].rows


def test_a_worker_samples_the_same_tokens():
    one, other = worker(), worker()
    expected = [one.execute(step).tokens for step in IN_FULL]
    found = [other.execute(step).tokens for step in ONWARD]
    assert [tokens for tokens in found if tokens] == expected
    assert len({*expected}) == len(IN_FULL)


@pytest.mark.parametrize(
    ("before", "step", "why"),
    [
        ([], Step(2, "a", WHOLE, (), after=1), "has a prompt"),
        (IN_FULL[:1], Step(4, "a", WHOLE, (), after=3), "goes on from 3, the last is 2"),
        (IN_FULL[:2], Step(4, "a", WHOLE, (), after=2), "goes on from 2, the last is 3"),
        (IN_FULL[:1], Step(3, "a", WHOLE, (Row(3, 9, 1, True, (1,)),), after=2), "has rows of"),
        (IN_FULL[:1], Step(3, "a", WHOLE, (Row(2, 17, 1, True, (9,)),), after=2), "go on at 15"),
    ],
)
def test_what_does_not_go_on_is_refused(before, step, why):
    executor = worker(*before)
    with pytest.raises(StepRefused, match=why):
        executor.execute(step)


def test_a_worker_that_has_begun_anew_refuses():
    executor = worker(IN_FULL[0])
    executor.instances["a"] = InstanceExecutor(paced_engine(), LAYERS)
    with pytest.raises(StepRefused, match="goes on from 2, the last is 0"):
        executor.execute(Step(3, "a", WHOLE, (), after=2))


def test_what_follows_a_step_that_has_failed_is_refused():
    executor = worker(IN_FULL[0])
    with pytest.raises(ValueError, match="block"):
        executor.execute(told_in_full(3, (1, 15, ()), (2, 16, ())))  # which lacks a block
    with pytest.raises(StepRefused, match="unknown sequence"):
        executor.execute(Step(4, "a", WHOLE, (), after=3))
