"""Max-min fairness: examples, and the property that defines it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.scaling.planner.fairshare import UNBOUND, fair_rates

SLACK = 1 + 1e-6


def test_a_link_is_shared_evenly() -> None:
    assert fair_rates({0: [0], 1: [0], 2: [0]}, [9.0]) == {0: 3.0, 1: 3.0, 2: 3.0}


def test_what_one_cannot_use_goes_to_the_others() -> None:
    assert fair_rates({0: [0, 1], 1: [0]}, [10.0, 2.0]) == {0: 2.0, 1: 8.0}
    assert fair_rates({0: [0], 1: [0]}, [10.0], {0: 3.0}) == {0: 3.0, 1: 7.0}


def test_a_follower_is_no_quicker_than_what_it_follows() -> None:
    uses = {0: [0], 1: [1], 2: [2]}
    assert fair_rates(uses, [2.0, 10.0, 10.0], {}, {0: [1], 1: [2]}) == {0: 2.0, 1: 2.0, 2: 2.0}


def test_a_slow_follower_holds_nobody_up() -> None:
    assert fair_rates({0: [0], 1: [1]}, [8.0, 2.0], {}, {0: [1]}) == {0: 8.0, 1: 2.0}


def test_without_resources_the_ceiling_is_all() -> None:
    assert fair_rates({0: [], 1: []}, [], {1: 4.0}) == {0: UNBOUND, 1: 4.0}


cases = st.integers(1, 5).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(0.1, 1e9), min_size=count, max_size=count),
        st.lists(
            st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True),
            min_size=1,
            max_size=8,
        ),
        st.dictionaries(st.integers(0, 7), st.floats(0.0, 1e9), max_size=3),
    )
)


@settings(max_examples=100, deadline=None)
@given(cases)
def test_nobody_can_have_more_without_one_who_has_no_more(
    case: tuple[list[float], list[list[int]], dict[int, float]],
) -> None:
    capacities, resources, ceilings = case
    uses = dict(enumerate(resources))
    rates = fair_rates(uses, capacities, ceilings)
    used = [sum(rates[f] for f in uses if r in uses[f]) for r in range(len(capacities))]
    assert all(u <= c * SLACK for u, c in zip(used, capacities, strict=True))
    for flow, through in uses.items():
        at_ceiling = rates[flow] >= ceilings.get(flow, UNBOUND) / SLACK
        bottleneck = any(
            used[r] >= capacities[r] / SLACK
            and all(rates[other] <= rates[flow] * SLACK for other in uses if r in uses[other])
            for r in through
        )
        assert at_ceiling or bottleneck


@settings(max_examples=100, deadline=None)
@given(cases, st.floats(0.25, 4.0))
def test_rates_scale_with_the_links(
    case: tuple[list[float], list[list[int]], dict[int, float]], factor: float
) -> None:
    capacities, resources, _ = case
    uses = dict(enumerate(resources))
    scaled = fair_rates(uses, [capacity * factor for capacity in capacities])
    for flow, rate in fair_rates(uses, capacities).items():
        assert scaled[flow] == pytest.approx(rate * factor)
