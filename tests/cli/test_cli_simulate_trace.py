"""`blitzgw simulate trace`: what its options come to, what it prints, keeps and refuses."""

from __future__ import annotations

import errno
import json
from dataclasses import fields

import pytest
from click.testing import CliRunner

from blitzgw.cli import simulatedtrace
from blitzgw.cli.main import EXIT_FAILED, main
from blitzgw.cli.simulate import simulate
from blitzgw.cli.tracesettings import Wish, settings_of
from blitzgw.config import NodeConfig
from blitzgw.errors import ConfigError
from blitzgw.sim.cluster.cell import arrivals_of
from blitzgw.sim.cluster.setup import Latencies
from blitzgw.sim.evaluation import levels
from blitzgw.sim.evaluation.figures import NoMatplotlib
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import Answer, Look, Record
from blitzgw.sim.evaluation.store import Store
from blitzgw.sim.evaluation.traces import load
from scripts.evaluation import cell, configuration, microconstants

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path):
    """Sixty seconds with two requests each."""
    rows = [f"2023-11-16 18:17:{n // 2:02d}.{n % 2 * 5}000000,1200,20\n" for n in range(120)]
    file = tmp_path / "trace.csv"
    file.write_text(HEAD + "".join(rows))
    return file


@pytest.fixture
def simulated(monkeypatch):
    """Keep what the simulator is asked for; its nth run is slower than the one before."""
    setups = []

    def simulate_cluster(setup, progress):
        setups.append(setup)
        progress(1.0, "2 of 3 answered")
        first_s = 0.1 * len(setups)
        answers = [
            Answer(one.at_s, one.prompt_tokens, 2, "ok", first_s=first_s, last_s=0.5, tokens=2)
            for one in setup.models[0].arrivals
        ]
        about = dict(setup.about) | {"events": 1000}
        looks = [Look(0.0, {"serving": 2})]
        return Record(setup.system.name, setup.seed, True, about, answers, looks, 60.0)

    monkeypatch.setattr(simulatedtrace, "simulate_cluster", simulate_cluster)
    return setups


def run(*arguments):
    return CliRunner().invoke(simulate, ["trace", *map(str, arguments)], standalone_mode=False)


def wish(trace, **changed):
    values = {
        "trace": trace, "window": (10.0, 50.0), "factor": 1.0, "level": None,
        "systems": ("static-full",), "seeds": 1, "seed": 1, "nodes": (8,), "profile": "a800-8b",
        "ratios": (), "link_rate": None, "disk_rate": None, "host_rate": None, "models": 1,
        "duration_s": None, "failures_per_hour": 0.0, "parts": 1, "constants": None, "out": None,
    }  # fmt: skip
    return Wish(**values | changed)


def test_it_prints_a_row_for_each_system_and_seed(trace, simulated):
    done = run("--trace", trace, "--factor", 1, "--systems", "static-full,oracle", "--seeds", 2)
    assert done.return_value == 0, done.output
    assert "static-full" in done.output
    assert "oracle" in done.output
    assert [(one.system.name, one.seed) for one in simulated] == [
        ("static-full", 1), ("oracle", 1), ("static-full", 2), ("oracle", 2),
    ]  # fmt: skip
    assert {len(one.models[0].arrivals) for one in simulated} == {120}


def test_json_has_rows_and_what_they_are_of(trace, simulated):
    done = run("--trace", trace, "--window", "10:50", "--factor", 1, "--systems", "oracle",
               "--format", "json")  # fmt: skip
    (setting,) = json.loads(done.output)["settings"]
    assert setting["about"]["window"] == [10.0, 50.0]
    (row,) = setting["rows"]
    assert (row["system"], row["requests"], row["ttft_p50"]) == ("oracle", 80, 0.1)


