"""`blitzgw simulate scaling`: its output repeats byte for byte, its exit code tells of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from blitzgw.cli import simulatedscaling
from blitzgw.cli.simulate import simulate
from blitzgw.sim.scalingtrial import ScalingOutcome

RUN = "from blitzgw.cli.simulate import simulate; simulate(prog_name='simulate')"
CHECK = "import sys; bad = {'torch', 'cupy'} & set(sys.modules); assert not bad, bad"


def output(hash_seed: int, *arguments: str) -> bytes:
    """Return what the command prints in a process of its own, which must not load torch."""
    code = f"import atexit\ndef check():\n    {CHECK}\natexit.register(check)\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-c", code, "scaling", "--format", "json", *arguments],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_a_seed_prints_the_same_bytes_under_any_hash_seed() -> None:
    arguments = ("--nodes", "4", "--seed", "3", "--models", "2")
    first = output(1, *arguments)
    assert json.loads(first)["requests"] > 0
    assert output(2, *arguments) == first


def failing(seed: int, fewest: int, most: int, models: int) -> ScalingOutcome:
    outcome = ScalingOutcome(
        seed, fewest, fewest, models, 2.0, (), 60.0, 100, 90, 80, 5, {"no instance in time": 5},
        7, 1, {"grow": 7}, {"done": 7}, 50.0, 100.0, 3, 1, 1, 1000, 1 << 30,
    )  # fmt: skip
    wrong = tuple(f"converged: number {i}" for i in range(11))
    return replace(outcome, settled_s=None, violations=wrong) if seed == 4 else outcome


def test_failed_schedules_are_named_with_a_command_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulatedscaling, "try_scaling", failing)
    arguments = ["scaling", "--schedules", "3", "--seed", "3", "--nodes", "3-12"]
    done = CliRunner().invoke(simulate, arguments, standalone_mode=False)
    assert done.return_value == 1
    for text in ("2 of 3 schedules passed", "240 in time", "converged: number 0", "and 3 more"):
        assert text in done.output
    command = "blitzgw simulate scaling --nodes 3-12 --models 8 --seed 4"
    assert command in done.output
    done = CliRunner().invoke(simulate, [*arguments, "--format", "json"], standalone_mode=False)
    (failure,) = json.loads(done.output)["failures"]
    assert failure["reproduce"] == command
    assert done.return_value == 1


@pytest.mark.parametrize("nodes", ["1", "1-5", "0", "x", "9-3"])
def test_a_number_of_nodes_that_cannot_be_meant_is_refused(nodes: str) -> None:
    done = CliRunner().invoke(simulate, ["scaling", f"--nodes={nodes}"])
    assert done.exit_code == 2
