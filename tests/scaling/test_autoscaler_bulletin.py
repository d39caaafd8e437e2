"""What is gossiped of a model's scaling: coarse, and not too often."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.view import ScaleFacts
from blitzgw.scaling.bulletin import MAX_PRESSURE, TELL_FIGURES_S, TELL_S, Bulletin, coarse

UNIX_S = 1e9


@pytest.mark.parametrize(
    ("pressure", "told", "is_told"),
    [
        (0.0, None, 0.0),
        (-3.0, None, 0.0),
        (float("nan"), None, 0.0),
        (0.2, 0.0, 0.0),
        (0.9, None, 1.0),
        (1.01, None, 1.1),
        (1.01, 1.0, 1.1),
        (0.99, 1.1, 1.0),
        (3.2, 3.5, 3.5),
        (3.2, None, 3.0),
        (47.0, None, 45.0),
        (float("inf"), None, MAX_PRESSURE),
    ],
)
def test_pressures_are_coarse(pressure, told, is_told):
    assert coarse(pressure, told) == is_told


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 2000), st.floats(0, 2000))
def test_the_side_of_the_bound_is_kept(pressure, told):
    assert (coarse(pressure, coarse(told)) > 1) == (pressure > 1)


def facts(present=1, pressure=0.0, ready_s=0.0):
    return ScaleFacts("m", "auto", present, present, pressure, ready_s)


def test_news_are_told_at_once_and_then_not_too_often():
    bulletin = Bulletin()
    bulletin.note(facts(), UNIX_S)
    assert bulletin.tell(5.0) == facts()
    assert bulletin.deadline() is None
    bulletin.note(facts(2), UNIX_S)
    assert bulletin.tell(5.1) is None
    assert bulletin.deadline() == 5.0 + TELL_S
    assert bulletin.tell(5.0 + TELL_S) == facts(2)
    bulletin.note(facts(2, 3.0), UNIX_S)
    assert bulletin.deadline() == 5.0 + TELL_S + TELL_FIGURES_S
    bulletin.note(facts(2), UNIX_S)
    assert bulletin.deadline() is None


def test_times_may_move_a_little_untold():
    bulletin = Bulletin()
    bulletin.note(facts(ready_s=UNIX_S + 10), UNIX_S)
    bulletin.tell(0.0)
    bulletin.note(facts(ready_s=UNIX_S + 10.5), UNIX_S)
    assert bulletin.deadline() is None
    bulletin.note(facts(ready_s=UNIX_S + 13), UNIX_S)
    assert bulletin.deadline() is not None
    bulletin.note(facts(ready_s=UNIX_S + 20.1), UNIX_S + 20)  # overdue by now: any moment
    assert bulletin.deadline() is None
    bulletin.note(facts(), UNIX_S + 21)
    assert bulletin.deadline() is not None
