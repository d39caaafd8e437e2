"""Which steps are captured, and when: every state of few buckets, and long random lives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.engine.gpu.captures import MAX_BUCKET, SPACING_S, Captures, buckets_of

BUCKETS = (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("slots", "buckets"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 4)),
        (32, (1, 2, 4, 8, 16, 32)),
        (33, (1, 2, 4, 8, 16, 32, 64)),
        (5000, (1, 2, 4, 8, 16, 32, 64)),
    ],
)
def test_buckets_cover_the_slots(slots, buckets):
    assert buckets_of(slots) == buckets
    assert buckets[-1] <= MAX_BUCKET


def test_every_set_of_captured_buckets_serves_with_the_least_padding():
    for size in range(len(BUCKETS) + 1):
        for captured in itertools.combinations(BUCKETS, size):
            captures = Captures(BUCKETS)
            for bucket in captured:
                captures.captured(bucket, 0.0)
            for rows in range(1, 12):
                fitting = [b for b in captured if b >= rows]
                assert captures.serving(rows) == (min(fitting) if fitting else None)


def test_nothing_is_captured_before_a_batch_has_decoded():
    captures = Captures(BUCKETS)
    assert captures.wait_s(5.0) is None
    assert captures.next_bucket() is None
    captures.decoded(3)
    assert captures.wait_s(5.0) == 0.0
    assert captures.next_bucket() == 4


@pytest.mark.parametrize("rows", range(1, 12))
def test_the_latest_batch_comes_first_then_the_smallest(rows):
    captures = Captures(BUCKETS)
    captures.decoded(rows)
    order, now = [], 0.0
    while (bucket := captures.next_bucket()) is not None:
        order.append(bucket)
        captures.captured(bucket, now)
    own = min((b for b in BUCKETS if b >= rows), default=8)
    assert order == [own, *(b for b in BUCKETS if b != own)]
    assert captures.wait_s(now) is None


def test_captures_are_spaced():
    captures = Captures(BUCKETS)
    captures.decoded(1)
    captures.captured(1, 10.0)
    assert captures.wait_s(10.0) == SPACING_S
    assert captures.wait_s(10.1) == pytest.approx(SPACING_S - 0.1)
    assert captures.wait_s(11.0) == 0.0


def test_a_failure_keeps_what_is_there_and_ends_the_rest():
    captures = Captures(BUCKETS)
    captures.decoded(2)
    captures.captured(2, 0.0)
    captures.failed()
    assert captures.wait_s(100.0) is None
    assert captures.serving(1) == 2
    assert captures.serving(3) is None


def test_weights_that_move_clear_it_and_it_begins_again_with_a_warm_batch():
    captures = Captures(BUCKETS)
    captures.decoded(2)
    captures.captured(2, 0.0)
    captures.clear()
    assert captures.serving(1) is None
    assert captures.wait_s(9.0) is None
    captures.decoded(1)
    assert captures.next_bucket() == 1


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("decoded"), st.integers(1, 12)),
        st.tuples(st.just("pass"), st.floats(0.0, 1.0)),
        st.tuples(st.just("clear"), st.none()),
        st.tuples(st.just("failed"), st.none()),
    ),
    max_size=60,
)


@given(EVENTS)
def test_any_life_keeps_the_promises(events):
    """Captures follow a batch, never twice, never too close, never after a failure."""
    captures, now, last = Captures(BUCKETS), 0.0, float("-inf")
    done: set[int] = set()
    warm = failed = False
    for what, argument in events:
        if what == "decoded":
            captures.decoded(argument)
            warm = True
        elif what == "pass":
            now += argument
        elif what == "clear":
            captures.clear()
            done, warm = set(), False
        else:
            captures.failed()
            failed = True
        wait_s = captures.wait_s(now)
        assert (wait_s is None) == (failed or not warm or done == set(BUCKETS))
        if wait_s == 0.0:
            bucket = captures.next_bucket()
            assert bucket not in done
            assert now >= last + SPACING_S
            captures.captured(bucket, now)
            done.add(bucket)
            last = now
        for rows in range(1, 10):
            assert captures.serving(rows) == min((b for b in done if b >= rows), default=None)
