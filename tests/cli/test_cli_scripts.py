"""The scripts, as far as they can be tried without installing anything."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ["scripts/quickstart", "scripts/test", ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_strict(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111 == 0o111
    assert "set -euo pipefail" in path.read_text()
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_scripts_please_shellcheck():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, text=True, capture_output=True)
    assert result.stdout == ""


def test_quickstart_explains_itself_from_anywhere(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(ROOT / "scripts/quickstart")
    result = subprocess.run([link, "--help"], cwd="/", text=True, capture_output=True)
    assert result.returncode == 0
    assert "--no-run" in result.stdout
    assert "set -euo" not in result.stdout


def test_quickstart_says_which_python_it_needs(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/quickstart", tmp_path / "scripts")
    environment = {"PATH": "/usr/bin:/bin", "BLITZGW_PYTHON": "/bin/false"}
    result = subprocess.run(
        [tmp_path / "scripts/quickstart"], env=environment, text=True, capture_output=True
    )
    assert result.returncode == 1
    assert "no Python 3.11 or newer" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_constraints_pin_every_dependency():
    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.split(r"[>=<;\[ ]", requirement)[0].lower()
        assert name in pins
    assert "+" not in "".join(pins.values()), "a local build cannot be had elsewhere"
    assert len(lines) == len(set(lines))


def test_the_license_is_the_one_that_is_declared():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"


def test_long_tests_are_asked_for_by_an_option_of_their_own(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts")
    (tmp_path / "scripts/quickstart").write_text("#!/bin/sh\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for tool in ("ruff", "mypy", "lint-imports", "pytest"):
        (tmp_path / ".venv/bin" / tool).write_text(f'#!/bin/sh\necho {tool} "$BLITZGW_LONG" "$@"\n')
    for script in (tmp_path / "scripts/quickstart", *(tmp_path / ".venv/bin").iterdir()):
        script.chmod(0o755)
    for arguments, line in (
        (["--long", "tests/cli", "-k", "a b"], "pytest 1 tests/cli -k a b"),
        (["-x"], "pytest  -x"),
        ([], "pytest  --numprocesses 2 --no-loadscope-reorder"),
    ):
        result = subprocess.run(
            [tmp_path / "scripts/test", *arguments],
            text=True,
            capture_output=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert result.returncode == 0
        assert result.stdout.splitlines()[-1] == line
