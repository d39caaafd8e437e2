"""Live scaling by the production schedulers in virtual time: the figures of ALGORITHMS.md §3."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.live import LivePolicy
from blitzgw.core.peer import Loss
from blitzgw.core.request import GenerationRequest
from blitzgw.scheduler.events import Effect, Event, Lose, RequestArrived
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.sim.live import HOME, LiveOutcome, LiveSetup, LiveWorld, StuckError, simulate_live
from tests.sim.live_faults_kit import Checked
from tests.sim.live_kit import Optimum

LOADS = (1, 2, 4, 6)
MOST_LAYERS, MOST_REQUESTS = 8, 6

NEARLY = 1.04
"""With two in flight: the worst are 4 layers, 6 requests, load 4, with a sum of 56 against 54."""

STOP = {8: 312.0, 4: 265.0, 2: 237.75}
ZIGZAG = {8: 219.42, 4: 210.75, 2: 208.67}
BEST_EFFORT = {8: 375.08, 4: 269.88, 2: 222.08}
"""Means of 24 requests and 32 layers by the time between two layers, rounded to a hundredth."""

HALF = 0.005
"""Of the last digit of these."""


def big(load: float, policy: LivePolicy, **more: object) -> LiveOutcome:
    return simulate_live(LiveSetup(32, 24, load, policy, **more))


def test_the_vector() -> None:
    outcome = simulate_live(LiveSetup(7, 6, 6))
    assert outcome.completion == (7, 12, 17, 21, 24, 27)
    assert outcome.mean == 18


@pytest.mark.parametrize("layers", range(1, MOST_LAYERS + 1))
def test_zigzag_is_the_optimum(layers: int) -> None:
    """Without a limit in flight and with that of production; with half of it, nearly."""
    worse = {}
    for load in LOADS:
        optimum = Optimum(layers, load)
        for requests, in_flight in product(range(1, MOST_REQUESTS + 1), (None, 4, 2)):
            setup = LiveSetup(layers, requests, load, in_flight=in_flight)
            total, least = sum(simulate_live(setup).completion), optimum.total(requests)
            assert total >= least, "better than the best: the simulation is wrong"
            if total > least * (NEARLY if in_flight == 2 else 1):
                worse[layers, requests, load, in_flight] = f"{total / least:.3f} of the optimum"
    assert not worse


@pytest.mark.parametrize("load", ZIGZAG)
def test_zigzag_means(load: int) -> None:
    assert big(load, LivePolicy.ZIGZAG).mean <= ZIGZAG[load] + HALF


def test_zigzag_with_a_limit_in_flight_loses_little() -> None:
    assert 219 < big(8, LivePolicy.ZIGZAG, in_flight=4).mean <= 227.42


@pytest.mark.parametrize("load", STOP)
def test_stop_means(load: int) -> None:
    assert big(load, LivePolicy.STOP).mean == pytest.approx(STOP[load], abs=HALF)


@pytest.mark.parametrize("load", BEST_EFFORT)
def test_best_effort_means(load: int) -> None:
    """To a hundredth: who runs what has been passed on at the end of loading moves the last bit."""
    assert big(load, LivePolicy.BEST_EFFORT).mean == pytest.approx(BEST_EFFORT[load], rel=0.01)


def test_best_effort_loses_to_stop_where_loading_is_slow() -> None:
    assert big(8, LivePolicy.BEST_EFFORT).mean > big(8, LivePolicy.STOP).mean


def test_there_is_little_to_gain_where_layers_come_as_fast_as_they_are_computed() -> None:
    ratio = big(1, LivePolicy.ZIGZAG).mean / big(1, LivePolicy.STOP).mean
    assert 0.925 <= ratio <= 0.935


def test_the_pair_completes_twice_as_much_once_half_of_the_layers_are_there() -> None:
    """In a window of half the loading time under a standing queue; one alone completes 1 / L."""
    outcome = simulate_live(LiveSetup(32, 64, 8))
    half, whole = 16 * 8, 31 * 8
    completed = sum(half < moment <= whole for moment in outcome.completion)
    assert completed >= 1.7 * (whole - half) / 32


def test_more_helpers_and_slower_roads_do_what_one_expects() -> None:
    one, three = (big(8, LivePolicy.ZIGZAG, helpers=n).mean for n in (1, 3))
    assert three < one
    assert big(8, LivePolicy.STOP, helpers=3).mean == 268  # 16 requests, dealt out to four
    slow = big(8, LivePolicy.ZIGZAG, handoff=0.25).mean
    assert one <= slow < STOP[8]


SETUPS = st.builds(
    LiveSetup,
    layers=st.integers(1, 12),
    requests=st.integers(1, 12),
    load=st.sampled_from([0, 0.5, 1, 1.5, 3, 8]),
    policy=st.sampled_from(list(LivePolicy)),
    in_flight=st.sampled_from([None, 1, 2, 4]),
    helpers=st.integers(1, 3),
    handoff=st.sampled_from([0, 0.1, 2]),
)


@settings(max_examples=80, deadline=None)
@given(SETUPS)
def test_every_layer_of_every_request_is_run_once_in_order_where_it_is(setup: LiveSetup) -> None:
    outcome = simulate_live(setup)
    assert len(outcome.completion) == setup.requests
    for number, completed in enumerate(outcome.completion):
        mine = [work for work in outcome.work if work.request == number]
        assert [layer for work in mine for layer in work.span.layers()] == [*range(setup.layers)]
        assert all(before.stop <= after.start for before, after in pairwise(mine))
        assert completed == mine[-1].stop
    for worker in range(setup.helpers + 1):
        its = [work for work in outcome.work if work.worker == worker]
        assert all(before.stop <= after.start for before, after in pairwise(its))
        if worker != HOME:
            assert all(work.start >= (work.span.stop - 1) * setup.load for work in its)


@settings(max_examples=80, deadline=None)
@given(SETUPS)
def test_books_are_right_all_the_time_and_nothing_is_left_over(setup: LiveSetup) -> None:
    world = LiveWorld(setup, Checked)
    world.run()
    for scheduler in world.schedulers:
        figures = scheduler.statistics()
        assert (figures.steps_in_flight, figures.kv_active_bytes) == (0, 0)
        for instance in figures.instances.values():
            live = instance.live
            assert (live.loading, live.helping, live.helped) == (False, (), ())
            assert not any([live.lent, live.recalled, live.tasks, live.sending, live.kept])


def test_a_run_repeats() -> None:
    setup = LiveSetup(9, 7, 3, in_flight=4, helpers=2, handoff=0.5)
    assert simulate_live(setup) == simulate_live(setup)


class Forgetful(Scheduler):
    """One that loses a request."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, RequestArrived) and event.request.id == "r2":
            return []
        return super().handle(event, now)


class Eternal(Scheduler):
    """One that gives a request away for ever."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, RequestArrived):
            return [given_away(event.request)]
        return super().handle(event, now)


def given_away(request: GenerationRequest) -> Lose:
    loss = Loss(request.id, request.attempt)
    return Lose((loss,), "no reason", planned=True)


@pytest.mark.parametrize(("broken", "told"), [(Forgetful, "r2"), (Eternal, "never come to an end")])
def test_a_scheduler_that_gets_stuck_is_found_out(broken: type[Scheduler], told: str) -> None:
    with pytest.raises(StuckError, match=told):
        simulate_live(LiveSetup(3, 4, 2), broken)
