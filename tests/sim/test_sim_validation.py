"""What is accepted of a prediction, figure by figure, and what stands in its way."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from blitzgw.sim.cluster.cell import setup_of
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.evaluation import statistics
from blitzgw.sim.evaluation.arrivals import Arrival, Objective
from blitzgw.sim.evaluation.differences import LIMITS
from blitzgw.sim.evaluation.knobs import Bounds, knobs
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import Answer, Look, Record
from blitzgw.sim.evaluation.store import write_record
from blitzgw.sim.evaluation.validation import Pair, judge, load, phases, setting_of
from scripts.evaluation import microphases, validation

ABOUT = {
    "trace": "somewhere/code.csv",
    "window": [540.0, 800.0],
    "factor": 0.6,
    "nodes": 8,
    "prefill_tokens_per_s": 15_000.0,
    "step_s": 0.008,
}
REQUESTS = 200


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Intervals need not be exact here."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def record(system="live", seed=1, *, times=1.0, tail=1.0, held=4, late=0, virtual=False, **about):
    """Return a run of one request a second; `times` as slow, its slowest 2 % `tail` times more.

    `late` of the answers take too long for their objective, but change no mean: their tokens do.
    """
    answers = []
    for number in range(REQUESTS):
        first_s = times * (0.05 + 0.001 * (number % 50))
        first_s *= tail if number % 50 == 49 else 1.0
        tpot_s = 1.0 if number < late else 0.01
        answers.append(
            Answer(float(number), 1500, 2, "ok", first_s=first_s, last_s=first_s + tpot_s, tokens=2)
        )
    looks = [Look(-1.0, {"serving": held})]
    return Record(system, seed, virtual, ABOUT | about, answers, looks, seconds=float(REQUESTS))


def verdict(measured, *predicted):
    return judge([Pair(measured, tuple(replace(one, virtual=True) for one in predicted))])


def figures(made):
    (cell,) = made.cells
    return {one.figure: one for one in cell.differences}


def test_the_same_is_accepted_and_nothing_differs():
    made = verdict(record(), record())
    assert not made.off
    assert made.cells[0].accepted
    assert all(one.off.middle == 0 for one in figures(made).values())
    assert [one.figure for one in made.cells[0].differences] == [one.figure for one in LIMITS]


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"times": 1.06}, "ttft_mean"),
        ({"times": 0.94}, "ttft_p50"),
        ({"tail": 1.15}, "ttft_p99"),
        ({"late": 5}, "attainment"),
        ({"held": 4.2}, "instance_seconds"),
    ],
)
def test_each_figure_has_its_limit(change, figure):
    made = verdict(record(), record(**change))
    assert not made.accepted
    assert not figures(made)[figure].accepted


@pytest.mark.parametrize(
    "change", [{"times": 1.04}, {"times": 0.96}, {"tail": 1.09}, {"late": 3}, {"held": 4.1}]
)
def test_less_than_that_is_accepted(change):
    assert not verdict(record(), record(**change)).off


def test_the_tail_is_not_judged_beyond_the_load_where_it_settles():
    slow = {"prefill_tokens_per_s": 400.0}  # 1,500 tokens a second on 4 instances
    made = verdict(record(**slow), record(tail=1.5, **slow))
    assert load(record(**slow)) > 0.85
    assert not figures(made)["ttft_p99"].judged
    assert figures(made)["ttft_p99"].accepted


def test_the_median_of_several_predictions_counts():
    assert not verdict(record(), record(), record(times=1.02), record(times=3.0)).off


def test_a_run_that_is_void_and_one_without_prediction_are_left_out():
    void = record()
    for answer in void.answers:
        answer.lag_s = 0.05
    assert not judge([Pair(void, (record(),)), Pair(record(), ())]).cells
    assert not judge([]).accepted


def runs(system, times, predicted_times):
    """Pairs of three seeds that differ by a percent."""
    return [
        Pair(
            record(system, seed, times=times * (1 + 0.01 * seed)),
            (record(system, seed, times=predicted_times * (1 + 0.01 * seed), virtual=True),),
        )
        for seed in range(3)
    ]


def spread(differences):
    """Return what becomes of the mean's difference where it differs so from run to run."""
    pairs = [
        Pair(record(seed=seed), (record(seed=seed, times=1 + off, virtual=True),))
        for seed, off in enumerate(differences)
    ]
    return judge(pairs)


