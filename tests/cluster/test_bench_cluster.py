"""The cluster's bench in small: it measures, says so in its shape, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.nodes import PATIENCE_S, ROOT, until

BENCH = str(ROOT / "scripts/bench_cluster")


def started(folder, *options):
    return subprocess.Popen(
        [sys.executable, BENCH, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def left_behind(folder):
    """The ids of processes whose configuration is in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found


def test_join_and_death(tmp_path):
    options = ["--only", "join,death", "--nodes", "3", "--rounds", "1", "--format", "json"]
    bench = started(tmp_path, *options)
    out, err = bench.communicate(timeout=2 * PATIENCE_S)
    assert bench.returncode == 0, err
    found = json.loads(out)
    assert found["nodes"] == 3
    assert found["cores"] >= 1
    rows = found["rows"]
    assert [(row["part"], row["unit"]) for row in rows] == [("join", "s")] + [("death", "s")] * 2
    for row in rows:
        assert row.keys() == {"part", "name", "value", "unit", "least", "most", "target"}
        assert row["name"].startswith("blitzgw: ")
        assert row["least"] == row["value"] == row["most"], "one round only"
        assert -1.0 < row["value"] < PATIENCE_S
    death = rows[1]["value"]
    assert death > 0.25, "nobody can be buried within a probe's interval"
    assert left_behind(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    bench = started(tmp_path, "--only", "join", "--nodes", "2")
    try:
        until(lambda: len(left_behind(tmp_path)) == 2, "nodes of the bench")
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=PATIENCE_S)
    finally:
        bench.kill()
        bench.wait()
    assert (bench.returncode, out) == (1, ""), err
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_part_is_named(tmp_path):
    bench = started(tmp_path, "--only", "join,birth")
    _, err = bench.communicate(timeout=PATIENCE_S)
    assert bench.returncode == 2
    assert "birth" in err
