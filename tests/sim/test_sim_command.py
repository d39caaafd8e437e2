"""`blitzgw simulate gossip`: its output repeats byte for byte, its exit code tells of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from blitzgw.cli.simulate import simulate
from blitzgw.gossip.knobs import Knobs
from blitzgw.sim import trial

RUN = "from blitzgw.cli.simulate import simulate; simulate(prog_name='simulate')"
CHECK = "import sys; bad = {'torch', 'cupy'} & set(sys.modules); assert not bad, bad"


def output(hash_seed: int, *arguments: str) -> bytes:
    """Return what the command prints in a process of its own, which must not load torch."""
    code = f"import atexit\ndef check():\n    {CHECK}\natexit.register(check)\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-c", code, "gossip", "--format", "json", *arguments],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nodes", "12", "--seed", "7", "--loss", "0.05", "--duration", "3", "--kills", "2"),
        ("--schedules", "2", "--seed", "11", "--nodes", "3-8"),
    ],
)
def test_a_seed_prints_the_same_bytes_under_any_hash_seed(arguments: tuple[str, ...]) -> None:
    first = output(1, *arguments)
    assert json.loads(first)
    assert output(2, *arguments) == first


def test_another_seed_prints_something_else() -> None:
    arguments = ["gossip", "--nodes", "5", "--duration", "1", "--kills", "1", "--format", "json"]
    one, other = (CliRunner().invoke(simulate, [*arguments, "--seed", s]).output for s in "12")
    assert json.loads(one)["packets"] != json.loads(other)["packets"]


def test_the_tables_show_every_phase() -> None:
    arguments = ["gossip", "--nodes", "6", "--duration", "1", "--kills", "1", "--seeds", "1"]
    done = CliRunner().invoke(simulate, arguments)
    assert done.exit_code == 0, done.output
    for word in ("join", "idle", "publish", "kill", "rejoined", "suspected"):
        assert word in done.output


def failing(seed: int, fewest: int, most: int, knobs: Knobs) -> trial.Outcome:
    outcome = trial.Outcome(seed, fewest, 2.0, (), 10, 30.0)
    wrong = tuple(f"gone: number {i}" for i in range(9))
    return replace(outcome, settled_s=None, violations=wrong) if seed == 4 else outcome


def test_failed_schedules_are_named_with_a_command_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "try_seed", failing)
    arguments = ["gossip", "--schedules", "3", "--seed", "3", "--nodes", "3-12"]
    done = CliRunner().invoke(simulate, arguments, standalone_mode=False)
    assert done.return_value == 1
    assert "2 of 3 schedules passed" in done.output
    assert "gone: number 0" in done.output
    assert "and 4 more" in done.output
    command = "blitzgw simulate gossip --schedules 1 --nodes 3-12 --probe-interval 0.25 --seed 4"
    assert command in done.output
    done = CliRunner().invoke(simulate, [*arguments, "--format", "json"], standalone_mode=False)
    (failure,) = json.loads(done.output)["failures"]
    assert failure["reproduce"] == command
    assert done.return_value == 1


@pytest.mark.parametrize("nodes", ["0", "1-5", "x", "3-", "9-3", "3-x", "1000000000", "-4"])
def test_a_number_of_nodes_that_cannot_be_meant_is_refused(nodes: str) -> None:
    done = CliRunner().invoke(simulate, ["gossip", f"--nodes={nodes}", "--schedules=1"])
    assert done.exit_code == 2


def test_a_range_needs_schedules() -> None:
    done = CliRunner().invoke(simulate, ["gossip", "--nodes", "3-12"])
    assert done.exit_code == 2
    assert "--schedules" in done.output
