"""Runs of bytes that are there."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blitzgw.worker.spans import Spans

RUN = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)


@given(st.lists(RUN), RUN)
def test_what_is_missing_is_what_was_never_added(runs, asked):
    spans, there = Spans(), set()
    for start, stop in runs:
        spans.add(start, stop)
        there.update(range(start, stop))
    gaps = spans.missing(*asked)
    assert [i for gap in gaps for i in range(*gap)] == sorted(set(range(*asked)) - there)
    assert all(start < stop for start, stop in gaps)
    for (_, stop), (start, _) in pairwise(gaps):
        assert stop < start
    assert len(spans._spans) <= len(there)
