"""The paced device's time is its documented formula, less what computing took."""

import pytest

from blitzgw.core.instance import PacedCost
from blitzgw.core.span import Span
from blitzgw.engine.base import RowInput
from tests.engine.paced_kit import LAYERS, WHOLE, engine, row, sequence

COST = PacedCost(fixed_us=100.0, token_us=10.0, context_us=1.0)


def rows():
    """10 new tokens that read 20 positions, and one that reads 45: 11 tokens, 65 positions."""
    return [RowInput(sequence(slot=1), 10, 10, False), row(sequence())]


@pytest.mark.parametrize(
    ("cost", "span", "expected_us"),
    [
        (COST, WHOLE, LAYERS * (100 + 110 + 65)),
        (COST, Span(1, 3), 2 * (100 + 110 + 65)),
        (PacedCost(fixed_us=7), WHOLE, LAYERS * 7),
        (PacedCost(token_us=7), Span(2, 3), 77),
        (PacedCost(context_us=2), Span(4, 5), 130),
    ],
)
def test_it_sleeps_what_the_formula_gives(cost, span, expected_us):
    slept = []
    made = engine(cost=cost, sleep=slept.append)
    hidden = None if span.start == 0 else made.forward(rows(), Span(0, 0), None)
    made.forward(rows(), span, hidden)
    assert slept == [pytest.approx(expected_us * 1e-6)]


def test_the_time_that_computing_took_counts():
    slept, times = [], iter([10.0, 10.0005])
    made = engine(cost=PacedCost(fixed_us=200), sleep=slept.append, now=lambda: next(times))
    made.forward(rows(), WHOLE, None)
    assert slept == [pytest.approx(0.0005)]


def test_it_does_not_sleep_when_computing_took_longer():
    times = iter([10.0, 10.0011])
    engine(cost=PacedCost(fixed_us=200), now=lambda: next(times)).forward(rows(), WHOLE, None)


def test_no_cost_no_rows_or_no_layers_never_sleep():
    engine().forward(rows(), WHOLE, None)
    engine(cost=COST).forward([], WHOLE, None)
    engine(cost=COST).forward(rows(), Span(0, 0), None)
