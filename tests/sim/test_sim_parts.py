"""A simulation in parts of its time: each request once, nearly as in one, kept as they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest

from blitzgw.cli import simulatedparts
from blitzgw.sim.cluster.parts import LEAD_S, TAIL_S, counted, joined, parts_of, setup_of_part
from blitzgw.sim.cluster.setup import Latencies
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.store import Store
from blitzgw.sim.evaluation.summary import instance_seconds, row
from tests.sim.serving_kit import AUTO, GROWING, cluster, poisson

CODE = Path(__file__).parents[2] / "scripts/traces/azure2023_code_first_800s.csv"
RUN = [sys.executable, "-c", "import sys; from blitzgw.cli.main import main; sys.exit(main())"]
TRACE = [*RUN, "simulate", "trace", "--trace", str(CODE), "--systems", "live-zigzag"]

WINDOW_S, BURST_S = 900.0, 50.0
ABOUT = {"prefill_tokens_per_s": 15_000.0, "step_s": 0.008}


def bursts() -> list[Arrival]:
    """Return requests of which there are four times as many in every other minute or so."""
    calm, burst = poisson(2.0, WINDOW_S), poisson(6.0, WINDOW_S, seed=2)
    more = (one for one in burst if int(one.at_s / BURST_S) % 2)
    return sorted([*calm, *more], key=lambda one: one.at_s)


ARRIVALS = bursts()
SETUP = cluster(ARRIVALS, 8, system=GROWING, **AUTO)


def in_parts(count: int) -> Record:
    """Simulate what is above a part after another."""
    parts = parts_of(SETUP.duration_s, count)
    found = [counted(simulate_cluster(setup_of_part(SETUP, part)), part) for part in parts]
    return joined(found, "live", 1, ABOUT)


def test_parts_cover_the_window_and_each_has_a_lead_and_a_tail() -> None:
    parts = parts_of(600.0, 3)
    assert [(part.start_s, part.stop_s) for part in parts] == [(0, 200), (200, 400), (400, 600)]
    assert [part.begins_s for part in parts] == [0, 0, 400 - LEAD_S]
    assert [part.ends_s for part in parts] == [200 + TAIL_S, 400 + TAIL_S, 600]


def test_one_part_is_the_whole() -> None:
    whole, (part,) = simulate_cluster(SETUP), parts_of(SETUP.duration_s, 1)
    one = joined([counted(simulate_cluster(setup_of_part(SETUP, part)), part)], "live", 1, {})
    assert one.answers == whole.answers
    assert one.looks[1:] == [look for look in whole.looks if look.at_s > 0]
    assert instance_seconds(one) == instance_seconds(whole)
    assert one.decisions == whole.decisions
    assert one.bytes_by_link == whole.bytes_by_link
    assert one.seconds == whole.seconds
    assert one.about["events"] == whole.about["events"]


def test_parts_find_what_one_run_finds() -> None:
    """Of five seeds, instance seconds are 0.2 % apart on average, of one by up to 4 %."""
    whole, parted = simulate_cluster(SETUP), in_parts(2)
    whole.about |= ABOUT
    assert [one.at_s for one in parted.answers] == pytest.approx([one.at_s for one in ARRIVALS])
    assert all(a.at_s <= b.at_s for a, b in pairwise(parted.looks))
    one, other = row(whole), row(parted)
    assert other["seconds"] == pytest.approx(one["seconds"], abs=1.0)
    assert other["attainment"] == pytest.approx(one["attainment"], abs=0.01)
    assert other["ttft_p50"] == pytest.approx(one["ttft_p50"], rel=0.02)
    assert other["instance_seconds"] == pytest.approx(one["instance_seconds"], rel=0.06)
    assert len(parted.decisions) == pytest.approx(len(whole.decisions), rel=0.3)


def test_a_window_that_is_cut_short_has_fewer_requests() -> None:
    def requests(*more: str) -> int:
        command = [*TRACE, "--window", "540:600", "--factor", "0.6", "--format", "json", *more]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return int(json.loads(done.stdout)["settings"][0]["rows"][0]["requests"])

    assert 0 < requests("--duration", "30") < requests()


def test_parts_that_are_done_are_not_begun_again(tmp_path: Path) -> None:
    command = [*TRACE, "--window", "540:660", "--factor", "0.6", "--parts", "2"]
    command += ["--out", str(tmp_path), "--format", "json"]

    def rows() -> list[dict[str, object]]:
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return list(json.loads(done.stdout)["settings"][0]["rows"])

    first = rows()
    store = Store(tmp_path)
    part = store.get("live-zigzag", 1, "2-of-2")
    assert part is not None
    part.answers.pop()  # that it is this one is seen in the whole
    store.put(part, "2-of-2")
    store.file("live-zigzag", 1).unlink()
    assert rows()[0]["requests"] == int(str(first[0]["requests"])) - 1
    assert len([*store.records()]) == 1, "parts are no cells"


class Pool:
    """Parts that are over at once, but for the first of those that are asked for: it is killed."""

    def __init__(self) -> None:
        self.futures: list[Future[Record]] = []

    def submit(self, _simulate: object, cell: simulatedparts.Cell, _part: object) -> Future[Record]:
        future: Future[Record] = Future()
        self.futures.append(future)
        if len(self.futures) == 1:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(Record(cell.system, cell.seed, virtual=True))
        return future


def test_what_is_done_is_kept_when_another_part_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how far it is is told of what is simulated, not of what was there."""
    pool, waits, told = Pool(), iter((False, True)), list[float]()
    monkeypatch.setattr(simulatedparts, "_processes", lambda *_: nullcontext(pool))
    monkeypatch.setattr(
        simulatedparts, "wait", lambda *_: (pool.futures if next(waits) else [], set())
    )
    store = Store(tmp_path)
    store.begin({})
    store.put(Record("live-zigzag", 1, virtual=True), "1-of-3")
    cell = simulatedparts.Cell({"window": (0, 60)}, "live-zigzag", 1, Latencies())
    with pytest.raises(BrokenProcessPool):
        simulatedparts.simulate_parts(cell, 3, store, lambda share, _: told.append(share))
    assert told == [0.0]
    assert store.get("live-zigzag", 1, "2-of-3") is None
    assert store.get("live-zigzag", 1, "3-of-3") is not None


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent_whatever_ends_it(sent: signal.Signals) -> None:
    command = [*TRACE, "--nodes", "512", "--duration", "3600", "--parts", "8", "--factor", "40"]
    processes = min(8, len(os.sched_getaffinity(0)))
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        until_s = time.monotonic() + 60
        while sum(map(simulates, pids := children.read_text().split())) < processes:
            assert time.monotonic() < until_s, pids
            time.sleep(0.02)
        deaf = [is_deaf_to_interrupts(pid) for pid in pids if simulates(pid)]
        time.sleep(1.0)  # they import, or simulate: at any moment
        os.kill(parent.pid, sent)
        _, said = parent.communicate(timeout=20)
        assert parent.returncode == (130 if sent == signal.SIGINT else -sent)
        assert sent == signal.SIGKILL or b"Traceback" not in said, said
    assert deaf == [True] * processes, "a terminal sends ^C to all, and they begin to import"
    until_s = time.monotonic() + 10
    while left := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < until_s, f"{left} go on"
        time.sleep(0.05)


def simulates(pid: str) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_deaf_to_interrupts(pid: str) -> bool:
    """Tell whether a process blocks or ignores SIGINT, which a terminal sends to all."""
    told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(told["SigBlk"], 16) | int(told["SigIgn"], 16)) >> (signal.SIGINT - 1) & 1)


def runs(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
