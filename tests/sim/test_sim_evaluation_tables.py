"""Statistics over seeds, and what tables and pictures make of them."""

import math
import os
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.sim.evaluation import figures
from blitzgw.sim.evaluation.statistics import bootstrap, median, quantile
from blitzgw.sim.evaluation.summary import row
from blitzgw.sim.evaluation.tables import counted, excess, ratio, report, spread
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


def test_an_excess_is_that_beyond_the_oracle_over_the_baselines():
    found = rows()
    assert excess(found, "live-zigzag", "stop+disk", "ttft_p99").middle == pytest.approx(0.1)
    assert excess(found, "stop+chain", "stop+disk", "ttft_p99").middle == pytest.approx(1 / 3)
    assert excess(found, "oracle", "stop+disk", "ttft_p99").middle == 0
    assert ratio(found, "stop+disk", "oracle", "ttft_p99").middle == pytest.approx(4)
    assert math.isnan(excess(found, "live-zigzag", "oracle", "ttft_p99").middle)
    assert math.isnan(ratio(found, "live-zigzag", "pipeline", "ttft_p99").middle)


def test_what_has_no_partner_of_its_seed_is_not_compared():
    found = [one for one in rows() if (one["system"], one["seed"]) != ("oracle", 2)]
    found = [{**one, "ttft_p99": 1e9} if one["seed"] == 2 else one for one in found]
    assert excess(found, "live-zigzag", "stop+disk", "ttft_p99").middle == pytest.approx(0.1)


def test_a_report_tells_figures_and_what_is_void():
    found = rows()
    found[3] = {**found[3], "void": True, "why_void": "late"}
    about = {"settings": ABOUT, "level": {"level": "feasible"}, "void_runs": [{}]}
    text = report(found, about)
    assert "PACED some.csv 10:20 s × 0.5" in text
    assert f"VOID: {found[3]['system']}, seed {found[3]['seed']}: late" in text
    assert "level is confirmed: static-full attains 100.00%" in text
    assert "p99 excess/disk" in text
    assert f"{len(found) * 10} answers compared with a single process, 0 differ" in text
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