@pytest.mark.parametrize(
    ("differences", "accepted", "sure", "is_open"),
    [
        ([0.01, 0.02, 0.02, 0.03, 0.04], True, True, False),
        ([-0.2, -0.1, 0.02, 0.1, 0.2], True, False, False),
        ([0.02, 0.03, 0.06, 0.2, 0.3], False, False, True),
        ([-0.3, -0.2, -0.06, -0.03, -0.02], False, False, True),
        ([0.06, 0.07, 0.08, 0.09, 0.2], False, False, False),
        ([-0.06, -0.07, -0.08, -0.09, -0.2], False, False, False),
    ],
)
def test_what_runs_leave_open_is_neither_accepted_nor_off(
    differences, accepted, sure, is_open, capsys
):
    made = spread(differences)
    mean = figures(made)["ttft_mean"]
    assert (mean.accepted, mean.sure, mean.open) == (accepted, sure, is_open)
    assert made.off == (not accepted and not is_open)
    validation.print_verdict(made)
    printed = capsys.readouterr().out.replace(validation.MARKS, "")
    marks = {mark for mark in "!?~" if f" %) {mark}" in printed}
    assert ("!" in marks) == made.off
    assert ("?" in marks) == is_open


def test_with_anything_open_nothing_is_accepted():
    apart = [(1.0, 1.02), (1.0, 1.03), (1.0, 1.06), (1.0, 1.2), (1.0, 1.3)]
    pairs = [
        Pair(record("live", seed, times=a), (record("live", seed, times=b, virtual=True),))
        for seed, (a, b) in enumerate(apart)
    ]
    made = judge([*pairs, *runs("stop", 2.0, 2.0)])
    assert made.orders
    assert not made.off
    assert not made.accepted
    assert "live's ttft_mean" in made.too_little


def test_systems_that_stand_in_another_order_are_not_accepted():
    right = judge([*runs("live", 1.0, 1.0), *runs("stop", 1.2, 1.21)])
    assert right.accepted
    assert {(one.less, one.more) for one in right.orders} == {("live", "stop")}
    wrong = judge([*runs("live", 1.0, 1.04), *runs("stop", 1.06, 1.03)])
    assert all(cell.accepted for cell in wrong.cells)
    assert not wrong.accepted
    assert {one.figure for one in wrong.orders if not one.agrees} >= {"ttft_p50"}


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([], "fewer than 2 systems"),
        (runs("live", 1.0, 1.0), "fewer than 2 systems"),
        ([*runs("live", 1.0, 1.0), *runs("stop", 1.2, 1.2)[:2]], r"3 runs of stop (2)"),
        ([*runs("live", 1.0, 1.0), *runs("stop", 1.0, 1.0)], "no two systems differ"),
    ],
)
def test_too_little_is_not_accepted_and_not_refused(pairs, why, capsys):
    made = judge(pairs)
    assert not made.off
    assert not made.accepted
    assert why in made.too_little
    validation.print_verdict(made)
    assert "NOT JUDGED" in capsys.readouterr().out
    assert why in validation.told(made)["not_judged"]


def test_the_order_is_judged_only_where_intervals_are_disjoint():
    near = judge([*runs("live", 1.0, 1.01), *runs("stop", 1.005, 1.0)])
    assert not [one for one in near.orders if one.figure != "instance_seconds"]
    alone = judge([*runs("live", 1.0, 1.0)[:2], *runs("stop", 1.5, 1.5)[:2]])
    assert not alone.orders


def test_runs_of_other_settings_are_cells_of_their_own():
    one, other = record(), record(nodes=4)
    made = judge([Pair(one, (one,)), Pair(other, (other,))])
    assert len(made.cells) == 2
    assert setting_of(record(ttft_target_s=0.2)) != setting_of(record(ttft_target_s=0.3))
    assert setting_of(one) == "trace code.csv, window 540:800, factor 0.6, nodes 8"


