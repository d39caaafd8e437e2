"""Helpers die, links end, clients leave, messages cross: nothing is lost, doubled or left over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.live import LivePolicy
from blitzgw.scheduler.events import Effect, Event, PairingClosed, Ticked
from blitzgw.sim.live import HOME, LiveSetup, StuckError, simulate_live
from tests.sim.live_faults_kit import Checked, Disturbed, Posting

MOST_HELPERS, MOST_REQUESTS = 3, 9

SETUPS = st.builds(
    LiveSetup,
    layers=st.integers(1, 9),
    requests=st.integers(1, MOST_REQUESTS),
    load=st.sampled_from([0, 0.5, 1, 3, 8]),
    policy=st.sampled_from(list(LivePolicy)),
    in_flight=st.sampled_from([None, 1, 4]),
    helpers=st.integers(1, MOST_HELPERS),
    handoff=st.sampled_from([0, 0.1, 2]),
)

MOMENTS = st.integers(0, 120).map(lambda half: half / 2)


@settings(max_examples=150, deadline=None)
@given(
    setup=SETUPS,
    deaths=st.lists(st.tuples(MOMENTS, st.integers(1, MOST_HELPERS)), max_size=2),
    partings=st.lists(st.tuples(MOMENTS, st.integers(0, MOST_REQUESTS - 1)), max_size=3),
    links_only=st.booleans(),
    latency=st.sampled_from([0, 0.3, 2, 9]),
    make=st.sampled_from([Checked, Posting]),
)
def test_whatever_happens_all_others_are_answered_once(
    setup: LiveSetup,
    deaths: list[tuple[float, int]],
    partings: list[tuple[float, int]],
    links_only: bool,
    latency: float,
    make: type[Checked],
) -> None:
    deaths = [death for death in deaths if death[1] <= setup.helpers]
    partings = [parting for parting in partings if parting[1] < setup.requests]
    world = Disturbed(setup, deaths, partings, links_only=links_only, latency=latency, make=make)
    outcome = world.run()
    assert len(outcome.completion) == setup.requests
    alive = [n for n in range(setup.helpers + 1) if n not in world.dead]
    for scheduler in (world.schedulers[number] for number in alive):
        figures = scheduler.statistics()
        assert (figures.steps_in_flight, figures.kv_active_bytes) == (0, 0)
        for instance in figures.instances.values():
            live = instance.live
            assert (live.loading, live.helping, live.helped) == (False, (), ())
            assert not any([live.lent, live.recalled, live.tasks, live.sending, live.kept])


class Deaf(Checked):
    """One that does not hear of a pairing's end."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        return [] if isinstance(event, PairingClosed) else super().handle(event, now)


class Patient(Deaf):
    """One that does not notice that time passes, either."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        return [] if isinstance(event, Ticked) else super().handle(event, now)


def test_what_is_lost_with_a_helper_is_found_out() -> None:
    with pytest.raises(StuckError, match="nothing goes on"):
        Disturbed(LiveSetup(7, 6, 6), [(3.5, 1)], [], make=Patient).run()


def test_silence_is_enough_to_take_back_what_a_helper_has() -> None:
    setup = LiveSetup(7, 6, 6)
    assert len(Disturbed(setup, [(3.5, 1)], [], make=Deaf).run().completion) == setup.requests


@pytest.mark.parametrize("moment", range(0, 30, 3))
def test_a_helper_that_dies_costs_no_more_than_not_having_had_it(moment: int) -> None:
    setup = LiveSetup(7, 6, 6)
    world = Disturbed(setup, [(moment + 0.5, 1)], [])
    alone = simulate_live(replace(setup, policy=LivePolicy.STOP, load=100))
    assert max(world.run().completion) <= max(alone.completion) + moment + setup.layers
    assert world.schedulers[HOME].statistics().kv_active_bytes == 0


def test_a_client_that_leaves_makes_room_for_the_others() -> None:
    setup = LiveSetup(7, 6, 6)
    rest = sum(simulate_live(setup).completion[3:])
    for moment in range(1, 12):
        world = Disturbed(setup, [], [(moment + 0.5, 2)])
        assert sum(world.run().completion[3:]) < rest
