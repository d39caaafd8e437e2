"""The predicted P90 of TTFT: FIFO over what serves and what comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.forecast import (
    UNBOUNDED_S,
    foresee,
    joins_s,
    predicted_ttft_s,
    work_off_s,
    worked_tokens,
)

times = st.lists(st.floats(0, 30), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("tokens", "rate", "joins", "expected"),
    [
        (0, 1000, [0.0], 0.0),
        (1000, 1000, [0.0], 1.0),
        (1000, 1000, [0.0, 0.0], 0.5),
        (3000, 1000, [0.0, 1.0], 2.0),  # 1 s alone, then two for 1 s
        (500, 1000, [0.0, 1.0], 0.5),  # done before the second comes
        (1000, 1000, [2.0], 3.0),
        (4000, 1000, [0.0, 1.0, 1.0], 2.0),
        (1000, 1000, [], UNBOUNDED_S),
        (1000, 0, [0.0], UNBOUNDED_S),
        (1e12, 1, [0.0], UNBOUNDED_S),
    ],
)
def test_when_a_queue_is_worked_off(tokens, rate, joins, expected):
    assert work_off_s(tokens, rate, joins) == pytest.approx(expected)


@given(st.floats(1, 1e5), st.floats(10, 1e5), times)
def test_in_that_time_just_that_is_done(tokens, rate, joins):
    seconds = work_off_s(tokens, rate, joins)
    if seconds < UNBOUNDED_S:
        assert worked_tokens(seconds, rate, joins) == pytest.approx(tokens, rel=1e-6, abs=1e-6)


@given(st.floats(1, 1e5), st.floats(0, 1e5), st.floats(10, 1e5), times, st.floats(0, 30))
def test_more_queue_takes_longer_and_more_instances_less_long(tokens, more, rate, joins, another):
    seconds = predicted_ttft_s(tokens, rate, joins)
    assert predicted_ttft_s(tokens + more, rate, joins) >= seconds - 1e-9
    assert predicted_ttft_s(tokens, rate, [*joins, another]) <= seconds + 1e-9


def test_what_has_waited_already_counts():
    assert predicted_ttft_s(1000, 1000, [0.0], waited_s=0.4) == pytest.approx(1.3)
    assert predicted_ttft_s(0, 1000, [0.0], waited_s=0.4) == 0.0


@pytest.mark.parametrize(
    ("coming", "expected"),
    [
        (Coming("a", 0.2, 1.5, False), 1.5),
        (Coming("a", 0.25, -1.0, False), 3.0),  # not predicted: three quarters of 4 s
        (Coming("a", 0.0, 2.0, True), 1.0),  # has half of its layers by then
        (Coming("a", 0.25, 3.0, True), 1.0),
        (Coming("a", 0.5, 1.0, True), 0.0),
        (Coming("a", 1.0, 0.0, True), 0.0),
        (Coming("a", 7.0, -1.0, False), 0.0),
    ],
)
def test_when_a_loading_instance_counts(coming, expected):
    assert joins_s(2, [coming], 4.0) == [0.0, 0.0, pytest.approx(expected)]


def test_pressure_is_of_the_target_that_is_missed_most():
    terms = ScaleTerms(ttft_s=0.5, tpot_s=0.1)
    figures = Figures("m", backlog_tokens=1000, prefill_tokens_per_s=1000.0, running=1)
    assert foresee(figures, terms, 1, [0.0]).predicted_ttft_s == pytest.approx(0.9)
    assert foresee(figures, terms, 1, [0.0]).pressure == pytest.approx(1.8)
    slow = Figures("m", running=1, tpot_s=0.3)
    assert foresee(slow, terms, 1, [0.0]).pressure == pytest.approx(3.0)
    assert foresee(Figures("m", tpot_s=0.3), terms, 1, [0.0]).pressure == 0.0
    full = Figures("m", committed_tokens=3000, kv_tokens=1000)
    assert foresee(full, terms, 2, [0.0, 0.0]).pressure == pytest.approx(1.5)


def test_without_a_rate_it_is_when_the_first_instance_is_there():
    figures = Figures("m", held=1, held_tokens=5, backlog_tokens=5, held_s=0.5)
    terms = ScaleTerms(ttft_s=1.0)
    assert foresee(figures, terms, 0, [2.0, 1.0]).predicted_ttft_s == pytest.approx(1.5)
    assert foresee(figures, terms, 0, []).predicted_ttft_s == UNBOUNDED_S
