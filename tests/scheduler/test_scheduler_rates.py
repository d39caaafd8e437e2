"""Measured rates."""

from __future__ import annotations

import pytest

from blitzgw.scheduler.rates import Pace


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
