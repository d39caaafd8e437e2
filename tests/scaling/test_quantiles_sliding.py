"""Sliding quantiles: right to within a bucket, bounded, and forgetting."""

from hypothesis import given
from hypothesis import strategies as st

from blitzgw.core.scale import GROWTH, N_BUCKETS, bucket_of, upper_s
from blitzgw.scaling.quantiles import SlidingQuantiles


def counts(*latencies):
    found = {}
    for each in latencies:
        found[bucket_of(each)] = found.get(bucket_of(each), 0) + 1
    return found


def test_nothing_has_no_quantile():
    sliding = SlidingQuantiles()
    assert sliding.quantile(0.9, 0.0, 10.0) is None
    assert sliding.quantiles((0.5, 0.9), 0.0, 10.0) == {}
    assert sliding.count(0.0, 10.0) == 0


@given(
    st.lists(st.floats(2e-4, 1000.0), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantile_is_right_to_within_a_bucket(latencies, q):
    sliding = SlidingQuantiles()
    for each in latencies:
        sliding.add(counts(each), 3.0)
    rank = max(1, -(-round(q * 1000) * len(latencies) // 1000))
    exact = sorted(latencies)[rank - 1]
    found = sliding.quantile(q, 3.0, 10.0)
    assert exact / (1 + 1e-9) <= found <= exact * GROWTH * (1 + 1e-9)


def test_what_is_older_than_the_window_is_left_out():
    sliding = SlidingQuantiles(slot_s=1.0, slots=30)
    sliding.add(counts(5.0), 0.0)
    sliding.add(counts(0.1, 0.1), 12.0)
    assert sliding.quantile(1.0, 12.0, 10.0) == upper_s(bucket_of(0.1))
    assert sliding.quantile(1.0, 12.0, 30.0) == upper_s(bucket_of(5.0))
    assert sliding.count(12.0, 30.0) == 3
    assert sliding.quantile(1.0, 100.0, 30.0) is None


def test_several_quantiles_are_those_one_by_one_also_after_more_was_added():
    sliding = SlidingQuantiles()
    for i in range(1, 101):
        sliding.add(counts(i / 10), i / 50)
        qs = sliding.quantiles((0.5, 0.9), i / 50, 10.0)
        assert qs == {q: sliding.quantile(q, i / 50, 10.0) for q in (0.5, 0.9)}


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(-3, N_BUCKETS + 3), st.integers(-1, 9))))
def test_memory_is_bounded_whatever_comes(events):
    sliding = SlidingQuantiles(slot_s=1.0, slots=5)
    for now, bucket, count in events:
        sliding.add({bucket: count}, now)
        sliding.check_integrity()


def test_a_clock_that_goes_back_forgets_nothing():
    sliding = SlidingQuantiles()
    sliding.add(counts(1.0), 20.0)
    sliding.add(counts(1.0), 5.0)
    assert sliding.count(20.0, 1.0) == 2
