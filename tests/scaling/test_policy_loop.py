"""The policy in the loop of a queue in virtual time: it settles, and a burst is answered once."""

from itertools import pairwise

import pytest

from blitzgw.core.view import ScaleTerms
from tests.scaling.policy_kit import Model, constant, poisson

TERMS = ScaleTerms(mode="auto", ttft_s=1.0, min_instances=1, patience_s=2.0)
RATE = 10_000.0


@pytest.mark.parametrize(
    ("tokens", "load"),
    [(1000, 0.4), (1000, 0.95), (1000, 4.5), (4000, 2.3), (9000, 0.95), (9000, 4.5)],
)
def test_a_constant_load_settles(tokens, load):
    model = Model(TERMS).run(constant(load * RATE / tokens, tokens, 0, 24), 24)
    settled = [change for change in model.changes if change[0] > 10]
    assert len(settled) <= 1
    assert load < model.present <= load / 0.6 + 1.5
    assert model.p90(12, 22) <= TERMS.ttft_s


@pytest.mark.parametrize("start", [1, 9])
def test_it_settles_from_above_and_from_below_without_turning_back(start):
    model = Model(TERMS, instances=start).run(constant(37, 1000, 0, 24), 24)
    found = [start, *(n for _, n, _ in model.changes)]
    assert found == sorted(found, reverse=start > 4)
    assert 4 <= model.present <= 6


@pytest.mark.parametrize(("tokens", "load"), [(500, 1.5), (1000, 3.7), (4000, 3.7)])
def test_chance_makes_few_changes(tokens, load):
    model = Model(TERMS).run(poisson(7, load * RATE / tokens, tokens, 0, 40), 40)
    assert len([change for change in model.changes if change[0] > 15]) <= 5
    assert model.attained() >= 0.95
    assert model.instance_s <= 40 * (load / 0.7 + 2)


@pytest.mark.parametrize("load_s", [0.2, 1.0, 3.0])
def test_eight_times_the_load_is_answered_once(load_s):
    calm, rush = 0.75 * RATE / 500, 6 * RATE / 500
    arrivals = [*constant(calm, 500, 0, 5), *constant(rush, 500, 5, 15)]
    model = Model(TERMS, load_s=load_s).run(arrivals, 15)
    grown = [(at, n) for at, n, verdict in model.changes if verdict.action == "grow"]
    assert len(grown) == 1
    assert 5 < grown[0][0] < 5.25
    assert 7 <= grown[0][1] <= 14
    assert model.p90(5 + 3 * load_s + 2, 14) <= TERMS.ttft_s


@pytest.mark.parametrize("load_s", [0.2, 1.0, 5.0])
def test_a_batch_is_answered_once_and_at_once_and_then_they_go_one_by_one(load_s):
    arrivals = [*constant(5, 1000, 0, 3), *[(3.0, 1000)] * 40, *constant(5, 1000, 3.01, 22)]
    model = Model(TERMS, load_s=load_s).run(arrivals, 22)
    found = [(at, n) for at, n, _ in model.changes]
    assert found[0] == (pytest.approx(3.01, abs=0.02), 7)
    assert [n for _, n in found[1:]] == list(range(6, 6 - len(found) + 1, -1))
    times = [at for at, _ in found[1:]]
    assert all(b - a >= TERMS.patience_s - 0.03 for a, b in pairwise(times))
    assert model.present <= 3


def test_from_zero_and_back():
    terms = ScaleTerms(mode="auto", min_instances=0, idle_to_zero_s=3.0, ttft_s=1.0)
    model = Model(terms, instances=0, load_s=0.5).run([(1.0, 500), (1.1, 500)], 8.0)
    assert [(n, verdict.action) for _, n, verdict in model.changes] == [(1, "wake"), (0, "zero")]
    (woken, _, _), (asleep, _, _) = model.changes
    assert woken == pytest.approx(1.02, abs=0.03)
    assert asleep == pytest.approx(1.6 + 3.0, abs=0.15)
    assert len(model.ttfts) == 2


def test_a_queue_over_the_bound_is_seen_within_a_tick():
    model = Model(TERMS).run([(1.0, 1000)] * 8, 2.0)
    assert model.changes[0][0] - 1.0 <= 0.05
