"""A little model for host copies, and processes that fill and map them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from blake3 import blake3

from blitzgw.core.layout import BlobLayout
from blitzgw.core.manifest import BlobDigest

WEIGHTS = "ab" * 32
SIZES = (5000, 4096, 64, 12_345)


class Little:
    """Blobs of those sizes: their layouts, bytes and digests."""

    def __init__(self, sizes=SIZES, seed=1) -> None:
        self.layouts = [BlobLayout(i, f"blob.{i}", size, ()) for i, size in enumerate(sizes)]
        self.right = [random.Random(f"{seed}.{i}").randbytes(n) for i, n in enumerate(sizes)]
        self.digests = [BlobDigest(len(b), blake3(b).digest(), 0) for b in self.right]

    def fill(self, copy, wanted=None) -> None:
        for index in range(len(self.right)) if wanted is None else wanted:
            copy.buffer(index)[:] = self.right[index]
            copy.mark(index)


_PREFIX = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.weights.copies_kit import Little, WEIGHTS
from blitzgw.weights.hostcache import HostCopies
copies = HostCopies(sys.argv[1])
def little(*args): return Little(*args)
def say(word): print(word, flush=True)
"""


class Other:
    """Another process that runs `script`; `hears` waits for the next word that it says."""

    def __init__(self, folder: Path, script: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PREFIX + script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def hears(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)
