"""`scripts/replay`: against a real node on a paced device, and what it says when it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.replay_kit import HEAD, WHOLE, answering, server
from tests.support.gateway import MODEL, run_node

SCRIPT = Path(__file__).parents[2] / "scripts/replay"
LONG = os.environ.get("BLITZGW_LONG") == "1"
ROWS = [(n * 40, 60 + 7 * n, 1 + n % 9) for n in range(20)]
CONFIG = """
node.drain_timeout_s = 0.1
[[devices]]
kind = "paced"
kv_bytes = "1GiB"
cost = { fixed_us = 200, seed_ends = true }
[[models]]
path = "smollm2-135m"
max_model_len = 2048
"""
STEP_S = 30 * 200e-6
"""SmolLM2-135M has 30 layers."""


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.jsonl"
    keys = "timestamp", "input_length", "output_length"
    file.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in ROWS))
    return file


def command(port, trace, *arguments, model=MODEL):
    fixed = ["--endpoint", f"http://127.0.0.1:{port}", "--model", model, "--trace", str(trace)]
    return [sys.executable, str(SCRIPT), *fixed, *arguments]


def run(*arguments, **options):
    made = command(*arguments, **options)
    return subprocess.run(made, capture_output=True, text=True, timeout=60, check=False)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def node(smollm2, tmp_path_factory):
    config = tmp_path_factory.mktemp("replay") / "node.toml"
    config.write_text(CONFIG)
    with run_node("--config", str(config)) as made:
        made.await_ready()
        yield made


def test_a_real_node_is_asked_for_exactly_what_the_trace_tells(node, trace, tmp_path):
    out = tmp_path / "out.jsonl"
    alone = ["--prefill-tokens-per-s", "1000", "--step-s", str(STEP_S), "--slo-times", "50"]
    done = run(node.port, trace, "--seed-ends", "--token-ids", "--out", str(out), *alone)
    about, *requests, summary = lines(out)
    assert done.returncode == (3 if summary["void"] else 0), done.stderr
    assert done.stderr == ""  # no progress where there is no terminal
    assert about["type"] == "about"
    assert "api_key" not in about
    assert (summary["ok"], summary["offered"], summary["prompts_off"]) == (20, 20, 0)
    assert summary["attainment"] == 1.0
    assert "attained  100.00%" in done.stdout
    for one in requests:
        at_ms, prompt, output = ROWS[one["number"]]
        assert (one["outcome"], one["finish"], one["status"]) == ("ok", "stop", 200)
        assert one["at_s"] == at_ms / 1000
        assert one["prompt_counted"] == one["prompt_tokens"] == prompt
        assert output <= one["tokens"] == len(one["token_ids"]) <= output + 1
        assert len(one["gaps_s"]) == one["tokens"] - 1
        assert one["first_s"] >= STEP_S
    assert summary["tpot_p50"] >= 0.9 * STEP_S


@pytest.mark.skipif(not LONG, reason="takes seconds: set BLITZGW_LONG=1, as scripts/test --long")
@pytest.mark.parametrize("prompts", ["text", "chat"])
def test_texts_are_as_long_as_a_real_tokenizer_says(prompts, node, trace):
    done = run(node.port, trace, "--prompts", prompts, "--max-tokens", "2", "--format", "json")
    found = json.loads(done.stdout)
    assert (found["ok"], found["prompts_off"]) == (20, 0)


def test_an_interrupt_leaves_a_file_with_what_has_ended_and_a_summary(trace, tmp_path):
    out = tmp_path / "out.jsonl"
    trace.write_text(
        trace.read_text() + '{"timestamp": 90000, "input_length": 1, "output_length": 1}'
    )
    with server(answering(HEAD + b"\r\n" + WHOLE)) as port:
        process = subprocess.Popen(
            command(port, trace, "--out", str(out)), stdout=subprocess.PIPE, text=True
        )
        try:
            deadline_s = time.monotonic() + 30
            while not (out.exists() and out.read_text().count('"request"') == len(ROWS)):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            told, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert "20 of 21: 20 ok" in told
    assert "given up  1: 0 under way, 1 not sent" in told
    summary = lines(out)[-1]
    assert (summary["type"], summary["interrupted"], summary["ok"]) == ("summary", True, 20)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--window", "5:4"], 2, "later stop"),
        (["--window", "five"], 2, "no window such as"),
        (["--step-s", "1"], 2, "belong together"),
        (["--prompts", "chat"], 1, "no connection"),
        ([], 1, "20 × no connection"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, code, why, trace):
    done = run(1, trace, *arguments)
    assert done.returncode == code
    assert why in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
