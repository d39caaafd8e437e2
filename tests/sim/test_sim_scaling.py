"""A cluster that scales itself, under faults: what must hold holds, and the checks can fail."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.sim.scalingfaults import CrashNode, CrashOwner, SplitNodes
from blitzgw.sim.scalingtrial import ScalingOutcome, ScalingTrial, try_scaling
from tests.sim.scaling_kit import (
    Broken,
    KnowsNoBounds,
    NeverActs,
    NeverSpeaks,
    Unsound,
    Wavers,
    outcome_of,
)

LONG = os.environ.get("BLITZGW_LONG") == "1"


def describe(outcomes: list[ScalingOutcome]) -> str:
    lost = [outcome for outcome in outcomes if not outcome.passed]
    return "\n".join(f"seed {o.seed}, {o.nodes} nodes: {'; '.join(o.violations[:3])}" for o in lost)


def test_a_sample_of_schedules() -> None:
    outcomes = [try_scaling(seed, 3, 7, 8) for seed in range(1, 11)]
    assert all(outcome.passed for outcome in outcomes), describe(outcomes)
    assert sum(outcome.owner_crashes for outcome in outcomes) > 0
    assert sum(outcome.splits for outcome in outcomes) > 0
    assert sum(outcome.served for outcome in outcomes) > 0


@pytest.mark.parametrize(
    "seed",
    [
        2142,  # two operations of one owner asked for the same device
        2322,  # the steps down went one too far, time and again
        2463,  # one asked for what the other had asked for at a claim that had passed
        3133,  # what crashed clients have left behind takes its time
    ],
)
def test_schedules_that_did_not_pass_once(seed: int) -> None:
    outcome = try_scaling(seed, 3, 12, 3)
    assert outcome.passed, describe([outcome])


@pytest.mark.skipif(not LONG, reason="takes minutes: set BLITZGW_LONG=1, as scripts/test --long")
def test_a_thousand_schedules() -> None:
    """Some 15 minutes of one core: a second for each small cluster, seven for one of 64."""
    sizes = [(seed, 64, 64, 8) for seed in range(971, 1001)]
    sizes += [(seed, 3, 12, 8) for seed in range(1, 971)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(try_scaling, *zip(*sizes, strict=True)))
    assert all(outcome.passed for outcome in outcomes), describe(outcomes)


def test_a_seed_gives_the_same_schedule_and_the_same_outcome() -> None:
    assert str(ScalingTrial(5, 6, 8).schedule) == str(ScalingTrial(5, 6, 8).schedule)
    assert str(ScalingTrial(5, 6, 8).schedule) != str(ScalingTrial(6, 6, 8).schedule)
    assert try_scaling(3, 3, 4, 8) == try_scaling(3, 3, 4, 8)


def test_faults_are_possible_and_end_in_time() -> None:
    kinds: set[str] = set()
    for seed in range(100):
        schedule = ScalingTrial(seed, 8, 4).schedule
        for at_s, fault in schedule.faults:
            kinds.add(type(fault).__name__)
            lasting = getattr(fault, "duration_s", getattr(fault, "down_s", 0.0))
            assert at_s + lasting <= schedule.end_s + 1e-9
    assert kinds == {
        "CrashNode", "CrashOwner", "SplitNodes", "SlowNode", "LoseLink", "GiveWish",
    }  # fmt: skip


def test_one_node_is_no_cluster() -> None:
    with pytest.raises(ValueError, match="two nodes"):
        try_scaling(1, 1, 4, 8)


FAULTS = (
    (6.0, CrashOwner(0.5, 2.0)),
    (12.0, SplitNodes(frozenset({0}), 8.0)),
    (25.0, CrashNode(1, 3.0)),
)


@pytest.mark.parametrize(
    ("make", "violation"),
    [
        (NeverSpeaks, "owner:"),
        (Unsound, "sound:"),
        (NeverActs, "bounds:"),
        (KnowsNoBounds, "bounds:"),
        (Wavers, "converged:"),
    ],
)
def test_the_checks_catch_a_broken_decider(make: type[Autoscaler], violation: str) -> None:
    broken = outcome_of(make, *FAULTS)
    assert any(violation in line for line in broken.violations), broken


def test_a_broken_decider_is_wrapped_and_not_only_disabled() -> None:
    """What `Broken` leaves alone works: the failures above are those of what it breaks."""
    whole = outcome_of(Broken, *FAULTS)
    assert whole.passed, whole
    assert whole.owner_crashes + whole.crashes >= 2
    assert whole.in_time > 0