def test_phases_tell_what_all_requests_need_more_from_what_they_wait():
    plain = record()
    slower = record()
    for answer in slower.answers[::4]:
        answer.first_s += 0.4
    told, more = phases([plain]), phases([slower])
    assert more["request: at least"] == pytest.approx(told["request: at least"], abs=0.003)
    assert more["request: waiting"] - told["request: waiting"] == pytest.approx(0.1, abs=0.003)
    cell = verdict(plain, slower).cells[0]
    assert cell.worst is not None
    assert cell.worst.name == "request: waiting"
    assert math.isfinite(cell.worst.predicted)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A short run of three nodes as if a testbed had measured it."""
    tmp_path = tmp_path_factory.mktemp("measured")
    rows = [Arrival(0.2 * number, 500 + 90 * (number % 30), 6) for number in range(40)]
    about = {
        "trace": "made.csv", "window": [0.0, 10.0], "factor": 1.0, "nodes": 3, "dilation": 4.0,
        "profile": "a800-8b", "model_bytes": 270_000_000, "link_bytes_per_s": 3.2e8,
        "disk_bytes_per_s": 3.2e7, "host_bytes_per_s": 4e8, "prefill_tokens_per_s": 15_000.0,
        "step_s": 0.008, "patience_s": 120.0,
    }  # fmt: skip
    objective = Objective(15_000.0, 0.008)
    bounds = Bounds(0.25, 3, scale_down_after_s=2.0)
    found = []
    for name in ("static-full", "stop+chain"):
        system = SYSTEMS[name]
        made = knobs(system, objective, bounds, context=4096, sequences=64, budget_tokens=448)
        whole = about | {"knobs": dict(made)}
        latencies = validation.constants(validation.MICRO, 4.0)
        record = simulate_cluster(setup_of(whole, system, 1, latencies, rows), lambda *_: None)
        record.virtual = False
        record.about = whole
        found.append(record)
        write_record(tmp_path / f"{name}.json.gz", record)
    write_record(tmp_path / "void.json", Record("oracle", 1, False, failure="it ended"))
    (tmp_path / "summary.json").write_text("[]")
    for folder in ("tuning-0.2/cells", "tuned/cells"):
        (tmp_path / folder).mkdir(parents=True)
        write_record(tmp_path / folder / "live-1.json.gz", found[0])
    return tmp_path


def test_a_simulation_predicts_itself(measured, capsys):
    records = validation.measured_records(measured)
    assert sorted(one.system for one in records) == ["static-full", "stop+chain"]
    assert len(validation.measured_records(measured / "tuned")) == 1
    pairs = [*validation.predicted(records, validation.MICRO, 1, lambda _: None)]
    made = judge(pairs)
    assert not made.off
    assert all(abs(one.off.middle) < 1e-9 for cell in made.cells for one in cell.differences)
    validation.print_verdict(made)
    assert "NOT JUDGED: fewer than 3 runs" in capsys.readouterr().out
    told = json.loads(json.dumps(validation.told(made)))
    assert [cell["accepted"] for cell in told["cells"]] == [True, True]


def test_where_it_differs_is_told_with_the_phase(measured, capsys):
    (record,) = (one for one in validation.measured_records(measured) if one.system == "stop+chain")
    slow = replace(
        record, answers=[replace(one, first_s=one.first_s + 0.2) for one in record.answers]
    )
    made = judge([Pair(slow, (record,))])
    validation.print_verdict(made)
    printed = capsys.readouterr().out
    assert "NOT accepted" in printed
    assert "request: at least" in printed


def test_phases_of_a_growth_are_told_on_the_wall():
    events = [
        {"at_s": 0.0, "what": "planned", "about": None},
        {"at_s": 0.004, "what": "claimed", "about": "n1/p0"},
        {"at_s": 0.010, "what": "connected", "about": "n1/p0"},
    ]
    target = {
        "worker": "n1/p0", "state": "ready", "ready_s": 0.502, "blobs": 5,
        "arrived_s": [0.1, 0.2, 0.3, 0.4, 0.5],
    }  # fmt: skip
    facts = {"events": events, "targets": [target], "size_bytes": 1_000_000}
    found = microphases.phases(facts, 4.0)
    assert found["claim_s"] == pytest.approx([0.016])
    assert found["connect_s"] == pytest.approx([0.024])
    assert found["serve_s"] == pytest.approx([0.008])
    # four of five blobs in 0.4 s, four times as long on the wall
    assert microphases.link_share(facts, 1e6, 4.0) == pytest.approx([0.5])
