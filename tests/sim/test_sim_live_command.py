"""`blitzgw simulate live`: the JSON of the contract, a picture for people, checked input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from blitzgw.cli import simulated
from blitzgw.cli.simulate import simulate
from blitzgw.core.span import Span
from blitzgw.sim.live import LiveOutcome, LiveSetup
from blitzgw.sim.liveworker import Work

VECTOR = ("live", "--layers", "7", "--requests", "6", "--load-over-compute", "6")


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(simulate, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_vector_as_json() -> None:
    facts = printed(*VECTOR, "--policy", "zigzag", "--format", "json")
    assert facts == '{"completion": [7, 12, 17, 21, 24, 27], "mean": 18}\n'


def test_it_runs_in_a_process_without_torch() -> None:
    code = (
        "import sys; from blitzgw.cli.main import main\n"
        f"sys.argv = ['blitzgw', 'simulate', *{list(VECTOR)}, '--format', 'json']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'cupy', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["mean"] == 18


@pytest.mark.parametrize("policy", ["stop", "best-effort", "zigzag", "pipeline"])
def test_every_policy_can_be_tried(policy: str) -> None:
    facts = json.loads(printed(*VECTOR, "--policy", policy, "--format", "json"))
    assert len(facts["completion"]) == 6
    assert facts["mean"] == pytest.approx(sum(facts["completion"]) / 6)


def test_times_that_are_not_whole_are_numbers_too() -> None:
    arguments = ("--layers", "3", "--requests", "3", "--load-over-compute", "1.25")
    facts = json.loads(printed("live", *arguments, "--handoff", "0.1", "--format", "json"))
    assert facts["completion"][0] == 3
    assert all(moment == round(moment, 6) for moment in facts["completion"])


def test_the_picture_shows_who_computes_what() -> None:
    lines = printed(*VECTOR).splitlines()
    assert "zigzag: 6 requests, 7 layers, load/compute 6, no limit in flight" in lines
    assert "home       111111122222333334444555666" in lines
    assert "complete at 7, 12, 17, 21, 24, 27" in lines
    assert "mean 18.00 units of one layer's compute of one request" in lines
    assert any(line.startswith("helper 1   23456·") for line in lines)


def test_the_defaults_are_those_of_the_figures() -> None:
    assert "at most 3 in flight" in printed("live", "--in-flight", "3")
    output = printed("live")
    assert "zigzag: 24 requests, 32 layers, load/compute 8, no limit in flight" in output
    assert all(len(line) <= simulated.FILE_COLUMNS for line in output.splitlines()[:6])


def drawn(width: int, helpers: int = 1) -> list[str]:
    work = (
        Work(0, 0, Span(0, 4), 0, 4),
        Work(1, 1, Span(0, 2), 1, 3),
        Work(0, 1, Span(2, 4), 4, 6),
        Work(1, 70, Span(0, 1), 7, 8),
    )
    outcome = LiveOutcome((4, 6, 8), work)
    return simulated.timeline(LiveSetup(4, 3, 2, helpers=helpers), outcome, width)


def test_a_cell_is_a_unit_where_there_is_room() -> None:
    assert drawn(80, helpers=2) == [
        "           0      8",
        "home       111122··",
        "helper 1   ·22····a",
        "helper 2   ········",
        "loaded     ▂▂▄▄▆▆██",
    ]


def test_a_cell_is_more_where_there_is_not() -> None:
    assert drawn(15) == [
        "           0  8",
        "home       112·",
        "helper 1   2··a",
        "loaded     ▂▄▆█",
    ]
    assert drawn(1)[1] == "home       2"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--layers", "0"),
        ("--layers", "257"),
        ("--requests", "0"),
        ("--requests", "many"),
        ("--load-over-compute", "-1"),
        ("--load-over-compute", "nan"),
        ("--load-over-compute", "inf"),
        ("--policy", "fastest"),
        ("--in-flight", "0"),
        ("--helpers", "65"),
        ("--handoff", "nan"),
        ("--format", "xml"),
    ],
)
def test_what_cannot_be_meant_is_refused(option: str, value: str) -> None:
    done = CliRunner().invoke(simulate, ["live", f"{option}={value}"])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
