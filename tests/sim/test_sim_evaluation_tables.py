"""Statistics over seeds, and what tables and pictures make of them."""

import math
import os
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.sim.evaluation import figures
from blitzgw.sim.evaluation.comparisons import difference, excess, interval, ratio
from blitzgw.sim.evaluation.gains import control_verdicts
from blitzgw.sim.evaluation.statistics import MIN_RUNS, Interval, bootstrap, median, quantile
from blitzgw.sim.evaluation.summary import row
from blitzgw.sim.evaluation.tables import counted, report, spread, summary_table
from tests.sim.evaluation_kit import ABOUT, record

SHORT = not os.environ.get("BLITZGW_LONG")
SLOWER = {
    "static-full": 0.8,
    "stop+disk": 4.0,
    "stop+chain": 2.0,
    "live-zigzag": 1.3,
    "oracle": 1.0,
}


def rows(seeds=3):
    return [
        row(record(name, seed, slower * (1 + seed / 100)))
        for seed in range(seeds)
        for name, slower in SLOWER.items()
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_between_the_ends(values, share):
    assert min(values) <= quantile(values, share) <= max(values)
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)


def test_quantiles_are_linear_between_neighbours():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.99) == pytest.approx(9.9)
    assert math.isnan(median([]))


def test_an_interval_holds_its_statistic_and_repeats():
    values = [1.0, 1.2, 0.9, 1.1, 1.4]
    one = bootstrap(values, median)
    assert one == bootstrap(values, median)
    assert one.known
    assert 0.9 <= one.low <= one.middle == 1.1 <= one.high <= 1.4
    assert not bootstrap([1.0], median).known
    assert math.isnan(bootstrap([], median).middle)
    assert not bootstrap([0.0, 1.0], lambda some: 1 / some[0] if some[0] else math.nan).known
    assert not one.is_range


def test_few_runs_have_a_range_and_no_interval():
    few = bootstrap([3.0, 1.0, 2.0, 9.0], median)
    assert few == Interval(2.5, 1.0, 9.0, 4)
    assert few.is_range
    assert interval(few) == "2.50 [1.00, 9.00] of 4"
    assert interval(bootstrap([1.0] * MIN_RUNS, median)) == "1.00 [1.00, 1.00]"


def test_draws_without_a_finite_statistic_move_an_end():
    found = bootstrap(
        [0.0, 1.0, 1.0, 1.0, 1.0], lambda some: math.inf if 0.0 in some[:1] else some[0]
    )
    assert (found.low, found.high) == (1.0, math.inf)
    assert interval(found).endswith("[1.00, ∞]")
    assert quantile([1.0, math.inf, math.inf], 0.6) == math.inf


def test_an_excess_is_that_beyond_the_oracle_over_the_baselines():
    found = rows()
    assert excess(found, "live-zigzag", "stop+disk", "ttft_p99").middle == pytest.approx(0.1)
    assert excess(found, "stop+chain", "stop+disk", "ttft_p99").middle == pytest.approx(1 / 3)
    assert excess(found, "oracle", "stop+disk", "ttft_p99").middle == 0
    assert ratio(found, "stop+disk", "oracle", "ttft_p99").middle == pytest.approx(4)
    assert math.isnan(excess(found, "live-zigzag", "oracle", "ttft_p99").middle)
    assert math.isnan(ratio(found, "live-zigzag", "pipeline", "ttft_p99").middle)


def test_a_baseline_within_noise_of_the_oracle_gives_no_excess():
    found = [
        {**one, "ttft_p99": 0.1 * one["seed"]} if one["system"] == "stop+chain" else one
        for one in rows()
    ]
    assert difference(found, "stop+chain", "oracle", "ttft_p99").low < 0
    assert math.isnan(excess(found, "live-zigzag", "stop+chain", "ttft_p99").middle)
    text = report(found, {})
    assert "No excess/stop+chain: it lies within noise of the oracle, -0.2" in text
    assert "No excess/stop+disk" not in text


def test_differences_are_told_in_seconds():
    found = difference(rows(), "stop+disk", "oracle", "ttft_p99")
    assert found.middle == pytest.approx(3 * 0.3 * 1.01)
    assert "− oracle, s" in report(rows(), {})


