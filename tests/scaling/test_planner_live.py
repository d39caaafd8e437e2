"""What live scaling is predicted to bring, against the figures of the algorithm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.scaling.planner.live import Backlog, mean, stop, zigzag

ALL = 10_000
LAYERS, REQUESTS = 32, 24


def loading(layers: int, load: float, n: int = 1, late: float = 0.0) -> list[list[float]]:
    return [[late + load * layer for layer in range(layers)]] * n


def test_the_test_vector():
    times = zigzag(loading(7, 6), Backlog(6, 1.0), in_flight=ALL)
    assert times == [7, 12, 17, 21, 24, 27]


@pytest.mark.parametrize(
    ("load", "stops", "zigzags"), [(8, 312, 227), (4, 265, 211), (2, 238, 209)]
)
def test_the_means_of_the_algorithm(load, stops, zigzags):
    arrivals, backlog = loading(LAYERS, load), Backlog(REQUESTS, 1.0)
    assert mean(stop(arrivals, backlog)) == pytest.approx(stops, abs=0.5)
    assert mean(zigzag(arrivals, backlog)) == pytest.approx(zigzags, abs=0.5)


def test_it_gains_less_the_sooner_a_helper_is_complete():
    gains = [
        mean(zigzag(arrivals, backlog)) / mean(stop(arrivals, backlog))
        for load in (8, 4, 2, 1)
        for arrivals, backlog in [(loading(LAYERS, load), Backlog(REQUESTS, 1.0))]
    ]
    assert gains == sorted(gains)
    assert gains[0] < 0.75
    assert 0.9 < gains[-1] <= 1.0


@pytest.mark.parametrize("load", [8, 4, 2])
@pytest.mark.parametrize("costs", [{"hidden_s": 64.0}, {"kv_layer_s": 8.0}])
def test_it_loses_where_a_handoff_costs_more_than_it_saves(load, costs):
    arrivals = loading(LAYERS, load)
    dear = mean(zigzag(arrivals, Backlog(REQUESTS, 1.0, **costs)))
    assert dear > mean(stop(arrivals, Backlog(REQUESTS, 1.0)))


def test_what_arrives_late_is_worth_nothing():
    arrivals, backlog = loading(4, 1.0, late=1e6), Backlog(3, 1.0)
    assert zigzag(arrivals, backlog) == stop(arrivals, backlog) == [4, 8, 12]


def test_layers_out_of_order_are_usable_when_those_before_them_are_there():
    backlog = Backlog(6, 1.0)
    assert zigzag([[9.0, 1.0, 2.0, 30.0]], backlog) == zigzag([[9.0, 9.0, 9.0, 30.0]], backlog)


@settings(max_examples=150, deadline=None)
@given(
    layers=st.integers(1, 8),
    requests=st.integers(1, 12),
    gaps=st.lists(st.floats(0, 9), min_size=8, max_size=8),
    helpers=st.integers(1, 4),
    hidden_s=st.floats(0, 3),
    kv_layer_s=st.floats(0, 3),
    in_flight=st.integers(1, 6),
)
def test_every_request_is_computed_once_and_never_faster_than_it_can_be(
    layers, requests, gaps, helpers, hidden_s, kv_layer_s, in_flight
):
    arrivals = [[sum(gaps[: i + 1]) for i in range(layers)]] * helpers
    backlog = Backlog(requests, 1.0, hidden_s, kv_layer_s)
    times = zigzag(arrivals, backlog, in_flight)
    assert len(times) == requests
    assert min(times) >= layers
    assert max(times) >= layers * requests / (1 + helpers) - 1e-6, "more than all of them could do"
    assert all(time < float("inf") for time in times)
    bound = sum(gaps) + requests * (layers + hidden_s + layers * kv_layer_s) + layers
    assert max(times) <= bound + 1e-6


def test_the_mean_of_nothing():
    assert mean([]) == 0.0
