"""From a record to figures: attainment, instance time, phases of scale-ups, what is void."""

import math
from dataclasses import replace

import pytest

from blitzgw.sim.evaluation.growth import growths, medians
from blitzgw.sim.evaluation.record import Look, Record
from blitzgw.sim.evaluation.summary import attainment, instance_seconds, row, why_void
from tests.sim.evaluation_kit import answer, growth, record

CONTRACT = {
    "system", "seed", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "attainment",
    "instance_seconds", "failed", "void",
}  # fmt: skip


def test_a_row_has_what_the_contract_says():
    found = row(record())
    assert set(found) >= CONTRACT
    assert (found["system"], found["seed"], found["void"]) == ("live-zigzag", 1, False)
    assert found["ttft_p50"] == pytest.approx(0.2)
    assert found["tpot_p50"] == pytest.approx(0.02)
    assert found["attainment"] == 1.0
    assert found["instance_seconds"] == pytest.approx(4 * 1 + 6 * 2)


@pytest.mark.parametrize(
    ("bad", "met"),
    [
        (answer(first_s=0.499), True),
        (answer(first_s=0.51), False),
        (answer(last_s=0.1 + 10 * 0.0499), True),
        (answer(last_s=0.1 + 10 * 0.051), False),
        (answer(outcome="refused", first_s=-1.0), False),
        (answer(outcome="timeout"), False),
        (answer(outcome="failed"), False),
    ],
)
def test_whoever_is_late_or_lost_has_not_attained(bad, met):
    made = record()
    made.answers = [answer(), answer(), answer(), bad]
    assert attainment(made) == (1.0 if met else 0.75)
    assert row(made)["failed"] == (bad.outcome != "ok")


def test_a_wider_objective_is_met_by_more():
    made = record(slower=4.0)
    shares = [attainment(made, times) for times in (1.5, 5.0, 10.0, 100.0)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_requests_that_are_lost_make_no_tail_better():
    made = record()
    made.answers[0] = answer(first_s=-1.0, outcome="refused")
    assert row(made)["ttft_p99"] > 50
    assert row(made)["refused"] == 1


def test_answers_that_are_cut_make_no_pace_better():
    made = record()
    made.answers = [answer(), answer(outcome="failed", tokens=3), answer(tokens=1)]
    assert row(made)["tpot_p99"] > 50
    assert row(made)["tpot_p50"] == pytest.approx((0.02 + 60) / 2)


def test_what_was_never_sent_is_not_on_time():
    made = record()
    made.answers = [answer(lag_s=0.02), *(answer(lag_s=0.0, outcome="failed") for _ in range(999))]
    assert row(made)["lag_p99"] == pytest.approx(0.02)
    assert "20.0 ms late" in why_void(made)


def test_what_has_failed_is_told_from_what_was_disturbed():
    busy = record(busy=0.91, busy_max=1.0)
    assert "91% of the processors' time" in why_void(busy)
    assert (row(busy)["disturbed"], row(busy)["busy"], row(busy)["busy_max"]) == (True, 0.91, 1.0)
    busy.wrong = 1
    assert not row(busy)["disturbed"]
    assert row(busy)["void"]
    assert not why_void(record(busy=0.9, busy_max=1.0))
    assert row(record())["busy"] is None


def test_a_row_tells_the_systems_own_bound():
    assert row(record(ttft_target_s=0.2))["bound_s"] is None
    assert row(record(ttft_target_s=0.2, knobs={"ttft_target_s": 0.3}))["bound_s"] == 0.3


def test_kept_instances_are_paid_for_but_by_an_oracle():
    made = record()
    made.looks = [Look(-5.0, {"serving": 1, "kept": 3, "gone": 2})]
    assert instance_seconds(made) == pytest.approx(40)
    made.about["free_when_kept"] = True
    assert instance_seconds(made) == pytest.approx(10)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"failure": "a node has ended\nits log"}, "it failed: a node has ended"),
        ({"wrong": 2}, "2 of 10 answers"),
        ({"answers": []}, "nothing was offered"),
        ({"answers": [answer(lag_s=0.02)]}, "20.0 ms late"),
        ({}, ""),
    ],
)
def test_what_makes_a_run_void(change, why):
    made = replace(record(), **change)
    assert why in why_void(made)
    assert row(made)["void"] == bool(why)


def test_a_run_without_an_objective_is_told():
    with pytest.raises(ValueError, match="no objective"):
        attainment(Record("live", 1, virtual=True, answers=[answer()]))
    assert row(Record("live", 1, virtual=True))["attainment"] is None


def test_phases_of_a_scale_up_count_from_its_decision():
    made = record(decide_s=0.02)
    made.answers.append(answer(2.0, 0.4, split="m@n0/p0:0-20,m@n1/p0:20-32"))
    made.answers.append(answer(1.0, 0.4, split="m@n0/p0:0-20,m@n1/p0:20-32"))  # before it
    (one,) = growths(made)
    assert (one.at_s, one.instances) == (2.0, 1)
    assert one.phases == {
        "crossed": -0.02, "decided": 0.0, "planned": 0.01, "first byte": 0.05, "first layer": 0.2,
        "first token helped": pytest.approx(0.4), "complete": 1.0,
    }  # fmt: skip


def test_only_scale_ups_that_have_brought_something_have_phases():
    made = record()
    made.operations = [
        growth(5.0, events=[]), growth(1.0, kind="copy"), growth(-5.0),
        growth(1.0, instances_wanted=0),
        growth(3.0, targets=[{"worker": "n1/p0", "ready_s": None, "arrived_s": []}]),
        growth(4.0, targets=[{"worker": "n1/p0", "ready_s": 0.005, "arrived_s": []}]),
    ]  # fmt: skip
    revived, read = growths(made)
    assert (revived.at_s, read.at_s) == (4.0, 5.0)
    assert read.phases["first byte"] == 0.1  # of a disk, the first blob
    assert "first byte" in revived.phases  # told by an event
    middle = medians([revived, read])
    assert middle["complete"] == pytest.approx((0.005 + 1.0) / 2)
    assert "first token helped" not in middle
    assert not math.isnan(middle["decided"])
