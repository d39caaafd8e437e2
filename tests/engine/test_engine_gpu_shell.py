"""Captures and their memory pool, by torch's own rules for pools on a stand-in for its graphs.

A pool is there from the first capture into it until the last of its graphs has gone. A handle of
a pool that has gone is refused, and so is the freeing of memory while a capture is under way,
which one that has failed stays until its pool is ended (c10/cuda/CUDACachingAllocator.cpp).
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch

from blitzgw.engine.gpu.shell import CudaShell


class Allocator:
    """Uses of each pool, and the captures under way."""

    def __init__(self):
        self.uses, self.underway, self.handles = {}, [], itertools.count()

    def begin(self, pool):
        if self.uses.get(pool) == 0:
            raise RuntimeError("INTERNAL ASSERT FAILED: it->second->use_count > 0")
        self.uses[pool] = self.uses.get(pool, 0) + 1
        self.underway.append(pool)

    def end(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def empty_cache(self):
        assert not self.underway, "INTERNAL ASSERT FAILED: captures_underway.empty()"


class Graph:
    """A graph that has nothing in it."""

    allocator: Allocator
    void = False

    def __init__(self):
        self._pool, self._ended = None, False

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.allocator.begin(pool)
        self._pool = pool

    def capture_end(self):
        if self.void:
            raise RuntimeError("CUDA error: operation failed due to a previous error")
        self.allocator.end(0, self._pool)
        self._ended = True

    def pool(self):
        return self._pool

    def replay(self):
        assert self._ended

    def __del__(self):
        if self._ended:
            self.allocator.uses[self._pool] -= 1


class Stream:
    def __init__(self, device):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def allocator(monkeypatch):
    allocator = Allocator()
    monkeypatch.setattr(Graph, "allocator", allocator, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(allocator.handles))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", allocator.end, raising=False)
    return allocator


def nothing():
    pass


def test_captures_share_a_pool(allocator):
    shell = CudaShell(torch.device("cuda", 0))
    replays = [shell.capture(nothing) for _ in range(3)]
    assert allocator.uses == {0: 3}
    del replays[0]
    replays.append(shell.capture(nothing))
    assert allocator.uses == {0: 3}


def test_when_all_captures_have_gone_more_can_be_made(allocator):
    shell = CudaShell(torch.device("cuda", 0))
    replay = shell.capture(nothing)
    del replay
    replay = shell.capture(nothing)
    replay()
    assert allocator.uses == {0: 0, 1: 1}


def test_after_a_capture_that_fails_memory_can_be_freed(allocator, monkeypatch):
    def fails():
        monkeypatch.setattr(Graph, "void", True)
        raise ValueError("the first error says why")

    shell = CudaShell(torch.device("cuda", 0))
    with pytest.raises(ValueError, match="says why"):
        shell.capture(fails)
    allocator.empty_cache()
    monkeypatch.setattr(Graph, "void", False)
    shell.capture(nothing)()
