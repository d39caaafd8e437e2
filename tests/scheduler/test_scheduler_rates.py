"""Measured rates."""

from __future__ import annotations

import pytest

from blitzgw.errors import Overloaded
from blitzgw.scheduler.rates import Pace, Turnover
from tests.scheduler.world import World, served


def test_nothing_is_known_before_the_first_step():
    pace = Pace()
    pace.observe(0, 0, 0.0)
    assert (pace.prefill_tokens_per_s, pace.decode_step_s) == (None, None)


def test_pure_steps_give_their_own_rates():
    pace = Pace()
    pace.observe(100, 0, 0.5)
    pace.observe(0, 8, 0.02)
    assert pace.prefill_tokens_per_s == pytest.approx(200.0)
    assert pace.decode_step_s == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("duration_s", "own_s"), [(0.10, 0.08), (0.02, 0.005)], ids=["the excess", "at least its share"]
)
def test_a_mixed_step_is_charged_for_what_decoding_alone_would_not_take(duration_s, own_s):
    pace = Pace()
    pace.observe(0, 30, 0.02)
    pace.observe(10, 30, duration_s)
    assert pace.prefill_tokens_per_s == pytest.approx(10 / own_s)
    assert pace.decode_step_s == pytest.approx(0.02)


def test_the_rate_follows_a_change_and_long_steps_weigh_more():
    pace = Pace()
    for _ in range(100):
        pace.observe(100, 0, 1.0)
        pace.observe(100, 0, 3.0)
    assert pace.prefill_tokens_per_s == pytest.approx(50.0, rel=0.1)
    for _ in range(60):
        pace.observe(100, 0, 0.1)
    assert pace.prefill_tokens_per_s == pytest.approx(1000.0, rel=0.1)


def test_turnover_is_measured_while_somebody_waits():
    turnover = Turnover()
    turnover.observe(3, 0, 1.0)
    turnover.observe(0, 0, 2.0)
    assert turnover.per_s is None  # nobody had to wait
    turnover.observe(2, 4, 3.0)
    turnover.observe(0, 4, 4.0)
    turnover.observe(2, 2, 7.0)
    assert turnover.per_s == pytest.approx(0.5)
    turnover.observe(2, 0, 11.0)
    assert turnover.per_s == pytest.approx(0.5)
    turnover.observe(0, 0, 500.0)
    turnover.observe(0, 1, 501.0)  # some time later somebody waits again
    turnover.observe(1, 0, 503.0)
    assert turnover.per_s == pytest.approx(0.5)


def test_turnover_follows_what_changes():
    turnover = Turnover()
    turnover.observe(0, 9, 0.0)
    for i in range(100):
        turnover.observe(1, 9, i + 1.0)
    for i in range(300):
        turnover.observe(1, 9, 100.0 + (i + 1) / 10)
    assert turnover.per_s == pytest.approx(10.0, rel=0.05)


def test_who_would_wait_too_long_is_refused():
    """In this world a step takes a second, and there is one place."""
    world = World(10_000, max_in_flight=1, max_wait_s=30.0)
    world.add(served(max_num_seqs=1))
    for _ in range(6):
        world.ask([1, 2, 3], 4)
    world.run()
    assert not world.refused  # nothing was known yet
    world.effects.clear()
    for _ in range(40):
        world.ask([1, 2, 3], 4)
    per_s = world.scheduler._planner.lanes["a"].turnover.per_s
    assert 1 / 8 < per_s < 1 / 3
    assert 40 - len(world.refused) == 1 + int(30.0 * per_s)
    for effect in world.refused.values():
        assert isinstance(effect.error, Overloaded)
        assert 25.0 < effect.error.retry_after_s <= 30.0  # then those that wait have begun
    world.run()


def test_one_may_always_wait():
    world = World(10_000, max_in_flight=1, max_wait_s=1.0)
    world.add(served(max_num_seqs=1))
    for _ in range(4):
        world.ask([1, 2, 3], 9)
    world.run()
    for _ in range(4):
        world.ask([1, 2, 3], 9)
    assert len(world.refused) == 2
    world.run()


def test_who_only_waits_for_a_step_to_end_does_not_say_how_many_begin():
    """Four places are free most of the time: what is known of busy times stays as it was."""
    world = World(100_000, max_in_flight=1)
    world.add(served(max_num_seqs=4))
    for _ in range(24):
        world.ask([1, 2, 3], 9)
    world.run()
    turnover = world.scheduler._planner.lanes["a"].turnover
    busy_per_s = turnover.per_s
    for _ in range(40):
        world.ask([1, 2, 3], 9)
        world.ask([1, 2, 3], 9)  # while a step of the other one computes
        world.run()
    assert turnover.per_s == pytest.approx(busy_per_s, rel=0.1)
