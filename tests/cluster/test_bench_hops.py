"""The benchmark of hops: real nodes, as few tokens as there can be, and no other program."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/bench_hops"
FEW = ["--streams", "2", "--tokens", "10", "--tick-ms", "1", "--rounds", "1", "--turns", "2"]


def test_what_is_not_there_is_left_out_and_the_rest_is_measured(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, *FEW, "--format", "json"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["left_out"] == ["vllm-router", "sglang-router", "nginx"]
    assert "--sglang-router does not say where it is" in result.stderr
    direct, hop = told["rows"]
    assert [direct["hop"], hop["hop"], hop["streams"]] == ["direct", "blitzgw", 2]
    assert direct["hop_us"] == 0 < hop["hop_us"]
    assert direct["both_us"] == direct["node_us"] > 0 < hop["node_us"]
    assert [one["hop"] for one in told["ttft"]] == ["direct", "blitzgw"]
    assert all(one["ttft_p50_ms"] > 0 for one in told["ttft"])
    assert told["verdicts"] == []


def test_a_program_that_is_named_and_not_there_is_refused(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, "--nginx", tmp_path / "nginx"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "nginx' does not exist" in result.stderr