def test_a_sweep_has_a_line_for_each_point(trace, simulated):
    done = run("--trace", trace, "--factor", 1, "--systems", "oracle", "--nodes", "2,4",
               "--load-over-compute", "1,6")  # fmt: skip
    assert [(one.nodes, round(one.link_bytes_per_s / 1e9)) for one in simulated] == [
        (2, 113), (2, 19), (4, 113), (4, 19),
    ]  # fmt: skip
    lines = [line.split()[:3] for line in done.output.splitlines() if " oracle " in line]
    assert lines == [
        ["2", "1", "oracle"],
        ["2", "6", "oracle"],
        ["4", "1", "oracle"],
        ["4", "6", "oracle"],
    ]
    # twice the nodes, twice the requests
    assert len(simulated[2].models[0].arrivals) == 2 * len(simulated[0].models[0].arrivals)


def test_what_is_in_the_folder_is_not_simulated_again(trace, simulated, tmp_path, monkeypatch):
    def draw(records, folder):
        assert [one.system for one in records] == ["oracle"]
        raise NoMatplotlib("they need an extra")

    monkeypatch.setattr(simulatedtrace, "draw", draw)
    out = tmp_path / "out"
    arguments = ["--trace", trace, "--factor", 1, "--systems", "oracle", "--out", out]
    first = run(*arguments)
    assert first.return_value == 0, first.output
    assert [one.system for one in Store(out).records()] == ["oracle"]
    assert "no figures: they need an extra" in first.output
    assert json.loads((out / "summary.json").read_text())
    assert run(*arguments).return_value == 0
    assert len(simulated) == 1
    other = CliRunner().invoke(simulate, ["trace", *map(str, arguments), "--nodes", "4"])
    assert isinstance(other.exception, ConfigError)


def test_rates_follow_from_the_ratio_and_the_papers(trace):
    (setting,) = settings_of(wish(trace, ratios=(6.0,)))
    link = setting.about["link_bytes_per_s"]
    # one of 34 equal blobs of 16 GB in 6 times 2000 tokens / 15,000 a second / 32 layers
    assert link == pytest.approx(16e9 / 34 / (6 * 2000 / 15_000 / 32), rel=1e-3)
    assert setting.about["disk_bytes_per_s"] == pytest.approx(link / 10)
    assert setting.about["host_bytes_per_s"] == pytest.approx(link * 1.28)
    (setting,) = settings_of(wish(trace, link_rate=12.5e9, disk_rate=2e9))
    assert setting.about["link_bytes_per_s"] == 12.5e9
    assert setting.about["disk_bytes_per_s"] == 2e9
    assert setting.about["load_over_compute"] == pytest.approx(6 * link / 12.5e9, rel=1e-3)


def test_models_share_the_load_and_have_their_bursts_at_other_times(trace, simulated):
    assert (
        run("--trace", trace, "--factor", 4, "--models", 4, "--systems", "oracle").return_value == 0
    )
    models = simulated[0].models
    assert [one.name for one in models] == [f"bench-{n:03d}" for n in range(4)]
    assert {len(one.arrivals) for one in models} == {120}
    assert len({one.arrivals[0].at_s for one in models}) == 4
    assert all(one.arrivals == tuple(sorted(one.arrivals, key=lambda a: a.at_s)) for one in models)


def test_a_window_is_repeated_for_as_long_as_is_asked(trace, simulated):
    run("--trace", trace, "--factor", 1, "--duration", 150, "--systems", "oracle")
    (setup,) = simulated
    assert setup.duration_s == 150
    assert 145 < setup.models[0].arrivals[-1].at_s < 150


def test_a_level_is_found(trace):
    (paper,) = settings_of(wish(trace, factor=None, level="paper"))
    (feasible,) = settings_of(wish(trace, factor=None, level="feasible"))
    assert paper.about["factor"] > 0
    assert feasible.about["level"] == "feasible"
    more = [*settings_of(wish(trace, factor=None, level="paper", nodes=(8, 80)))]
    assert more[1].about["factor"] == pytest.approx(10 * paper.about["factor"])


