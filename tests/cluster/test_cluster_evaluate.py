"""What scripts/evaluate settles, plays, checks and keeps, without nodes."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import msgspec
import pytest

from blitzgw.core.instance import PacedCost
from blitzgw.core.layout import blob_layouts
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.paced import PacedEngine
from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation import levels
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.store import OtherSettings, Store
from blitzgw.sim.evaluation.traces import load, read_trace, scaled
from blitzgw.weights.info import open_checkpoint, resolve_model
from blitzgw.weights.loader import load_blobs
from scripts.evaluation import campaign, configuration, controls, evaluating, shelf
from scripts.evaluation.campaign import Wish
from scripts.evaluation.cell import Task, initial
from scripts.evaluation.cellprocess import CellProcess
from scripts.evaluation.configuration import Premises, Setting
from scripts.evaluation.meters import Busy, Meters, bytes_by_link, decide_s
from scripts.evaluation.reference import Reference
from scripts.evaluation.settling import lengths
from scripts.evaluation.tuning import TUNING_SEED, beside, chosen, tuned
from scripts.evaluation.watch import SETTLED_LOOKS, Watch, copies, errors, under_way
from tests.sim.evaluation_kit import record
from tests.support import netns
from tests.support.benchmodel import bench_model

TRACE = Path(__file__).parents[2] / "scripts/traces/azure2023_code_first_800s.csv"
PROMPT = tuple(3 + 7 * n % 250 for n in range(70))
OUTPUTS = 9
LONG = os.environ.get("BLITZGW_LONG") == "1"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bench_model(1.0, 4, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def answer(model):
    """What a paced device says, chunk by chunk and token by token."""
    spec = resolve_model("bench", model, None, 512).spec
    kv = KvGeometry(slots=1, blocks_per_slot=32, block_bytes=0)
    engine = PacedEngine(spec, kv, PacedCost(seed_ends=True), lambda _: None)
    checkpoint = open_checkpoint(model)
    layouts = blob_layouts(spec.shape, spec.dtype)
    load_blobs(checkpoint, layouts, spec.dtype, engine.blob_buffer, engine.blob_arrived)
    checkpoint.close()
    params = SamplingParams(max_tokens=64, temperature=0.0, seed=len(PROMPT) + OUTPUTS)
    blocks = [*range(512 // BLOCK_TOKENS)][::-1][:30]
    state = SequenceState([*PROMPT], len(PROMPT), 0, params, blocks)
    start, said = 0, []
    for count in (32, len(PROMPT) - 32, *[1] * OUTPUTS):
        rows = [RowInput(state, start, count, sample=True)]
        start += count
        hidden = engine.forward(rows, Span(0, spec.shape.n_layers), None)
        token = engine.sample(rows, engine.logits(rows, hidden))[0].token
        if start >= len(PROMPT):
            state.tokens.append(token)
            said.append(token)
    return said


def test_the_reference_says_what_a_paced_device_says(model, answer):
    reference = Reference(model)
    assert len(answer) == OUTPUTS + 1
    assert reference.agrees(PROMPT, answer, OUTPUTS)
    assert reference.agrees(PROMPT, answer[:-1], OUTPUTS)
    assert not reference.agrees(PROMPT, answer[:-2], OUTPUTS)
    assert not reference.agrees(PROMPT[1:], answer, OUTPUTS)
    for place in range(OUTPUTS):
        wrong = [*answer]
        wrong[place] = 3 + (wrong[place] + 1) % 200
        assert not reference.agrees(PROMPT, wrong, OUTPUTS)
    assert not reference.agrees(PROMPT, [], OUTPUTS)


class FakeProcess:
    """A cell that is over at once; `fate` tells what becomes of it."""

    fate: ClassVar[dict[tuple[str, int], list[str]]] = {}
    events: ClassVar[list[str]] = []

    def __init__(self, task, file):
        assert file.parent.is_dir()
        self.name = f"{task.system.name}-{task.seed}"
        self.task = task
        self.events.append(f"start {self.name}")

    def ready(self):
        return True

    def begin(self):
        self.events.append(f"begin {self.name}")

    def done(self):
        return True

    def give_up(self):
        self.events.append(f"give up {self.name}")

    def end(self):
        self.events.append(f"end {self.name}")

    def record(self):
        fates = self.fate.get((self.task.system.name, self.task.seed), [])
        fate = fates.pop(0) if fates else ""
        if fate == "^C":
            raise KeyboardInterrupt
        made = record(self.task.system.name, self.task.seed)
        if fate == "late":
            made.answers[0].lag_s = 1.0
        else:
            made.failure = fate
        return made


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(campaign, "CellProcess", FakeProcess)
    monkeypatch.setattr(campaign, "POLL_S", 0.0)
    FakeProcess.fate, FakeProcess.events = {}, []
    return FakeProcess


def wish(seeds=2, jobs=1, **more):
    setting = Setting(str(TRACE), (555.0, 605.0), 0.6, 0.25)
    systems = [SYSTEMS[name] for name in ("static-full", "stop+disk", "oracle")]
    return Wish(setting.but(**more), systems, range(1, 1 + seeds), jobs)


def ran(folder, asked):
    made = campaign.Campaign(asked, Store(folder), {"commit": "c"}, lambda _: None)
    made.begin()
    made.run()
    return made


def test_systems_of_a_seed_are_run_in_an_order_that_is_drawn_with_it(tmp_path, fake):
    ran(tmp_path, wish())
    begun = [event for event in fake.events if event.startswith("start")]
    made = campaign.Campaign(wish(), Store(tmp_path), {}, lambda _: None)
    assert begun == [f"start {task.system.name}-{task.seed}" for task in made._tasks()]
    assert [event[-1] for event in begun] == ["1"] * 3 + ["2"] * 3
    several = campaign.Campaign(wish(seeds=40), Store(tmp_path), {}, lambda _: None)
    names = [task.system.name for task in several._tasks()]
    orders = {tuple(names[place : place + 3]) for place in range(0, len(names), 3)}
    assert len(orders) == 6  # and not the three of a ring
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [(one["seed"], one["system"]) for one in rows][:3] == [
        (1, "static-full"), (1, "stop+disk"), (1, "oracle")
    ]  # fmt: skip
    assert "static-full" in (tmp_path / "table.txt").read_text()


def test_cells_side_by_side_begin_when_all_nodes_are_up(tmp_path, fake):
    ran(tmp_path, wish(seeds=1, jobs=2))
    words = [event.split()[0] for event in fake.events]
    assert words == ["start", "start", "begin", "begin", "start", "begin"]
    assert Store(tmp_path).about()["settings"]["jobs"] == 2
    with pytest.raises(OtherSettings, match="jobs: 2, not 1"):
        ran(tmp_path, wish(seeds=1))


def test_what_has_failed_stays_and_is_told(tmp_path, fake):
    fake.fate = {("oracle", 1): ["lost"]}
    for _ in range(2):
        made = ran(tmp_path, wish(seeds=1))
        assert (made.missing, made.failed) == ([], [("oracle", 1)])
    assert fake.events.count("start oracle-1") == 1
    assert "VOID: oracle, seed 1: it failed: lost" in (tmp_path / "table.txt").read_text()


def test_a_rerun_goes_on_and_runs_disturbed_cells_again(tmp_path, fake):
    fake.fate = {("oracle", 1): ["late"] * 9}
    made = ran(tmp_path, wish(seeds=1))
    assert (made.missing, made.failed) == ([("oracle", 1)], [])
    assert fake.events.count("start oracle-1") == campaign.ATTEMPTS
    assert "VOID: oracle, seed 1: the generator was" in (tmp_path / "table.txt").read_text()
    assert len(Store(tmp_path).about()["void_runs"]) == campaign.ATTEMPTS
    assert len([*(tmp_path / "cells").glob("oracle-1.void-*.gz")]) == campaign.ATTEMPTS - 1
    fake.fate, fake.events[:] = {}, []
    assert not ran(tmp_path, wish(seeds=2)).missing
    assert fake.events[0] == "start oracle-1"
    assert len([event for event in fake.events if event.startswith("start")]) == 4
    with pytest.raises(OtherSettings, match="dilation"):
        ran(tmp_path, wish(dilation=2.0))


def test_an_interrupt_ends_what_runs_and_loses_nothing(tmp_path, fake):
    first, second, _ = (task.system.name for task in _tasks(tmp_path, wish(seeds=1)))
    fake.fate = {(second, 1): ["^C"]}
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, wish(jobs=2))
    assert fake.events[-1] == f"end {second}-1"
    assert [one.system for one in Store(tmp_path).records()] == [first]


def _tasks(folder, asked):
    return [*campaign.Campaign(asked, Store(folder), {}, lambda _: None)._tasks()]


def test_no_cell_begins_on_a_full_disk(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(campaign.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(campaign.NoRoomLeft, match="are free"):
        ran(tmp_path, wish())
    assert not fake.events


def test_a_bound_of_its_own_is_a_systems_own(tmp_path, fake):
    asked = replace(wish(seeds=1), targets={"oracle": 0.1})
    made = campaign.Campaign(asked, Store(tmp_path), {}, lambda _: None)
    bounds = {task.system.name: task.setting.ttft_target_s for task in made._tasks()}
    assert bounds == {"oracle": 0.1, "static-full": 0.25, "stop+disk": 0.25}


def test_a_bound_is_chosen_by_attainment_then_by_instance_time():
    def one(system, attained, spent, void=False):
        return {
            "system": system, "attainment": attained, "instance_seconds": spent, "void": void
        }  # fmt: skip

    rows = {
        0.1: [one("live", 0.99, 900), one("stop", 0.5, 9)],
        0.2: [one("live", 0.988, 700)],
        0.3: [one("live", 0.9, 100), one("stop", 0.9, 9, void=True)],
    }
    assert chosen("live", rows) == 0.2
    assert chosen("stop", rows) == 0.1
    assert chosen("other", rows) == 0.0


def test_a_task_crosses_to_its_process_whole():
    for system in SYSTEMS.values():
        task = Task(wish().setting, system, 3, {"commit": "c"})
        assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task


def test_what_nodes_are_told_is_read_by_the_product(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "bench_model", partial(bench_model, folder=tmp_path))
    premises = Premises(wish().setting.but(size_mb=2.0))
    for system in SYSTEMS.values():
        knobs = tomllib.loads(premises.terms(system).settings)
        assert ("scaling" in knobs) == system.scales
        assert set(system.settings) <= {*knobs, "host_copies"}
        assert "host_copies" not in knobs


@pytest.mark.parametrize(("name", "count"), [("static-full", 8), ("oracle", 8), ("stop+disk", 1)])
def test_a_system_begins_with_what_it_says(name, count):
    arrivals = [Arrival(n / 10, 1000, 10) for n in range(500)]
    assert initial(SYSTEMS[name], wish().setting, arrivals) == count
    busy = levels.load(arrivals, 50.0, wish().setting.steps)
    mean = initial(SYSTEMS["static-mean"], wish().setting, arrivals)
    assert mean - 1 < busy / levels.UTILISATION <= mean


def test_the_feasible_level_is_where_static_full_attains_it():
    setting = wish().setting
    arrivals = [Arrival(n / 4, 1500, 20) for n in range(200)]

    def attained(factor):
        some = scaled(arrivals, factor, 1, 50.0)
        return levels.attainment(some, 2, setting.steps, setting.objective)

    found = levels.feasible(attained)
    assert attained(found) >= levels.FEASIBLE
    assert attained(2 * found) < levels.FEASIBLE
    load = levels.load(scaled(arrivals, found, 1, 50.0), 50.0, setting.steps)
    assert 0.3 < load < 2
    assert levels.paper(0.5, 8) == 8.0
    with pytest.raises(ValueError, match="thinnest"):
        levels.feasible(lambda _: 0.5)


def test_one_request_alone_takes_what_the_objective_says():
    steps, objective = wish().setting.steps, wish().setting.objective
    for tokens in (10, 2000, 7000):
        exact = replace(objective, times=1.0 + 5e-2 + 0.3)
        assert levels.attainment([Arrival(0.0, tokens, 1)], 1, steps, exact) == 1.0
        assert (
            levels.attainment([Arrival(0.0, tokens, 1)], 1, steps, replace(exact, times=0.9)) == 0
        )


def test_controls_change_what_they_say(tmp_path):
    made = controls.steady(wish(), tmp_path)
    assert made.setting.min_instances >= 1
    arrivals = read_trace(Path(made.setting.trace))
    gaps = {round(b.at_s - a.at_s, 3) for a, b in pairwise(arrivals)}
    assert max(gaps) - min(gaps) < 0.002
    lengths = sorted(one.prompt_tokens for one in arrivals)
    assert lengths == sorted(one.prompt_tokens for one in load(TRACE, (555.0, 605.0), 0.6))
    two = controls.one_target(wish(), tmp_path)
    assert (two.setting.nodes, [one.name for one in two.systems]) == (
        2,
        ["stop+star", "stop+chain"],
    )
    assert {one.settings["host_copies"] for one in two.systems} == {0}
    assert controls.light(wish(), tmp_path).setting.load_over_compute == 1.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--systems", "stop+tape"], "'stop+tape' is none of static-full"),
        (["--systems", "live,live"], "each system once"),
        (["--window", "800:540"], "is empty"),
        (["--window", "now"], "no window such as 540:800"),
        (["--window", "9000:9100"], "nothing"),
        (["--level", "best"], "best"),
        (["--seeds", "0"], "0"),
        (["--trace", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--out", str(tmp_path / "out"), *words])
    assert evaluating.guarded("help") != 0
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_settles_and_makes_nothing(tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path / "out"), "--quick", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    assert evaluating.guarded("help") == 0
    told = capsys.readouterr().err
    assert "PACED" in told
    assert "558 to 600 s" in told
    assert "5 systems, 1 seeds" in told
    assert not (tmp_path / "out").exists()


def test_a_process_that_dies_leaves_a_failure(tmp_path):
    task = Task(wish().setting.but(trace="/nowhere"), SYSTEMS["live"], 1, {})
    process = CellProcess(task, tmp_path / "out.json")
    try:
        assert process._process.wait(30) is not None
        assert process.ready()
        process.begin()
        made = process.record()
    finally:
        process.end()
    assert (made.system, made.seed) == ("live", 1)
    assert "left no record" in made.failure
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not LONG, reason="a minute of nodes: BLITZGW_LONG=1")
def test_a_cell_is_measured_whole(tmp_path):
    try:
        netns.check_permitted()
    except netns.NotPermitted as error:
        pytest.skip(str(error))
    setting = wish().setting.but(window=(560.0, 564.0), nodes=2, size_mb=30.0)
    setting = setting.but(load_over_compute=2.0)
    Premises(setting)
    asked = Wish(setting, [SYSTEMS["static-full"], SYSTEMS["live-zigzag"]], [1], 2)
    assert not ran(tmp_path, asked).missing
    for one in Store(tmp_path).records():
        assert one.checked == len(one.answers) > 5
        assert one.wrong == 0
        assert one.looks
        assert one.bytes_by_link["s0 tx"]


class FakeNodes:
    """Two nodes that tell what nodes tell."""

    nodes = range(2)
    roles = SimpleNamespace(host_copies=1)

    def __init__(self):
        self.states = ["serving"]
        self.began = 0.0

    def check(self):
        pass

    def name(self, node):
        return f"n{node}"

    def counters(self):
        return {"n0": netns.Counters(10, 20), "n1": netns.Counters(30, 40)}

    def get(self, path, node=0):
        edge = {"source": "n0/p0", "target": "n1/p0", "received_bytes": 7}
        operation = {"id": "x", "ended": True, "started": self.began + 8.0, "edges": [edge]}
        decision = {"owner": "n0", "at": self.began + 4.0, "wanted": 2, "action": "grow"}
        held = {"copies": [{"complete": True, "cached": False}]}
        answers = {
            "/cluster/instances": {"instances": [{"state": state} for state in self.states]},
            "/cluster/operations": {"operations": [operation, {"id": "y", "ended": False}]},
            "/cluster/operations/x": operation,
            "/cluster/decisions": {"decisions": [decision, decision]},
            "/cluster/nodes": {"nodes": [held, {"copies": [{"complete": True, "cached": True}]}]},
            "/metrics": "# HELP\nblitzgw_handoff_bytes_total 5.0\n"
            'blitzgw_scale_phase_seconds_count{phase="decide"} 2.0\n'
            'blitzgw_scale_phase_seconds_sum{phase="decide"} 0.1\n'
            'blitzgw_scale_phase_seconds_sum{phase="ready"} 9.0\n',
        }
        return (200, answers[path]) if path in answers else (404, {})


def test_what_nodes_tell_counts_from_the_windows_start_undilated():
    made = FakeNodes()
    watch = Watch(made, 4.0)
    watch.look(-1.0)
    made.began = watch.zero
    made.states = ["serving", "loading"]
    watch.look(0.0)
    watch.ask()
    watch.ask()
    assert [look.states for look in watch.looks] == [{"serving": 1}, {"serving": 1, "loading": 1}]
    assert [one["at_s"] for one in watch.operations.values()] == [pytest.approx(2.0)]
    assert [one["at_s"] for one in watch.decisions.values()] == [pytest.approx(1.0)]
    assert copies(made) == 1
    assert under_way(made)


def test_a_window_that_stays_empty_need_not_be_watched_to_its_end():
    made = FakeNodes()
    watch = Watch(made, 1.0, kept_is_free=True)
    made.states = ["serving", "draining"]
    for number in range(30):
        watch.look(float(number))
    assert not watch.settled(1)
    made.states = ["serving", "kept"]
    for number in range(SETTLED_LOOKS):
        assert not watch.settled(1)
        watch.look(30.0 + number)
    assert watch.settled(1)
    assert not watch.settled(2)
    watch.kept_is_free = False  # what is kept is paid for: it has to be seen to go
    assert not watch.settled(1)


def test_bytes_are_told_by_link_and_class():
    made = FakeNodes()
    watch = Watch(made, 1.0)
    watch.ask()
    links = {"n0": netns.Counters(1, 2), "n1": netns.Counters(3, 4)}
    found = bytes_by_link(Meters(links, {"n0": 1.0}), Meters.of(made), watch.operations.values())
    assert found["n0 tx"] == {"weights": 7.0, "handoffs": 4.0, "rest": 7.0}
    assert found["n1 rx"] == {"weights": 7.0, "rest": 20.0}
    assert decide_s(made) == pytest.approx(0.05)


def test_tuning_runs_each_bound_apart_and_in_another_window(tmp_path, fake):
    asked = wish(seeds=1)
    found = tuned(asked, tmp_path, {}, lambda _: None)
    assert set(found.targets) == {"stop+disk", "oracle"}
    assert found.seeds == asked.seeds
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["tuning-0.1", "tuning-0.175", "tuning-0.25", "tuning-0.35"]
    store = Store(tmp_path / folders[0])
    assert {one.seed for one in store.records()} == {TUNING_SEED}
    assert store.about()["settings"]["window"] == [505.0, 555.0]
    early = wish(window=(0.0, 300.0)).setting
    assert beside(early).window == (300.0, 600.0)
    with pytest.raises(ConfigError, match="no other 500 s"):
        beside(wish(window=(100.0, 600.0)).setting)


def test_no_request_is_longer_than_the_context():
    rows = [Arrival(0.0, 20_000, 10), Arrival(9.0, 30_000, 2_000), Arrival(20.0, 90_000, 9)]
    assert lengths(rows, (10.0, 21.0), 0.0) == {"context": 91_136, "max_tokens": 1024}
    assert lengths(rows, (5.0, 10.0), 0.0) == {"context": 32_768, "max_tokens": 2048}
    assert lengths(rows[:2], (9.5, 20.0), 3.0) == {"context": 32_768, "max_tokens": 2048}
    assert lengths([Arrival(1.0, 10, 10)], (0.0, 2.0), 0.0)["context"] == configuration.CONTEXT


def test_processors_are_told_by_mean_and_by_the_busiest_slice():
    made = Busy([(0, 0)])
    assert made.told() == {}
    made.readings += [(10 * n, 100 * n) for n in range(1, 9)] + [(100, 920), (110, 1000)]
    assert made.told() == {"busy": 0.11, "busy_max": 0.11}
    made.readings = [(0, 0), *[(0, 100 * n) for n in range(1, 5)], *[(380, 800)] * 4]
    assert made.told() == {"busy": 0.475, "busy_max": 0.95}


def test_mistakes_in_a_nodes_log_fail_its_cell(tmp_path):
    made = FakeNodes()
    made.bed = SimpleNamespace(log=lambda node: tmp_path / f"n{node}.log")
    (tmp_path / "n0.log").write_text("INFO all is well\n")
    (tmp_path / "n1.log").write_text("INFO fine\nERROR effect_failed kind=Order\nTraceback\n  x\n")
    assert errors(made).startswith("n1 says: ERROR effect_failed kind=Order\n")
    (tmp_path / "n1.log").write_text("gossip_sync_failed\n")
    assert errors(made) == ""


def test_copies_of_a_former_cell_are_laid_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "cache_dir", lambda: tmp_path / "cache")
    memory = {node: tmp_path / f"m{node}" for node in (0, 1)}
    for folder in memory.values():
        folder.mkdir()
    made = FakeNodes()
    made.bed = SimpleNamespace(memory=memory.get, name="bed")
    shelf.lay(made, Path("model"), 2)
    shelf.keep(made, Path("model"))
    assert not [*memory[0].iterdir()]
    (memory[0] / "abc.blobs").write_bytes(b"weights")
    shelf.keep(made, Path("model"))
    (memory[0] / "abc.blobs").unlink()
    shelf.lay(made, Path("model"), 1)
    assert not [*memory[0].iterdir()]
    assert (memory[1] / "abc.blobs").read_bytes() == b"weights"
    assert (memory[1] / "abc.blobs").stat().st_mode & 0o777 == 0o600
