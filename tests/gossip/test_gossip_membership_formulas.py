from __future__ import annotations

import math

import pytest

from blitzgw.gossip.agenda import Agenda
from blitzgw.gossip.health import Health
from blitzgw.gossip.knobs import Knobs, retransmissions
from blitzgw.gossip.suspicion import Suspicion, lifetime_s
from tests.gossip.membership_kit import KNOBS


@pytest.mark.parametrize(
    ("n", "times"), [(1, 4), (2, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12), (1000, 16)]
)
def test_rumours_are_passed_on_four_times_for_each_digit(n, times):
    assert retransmissions(n) == times


@pytest.mark.parametrize(("n", "intervals"), [(1, 4), (2, 4), (10, 4), (100, 8), (1000, 12)])
def test_suspicion_lasts_longer_in_larger_clusters(n, intervals):
    assert KNOBS.suspicion_min_s(n) == pytest.approx(intervals * 0.25)
    assert KNOBS.suspicion_max_s(n) == pytest.approx(6 * intervals * 0.25)


@pytest.mark.parametrize(
    ("confirmed", "k", "lasts_s"),
    [
        (0, 3, 30.0),
        (1, 3, 30 - 25 * math.log(2) / math.log(4)),
        (2, 3, 30 - 25 * math.log(3) / math.log(4)),
        (3, 3, 5.0),
        (9, 3, 5.0),
        (0, 0, 5.0),
        (0, 1, 30.0),
        (1, 1, 5.0),
    ],
)
def test_confirmations_shorten_a_suspicion(confirmed, k, lasts_s):
    assert lifetime_s(confirmed, k, 5.0, 30.0) == pytest.approx(lasts_s)


@pytest.mark.parametrize(("n", "every_s"), [(1, 10), (32, 10), (64, 20), (128, 30), (1024, 60)])
def test_syncs_become_rarer_in_larger_clusters(n, every_s):
    assert KNOBS.sync_every_s(n) == pytest.approx(every_s)


def test_all_durations_scale_with_the_probe_interval():
    slow = Knobs.of(1.0)
    for name in Knobs.__slots__:
        if name.endswith("_s"):
            assert getattr(slow, name) == pytest.approx(4 * getattr(KNOBS, name)), name
        else:
            assert getattr(slow, name) == getattr(KNOBS, name), name
    assert KNOBS.gossip_interval_s == pytest.approx(0.1)
    assert KNOBS.ping_timeout_s + KNOBS.nack_timeout_s < KNOBS.probe_interval_s


@pytest.mark.parametrize("interval_s", [0.0, -1.0, math.inf, math.nan])
def test_an_interval_is_a_positive_number(interval_s):
    with pytest.raises(ValueError, match="probe interval"):
        Knobs.of(interval_s)


def test_an_accuser_counts_once_and_only_so_many_count():
    suspicion = Suspicion("a", 100.0, 2, 1.0, 6.0)
    assert suspicion.deadline_s == 106.0
    assert not suspicion.confirm("a")
    assert suspicion.confirm("b")
    assert not suspicion.confirm("b")
    assert 101.0 < suspicion.deadline_s < 106.0
    assert suspicion.confirm("c")
    assert suspicion.deadline_s == 101.0
    assert not suspicion.confirm("d")


def test_health_stays_within_bounds():
    health = Health(KNOBS)
    health.improve()
    assert health.factor == 1
    health.worsen(100)
    assert health.factor == 9
    health.improve()
    assert health.factor == 8


def test_the_agenda_keeps_order_and_drops_the_cancelled():
    agenda, kept = Agenda(), []

    def keep(subject, now):
        kept.append((subject, now))
        if subject == "again":
            agenda.at(now, keep, "then")

    assert agenda.deadline() == math.inf
    agenda.at(3.0, keep, "late")
    first = agenda.at(1.0, keep, "first")
    agenda.at(2.0, keep, "again")
    assert agenda.deadline() == 1.0
    first.cancel()
    assert agenda.deadline() == 2.0
    agenda.keep(2.5)
    assert kept == [("again", 2.5), ("then", 2.5)]
    assert agenda.deadline() == 3.0
    agenda.clear()
    assert agenda.deadline() == math.inf
