"""When blobs on their way are there: as predicted, at the pace so far, never in the past."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.scaling.due import LEAST_S, PACE, due_s

PREDICTED = (1.0, 2.0, 3.0, 4.0, 5.0)


@pytest.mark.parametrize(
    ("arrived", "since_s", "due"),
    [
        ({}, 0.5, (0.5, 1.5, 2.5, 3.5, 4.5)),
        ({0: 1.0, 1: 2.0, 2: 3.0}, 3.5, (0, 0, 0, 0.5, 1.5)),
        ({0: 1.5, 1: 3.5, 2: 5.5}, 6.5, (0, 0, 0, 1.0, 3.0)),  # at half of the pace
        ({0: 1.0, 1: 1.5, 2: 2.0}, 2.0, (0, 0, 0, 0.5, 1.0)),  # at twice the pace
        ({0: 1.0, 1: 2.0, 2: 3.0}, 9.0, (0, 0, 0, LEAST_S, 1.0)),  # the next one is overdue
        ({0: 1.0, 3: 2.0}, 2.0, (0, LEAST_S, 1.0, 0, 3.0)),  # not in their order
        (dict.fromkeys(range(5), 5.0), 5.0, (0, 0, 0, 0, 0)),
    ],
)
def test_what_is_due_when(arrived, since_s, due):
    assert due_s(PREDICTED, arrived, since_s) == pytest.approx(due)


def test_what_was_there_before_a_new_plan_says_nothing_of_its_pace():
    predicted = (7.0, 7.0, 7.0, 8.0, 9.0)  # planned at 7 s, when three had come
    arrived = {0: 1.0, 1: 2.0, 2: 6.5}
    assert due_s(predicted, arrived, 7.5) == pytest.approx((0, 0, 0, 0.5, 1.5))


def test_a_burst_is_no_pace():
    arrived = {0: 1.0, 1: 1.0, 2: 1.0}
    assert due_s(PREDICTED, arrived, 1.0)[4] == pytest.approx(2.0 / PACE)


@given(
    st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8),
    st.dictionaries(st.integers(0, 7), st.floats(0.0, 100.0)),
    st.floats(0.0, 200.0),
)
def test_what_is_not_there_is_never_due_before_now(predicted, arrived, since_s):
    here = {blob: at_s for blob, at_s in arrived.items() if blob < len(predicted)}
    found = due_s(predicted, here, since_s)
    assert len(found) == len(predicted)
    for blob, at_s in enumerate(found):
        assert (at_s == 0.0) == (blob in here)
        assert at_s == 0.0 or at_s >= LEAST_S
