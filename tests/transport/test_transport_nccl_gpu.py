"""NCCL itself: two processes on one GPU, which take each other for two hosts.

`cpu` runs the same processes without NCCL, so that what the tests themselves do is tested anywhere.
"""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("nccl_process.py")
MB = 1 << 20
NO_GPU = (
    "needs a CUDA device: none found"
    if not torch.cuda.is_available()
    else "needs cupy: pip install blitzgw[cuda13], or [cuda12]"
    if importlib.util.find_spec("cupy") is None
    else ""
)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
    ),
]


class Worker:
    """A process, and what it has said."""

    def __init__(self, host, *args):
        env = os.environ | {
            "NCCL_HOSTID": host,
            "NCCL_SOCKET_IFNAME": "lo",
            "NCCL_IB_DISABLE": "1",
            "NCCL_MAX_CTAS": "4",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.split(maxsplit=3))
                self.changed.notify_all()

    def heard(self, *start, timeout_s=90):
        """Wait for a line that begins so, and return its other words."""
        with self.changed:
            found = self.changed.wait_for(lambda: self._find(start), timeout_s)
            assert found, (start, self.lines)
            return found[len(start) :]

    def _find(self, start):
        return next((line for line in self.lines if tuple(line[: len(start)]) == start), None)

    def ask(self, edge, key, port=0):
        self.process.stdin.write(f"{edge} {key.hex()} {port}\n")
        self.process.stdin.flush()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0, self.lines

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join(10)
        self.process.stdin.close()
        self.process.stdout.close()


def join(source, target, edge):
    key = os.urandom(32)
    source.ask(edge, key)
    target.ask(edge, key, source.heard("port")[0])


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_are_identical(device, record_property):
    args = (device, 40 * MB + 12)
    with Worker("one", "source", *args) as source, Worker("two", "target", *args) as target:
        join(source, target, "e")
        agreed, seconds = source.heard("agreed")
        landed_bytes, reason = target.heard("closed", "e")
        assert reason.strip() == "well"
        target.ask("check", b"-")
        assert target.heard("identical") == ["True"]
        if device != "cpu":
            assert agreed == "True"
            assert int(landed_bytes) > 30 * MB  # all but what was sent while the pair warmed
            print(f"NCCL {source.heard('nccl')[0]}: a pair is warm after {seconds} s")
            record_property("nccl_warm_s", seconds)
        source.end()
        target.end()


@pytest.mark.parametrize("device", DEVICES)
def test_a_worker_outlives_the_sigkill_of_its_peer(device):
    args = (device, 60 * MB)
    with (
        Worker("one", "source", *args, 0.02) as source,
        Worker("two", "target", *args) as target,
        Worker("three", "source", *args) as other,
    ):
        join(source, target, "e")
        source.heard("agreed")
        time.sleep(0.5)
        source.process.kill()
        began = time.monotonic()
        _, reason = target.heard("closed", "e", timeout_s=30)
        print(f"noticed after {time.monotonic() - began:.2f} s: {reason}")
        assert reason.strip() != "well"
        assert time.monotonic() - began < 12
        join(other, target, "e2")
        _, reason = target.heard("closed", "e2")
        assert reason.strip() == "well"
        target.ask("check", b"-")
        assert target.heard("identical") == ["True"]
        other.end()
        target.end()
