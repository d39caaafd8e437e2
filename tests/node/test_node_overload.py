"""More than a node can do, and clients that mean ill: who is taken does not notice."""

import asyncio
import json
import statistics
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.nodes import ROOT, completion, paced, running, until
from tests.support.openloop import Load, half_sent, idle, slow_readers

STEP_US = 10e3 / 30
"""Per layer: a step takes 10 ms."""

MAX_WAIT_S = 0.5


async def test_in_an_overload_few_wait_and_the_rest_is_told_at_once(tmp_path):
    config = paced(
        fixed_us=STEP_US,
        model="max_num_seqs = 4",
        http=f"max_wait_s = {MAX_WAIT_S}\nmax_queue = 99",
    )
    with running(tmp_path, config) as node:
        load = Load(node.port, "Hello", 10)
        await load.closed(8, 1.0)  # from here on it knows how many it begins per second
        offered = asyncio.ensure_future(load.open(200.0, 2.0, seed=1))
        waiting = []
        while not offered.done():
            waiting.append((await asyncio.to_thread(node.load))[1])
        outcomes = await offered
        await load.close()
        taken = [one for one in outcomes if one.status == 200]
        refused = [one for one in outcomes if one.status == 429]
        assert len(taken) + len(refused) == len(outcomes)
        assert not any(one.cut for one in outcomes)
        assert len(refused) > len(taken)  # 40 a second would be too many already
        assert 0 < max(waiting) <= 1.5 * MAX_WAIT_S * 40
        told_s = statistics.median(one.over_s for one in refused)
        assert told_s < statistics.median(one.first_s for one in taken)
        until(lambda: node.load() == (0, 0), "quiet")


async def test_without_a_bound_all_wait(tmp_path):
    config = paced(fixed_us=STEP_US, model="max_num_seqs = 4")
    with running(tmp_path, config) as node:
        load = Load(node.port, "Hello", 10)
        await load.closed(8, 0.5)
        outcomes = await load.open(200.0, 0.3, seed=1)
        await load.close()
        assert Counter(one.status for one in outcomes) == {200: len(outcomes)}


@pytest.mark.parametrize(
    "crowd", [lambda port: idle(port, 300), lambda port: half_sent(port, 100)], ids=["idle", "half"]
)
async def test_who_says_nothing_or_half_disturbs_nobody(tmp_path, crowd):
    with running(tmp_path, paced(fixed_us=STEP_US / 10)) as node:
        load = Load(node.port, "Hello", 10)
        async with crowd(node.port):
            outcomes = await load.open(50.0, 1.0, seed=2)
        await load.close()
        assert Counter((one.status, one.cut) for one in outcomes) == {(200, False): len(outcomes)}
        assert node.complete("Hello", 3)["usage"]["completion_tokens"] == 3


async def test_slow_readers_disturb_nobody_and_are_given_up(tmp_path):
    config = paced(fixed_us=0.0, http='max_stream_buffer_bytes = "64KiB"')
    with running(tmp_path, config) as node:
        load = Load(node.port, "Hello", 10)
        before = node.resident_mib()
        async with slow_readers(node.port, 20, 1900):
            outcomes = await load.open(50.0, 1.0, seed=3)
            until(lambda: node.load() == (0, 0), "the end of those streams")
            assert node.resident_mib() < before + 64
        await load.close()
        assert Counter((one.status, one.cut) for one in outcomes) == {(200, False): len(outcomes)}
        assert node.post("/v1/completions", completion("Hello", 3)).status == 200


def test_one_command_measures_all_of_it(tmp_path):
    """Figures of so short a run say nothing: it is to have them all."""
    file = tmp_path / "told.json"
    command = [sys.executable, ROOT / "scripts/bench_overload", "--json", file]
    options = ["--seconds", "1", "--times", "9", "--crowd", "8"]
    done = subprocess.run([*command, *options], text=True, capture_output=True)
    told = json.loads(file.read_text())
    assert done.returncode == (not all(one["ok"] for one in told["verdicts"])), done.stderr
    phases = {phase["name"]: phase for phase in told["phases"]}
    assert set(phases) >= {"capacity", "1 ×", "9 ×", "half", "beside 8 idle", "beside 2 half-sent"}
    assert all(phase["accepted"] and phase["ttft_p99_s"] > 0 for phase in phases.values())
    assert not any(phase["cut"] + phase["failed"] for phase in phases.values())
    assert len(done.stdout.splitlines()) == 1 + len(phases) + len(told["verdicts"])