def test_a_level_is_found_for_what_is_played(tmp_path, monkeypatch):
    file = tmp_path / "ticks.jsonl"
    row = {"input_length": 600, "output_length": 20}
    rows = [json.dumps(row | {"timestamp": 3000 * (n // 30)}) for n in range(600)]
    file.write_text("\n".join(rows))
    tried = []

    def attainment(arrivals, *_):
        tried.append(arrivals)
        return float(len(arrivals) <= 300)

    monkeypatch.setattr(levels, "attainment", attainment)
    (setting,) = settings_of(wish(file, factor=None))
    about = setting.about
    assert about["spread_s"] == 3.0
    (played,) = arrivals_of(about, 1, 1)
    assert played in tried
    assert len({one.at_s for one in played}) == len(played)


def test_a_trace_that_cannot_be_served_at_all_is_told(trace, monkeypatch):
    monkeypatch.setattr(levels, "attainment", lambda *_: 0.0)
    with pytest.raises(ConfigError, match="--factor"):
        [*settings_of(wish(trace, factor=None))]


def test_no_answer_of_the_window_is_cut_and_no_prompt_is_too_long(tmp_path):
    file = tmp_path / "long.csv"
    rows = [f"2023-11-16 18:17:{n:02d}.0,{9000 if n == 30 else 100},{1500 if n < 20 else 20}\n"
            for n in range(60)]  # fmt: skip
    file.write_text(HEAD + "".join(rows))
    (long,), (short,) = (settings_of(wish(file, window=w)) for w in ((0.0, 40.0), (20.0, 60.0)))
    assert (long.about["max_tokens"], short.about["max_tokens"]) == (2048, 1024)
    assert (long.about["context"], short.about["context"]) == (11 * 1024, 10 * 1024)
    assert long.about["drain_timeout_s"] == NodeConfig().drain_timeout_s


@pytest.mark.parametrize(("factor", "seed"), [(0.5, 1), (8.0, 1), (14.3, 2), (30.0, 1)])
def test_static_mean_is_as_many_instances_as_on_the_testbed(trace, factor, seed):
    (setting,) = settings_of(wish(trace, factor=factor))
    there = configuration.Setting(str(trace), (10.0, 50.0), factor, 1.0)
    arrivals = load(trace, (10.0, 50.0), factor, seed)
    for system in ("static-mean", "static-full", "live"):
        expected = cell.initial(SYSTEMS[system], there, arrivals)
        assert setting.about_of(system, seed)["initial"] == expected


def test_static_mean_is_what_each_of_several_models_needs(trace, simulated):
    run("--trace", trace, "--factor", 16, "--models", 2, "--nodes", 16, "--systems", "static-mean")
    (setup,) = simulated
    alone = settings_of(wish(trace, factor=8.0, window=(0.0, 60.0)))
    expected = next(alone).about_of("static-mean", 1)["initial"]
    assert expected > 1
    assert [setup.initial(model) for model in setup.models] == [expected] * 2


def test_a_run_that_fails_is_told_and_is_the_exit_code(trace, simulated, monkeypatch):
    whole = simulatedtrace.simulate_cluster

    def failing(setup, progress):
        record = whole(setup, progress)
        record.failure = "a promise was broken"
        return record

    monkeypatch.setattr(simulatedtrace, "simulate_cluster", failing)
    done = run("--trace", trace, "--factor", 1, "--systems", "oracle")
    assert done.return_value == 1
    assert "oracle, seed 1: a promise was broken" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "magic"], "magic: there are static-full"),
        (["--systems", ","], "one at least"),
        (["--nodes", "0"], "numbers from 1"),
        (["--nodes", "8-12"], "several such as 8,64,512"),
        (["--window", "9"], "no window such as 540:800"),
        (["--window", "9:4"], "a later stop"),
        (["--link-rate", "fast"], "no rate such as 100Gbit"),
        (["--load-over-compute", "0"], "numbers above 0"),
        (["--factor", "1", "--level", "paper"], "either --factor or --level"),
        (["--link-rate", "1Gbit", "--load-over-compute", "2"], "either --link-rate"),
        (["--nodes", "1,2,3,4", "--seeds", "1000"], "make the sweep smaller"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_could(trace, arguments, said):
    done = CliRunner().invoke(simulate, ["trace", "--trace", str(trace), *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_trace_is_needed():
    done = CliRunner().invoke(simulate, ["trace", "--nodes", "4"])
    assert done.exit_code == 2
    assert "--trace FILE is missing" in done.output


def test_a_window_without_requests_and_an_unknown_profile_are_told(trace):
    for arguments in (["--window", "500:600"], ["--profile", "abacus-8b"]):
        done = CliRunner().invoke(simulate, ["trace", "--trace", str(trace), *arguments])
        assert isinstance(done.exception, ConfigError)


def test_profiles_can_be_listed():
    done = run("--profile", "list")
    assert "h200-72b" in done.output
    assert "15,000" in done.output


def test_constants_that_are_none_are_refused(trace, tmp_path):
    file = tmp_path / "constants.json"
    file.write_text("[]")
    done = CliRunner().invoke(simulate, ["trace", "--trace", str(trace), "--constants", str(file)])
    assert isinstance(done.exception, ConfigError)


def test_here_no_two_nodes_share_processors(trace, simulated, tmp_path):
    file = tmp_path / "constants.json"
    told = {
        "serve_s": 0.04,
        "claim_s": None,
        "step_beside_s": 0.01,
        "request_beside_s": 0.01,
        "cores": 2,
    }
    file.write_text(json.dumps({"constants": {n: {"value": v} for n, v in told.items()}}))
    run("--trace", trace, "--factor", 1, "--systems", "oracle", "--constants", file)
    assert simulated[0].latencies == Latencies(serve_s=0.04)


def test_cells_of_other_constants_are_not_taken(trace, simulated, tmp_path):
    file, out = tmp_path / "constants.json", tmp_path / "out"
    options = ["--trace", trace, "--factor", 1, "--systems", "oracle", "--out", out]
    for serve_s in (0.04, 0.05):
        file.write_text(json.dumps({"constants": {"serve_s": {"value": serve_s}}}))
        done = run(*options, "--constants", file)
    assert isinstance(done.exception, ConfigError)
    assert "constants" in str(done.exception)
    assert isinstance(run(*options).exception, ConfigError)
    assert len(simulated) == 1


def test_a_folder_that_cannot_be_written_is_told_of(
    trace, simulated, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(simulatedtrace.Store, "put", full)
    options = ["--trace", str(trace), "--factor", "1", "--systems", "oracle"]
    assert main(["simulate", "trace", *options, "--out", str(tmp_path / "out")]) == EXIT_FAILED
    assert capsys.readouterr().err == f"blitzgw: --out {tmp_path}/out: No space left on device\n"


def test_help_says_which_constants_nothing_measures():
    said = CliRunner().invoke(simulate, ["trace", "--help"]).output
    guesses = {field.name for field in fields(Latencies)} - {*microconstants.HOW}
    assert guesses
    assert all(name in said for name in guesses)


def test_it_is_said_how_long_a_simulation_goes_on():
    assert simulatedtrace._left(0.25, 60.0) == ", 180 s left"
    assert simulatedtrace._left(0.25, 1.0) == ""
    assert simulatedtrace._left(0.0, 60.0) == ""


def test_an_interrupt_leaves_what_is_finished(trace, tmp_path, simulated, monkeypatch):
    finish = simulatedtrace.simulate_cluster

    def interrupted(setup, progress):
        if simulated:
            raise KeyboardInterrupt
        return finish(setup, progress)

    monkeypatch.setattr(simulatedtrace, "simulate_cluster", interrupted)
    out = tmp_path / "out"
    arguments = ["--trace", trace, "--factor", 1, "--out", out]
    done = run(*arguments, "--systems", "stop+disk,stop+chain")
    assert done.exception is not None or done.exit_code != 0
    store = Store(out)
    assert store.get("stop+disk", 1) is not None
    assert store.get("stop+chain", 1) is None