@pytest.mark.parametrize(
    ("control", "slower", "told"),
    [
        ("light", {"stop+chain": 1.0, "live-zigzag": 0.95}, "PASS: p99 TTFT of live-zigzag"),
        ("light", {"stop+chain": 1.0, "live-zigzag": 0.8}, "FAIL: p99 TTFT of live-zigzag"),
        ("steady", {"stop+disk": 1.0, "live-zigzag": 0.9}, "FAIL: p99 TTFT of live-zigzag"),
        ("steady", {"stop+disk": 1.0, "live-zigzag": 1.0}, "PASS: p99 TTFT of live-zigzag"),
        ("steady", {"stop+disk": 1.0}, "FAIL: 3 scale-ups"),
        ("one-target", {"stop+star": 1.0, "stop+chain": 1.0}, "PASS: p99 TTFT of stop+star"),
        ("one-target", {"stop+star": 0.9, "stop+chain": 1.0}, "FAIL: p99 TTFT of stop+star"),
        ("one-target", {"stop+star": 0.99, "stop+chain": 1.0}, "PASS: p99 TTFT of stop+star"),
        ("one-target", {"stop+star": 1.0}, "NOT JUDGED, fewer than two pairs"),
    ],
)
def test_a_control_has_a_verdict(control, slower, told):
    made = [
        row(record(name, seed, factor * (1 + seed / 100), knobs={"ttft_target_s": 0.2}))
        for seed in range(3)
        for name, factor in slower.items()
    ]
    assert f"CONTROL {control}: {told}" in report(made, {"level": {"control": control}})


@pytest.mark.parametrize(
    ("sent", "told"), [(1e6, "PASS: weights have crossed"), (0.0, "FAIL: weights have not crossed")]
)
def test_weights_of_one_target_have_to_cross_the_link(sent, told):
    made = row(record("stop+star", model_bytes=1_000_000))
    assert made["weights_sent"] == 1e6
    assert told in control_verdicts([{**made, "weights_sent": sent}], "one-target")
    assert "nothing has grown" in control_verdicts([{**made, "growths": 0}], "one-target")
    assert control_verdicts([made], "") == ""


def test_what_has_no_partner_of_its_seed_is_not_compared():
    found = [one for one in rows() if (one["system"], one["seed"]) != ("oracle", 2)]
    found = [{**one, "ttft_p99": 1e9} if one["seed"] == 2 else one for one in found]
    assert excess(found, "live-zigzag", "stop+disk", "ttft_p99").middle == pytest.approx(0.1)


def test_a_report_tells_figures_and_what_is_void():
    found = rows()
    found[3] = {**found[3], "void": True, "why_void": "late"}
    about = {"settings": ABOUT | {"jobs": 2}, "level": {"level": "feasible"}, "commit": ""}
    about["void_runs"] = [{"system": "live-zigzag"}] * 2
    text = report(found, about)
    assert "PACED some.csv 10:20 s × 0.5" in text
    assert f"VOID: {found[3]['system']}, seed {found[3]['seed']}: late" in text
    assert "agrees with it: static-full attains 100.00% (median of 3, at least 100.00%)" in text
    assert "prefix caching off" in text
    assert "excess/disk" in text
    assert f"{len(found) * 10} answers compared with a single process, 0 differ" in text
    assert "2 cells side by side" in text
    assert "The commit is not known" in text
    (line,) = (line for line in text.splitlines() if line.startswith("live-zigzag") and "±" in line)
    assert line.split()[-4:] == ["2", "2", "0", "0"]  # seeds, void, failed, split
    assert len(counted(found)) == len(found) - 1
    assert max(map(len, text.splitlines())) <= 160


def test_a_report_of_nothing_or_of_one_row_is_one_too():
    assert "Nothing has been measured" in report([], {})
    one = report(rows(1)[:1], {"settings": ABOUT})
    assert "static-full" in one
    assert "paired" not in one
    lost = {**rows(1)[0], "ttft_p99": None}
    assert "–" in report([lost], {})


def test_a_level_that_is_not_attained_is_told():
    found = [{**one, "attainment": 0.97} for one in rows()]
    assert "NOT CONFIRMED" in report(found, {"level": {"level": "feasible"}})


def test_a_spread_is_the_greatest_distance():
    assert spread([1.0, 2.0, 4.0], "{:.1f}") == "2.0 ±2.0"
    assert spread([0.5], "{:.1f}") == "0.5"
    assert spread([None], "{:.1f}") == "–"


def test_pictures_are_drawn_of_what_there_is(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    names = ["waterfall", "objectives"] if SHORT else [*figures._FIGURES]
    monkeypatch.setattr(figures, "_FIGURES", {name: figures._FIGURES[name] for name in names})
    lost = record("pipeline")
    lost.wrong = 1
    bare = record("stop+host")
    bare.operations, bare.bytes_by_link, bare.looks = [], {}, []
    records = [record(), record(seed=2), record("oracle"), lost, bare]
    files = figures.draw(records, tmp_path, ("svg",))
    assert [file.stem for file in files] == names
    assert all(ET.parse(file).getroot().tag.endswith("svg") for file in files)
    assert figures.draw([lost], tmp_path / "none") == []


def test_columns_stay_apart_however_wide_a_spread_is():
    lines = summary_table(
        [row(record("oracle", seed, 1.0)) | {"tpot_p99": 1234.5 * seed} for seed in range(3)]
    ).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert len(cells[0]) == len(cells[1]) == 14
    assert cells[1][5] == "1234.5000 ±1234.5000"
