"""What a CPU's memory and products allow a step of the engine, and where a step's time goes."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from blitzgw.core.model import Dtype, ModelShape
from blitzgw.engine.base import RowInput
from blitzgw.engine.memory import TORCH_DTYPES, anonymous_map
from tests.support.engines import Rig, decode_row

READ_BYTES, SQUARES, TRIES = 1 << 29, (1024, 2048, 4096), 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes read per second and FLOP per second, with the threads that the engine has."""

    bandwidth: float
    rate: float

    def best(self, other: Limits) -> Limits:
        """Return the larger of each."""
        return Limits(max(self.bandwidth, other.bandwidth), max(self.rate, other.rate))


class Machine:
    """Measures limits: the best of several ways to read memory, and to multiply."""

    def __init__(self, dtype: Dtype) -> None:
        memory = anonymous_map(READ_BYTES)
        memory.madvise(mmap.MADV_HUGEPAGE)  # as weights have
        numbers = torch.frombuffer(memory, dtype=torch.float32).fill_(1)
        table, column = numbers.view(-1, 4096), torch.ones(4096)
        self._reads: list[Callable[[], Any]] = [numbers.sum, lambda: table.mv(column)]
        self._products = [product for n in SQUARES for product in products(n, TORCH_DTYPES[dtype])]

    def measure(self) -> Limits:
        """Return what is reached now."""
        reads = min(seconds(read) for read in self._reads)
        return Limits(READ_BYTES / reads, max(f / seconds(work) for f, work in self._products))


def products(n: int, dtype: torch.dtype) -> list[tuple[float, Callable[[], Any]]]:
    """Return a product of squares, and one by a transposed square: in bf16 both are oneDNN's."""
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    flops = 2.0 * n**3
    return [(flops, lambda: a @ b), (flops, lambda: F.linear(a, b))]


def seconds(work: Callable[[], Any]) -> float:
    """Return the shortest time of some tries."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def weights_bytes(shape: ModelShape, dtype: Dtype) -> int:
    """Return the bytes of weights that a decode step reads."""
    layers = shape.n_layers * shape.layer_parameters()
    return (layers + shape.vocab * shape.hidden) * dtype.size_bytes


def roofline_s(what: str, context: int, shape: ModelShape, dtype: Dtype, limits: Limits) -> float:
    """Return the least seconds of a workload: "prefill", or a decode step of so many rows.

    Of a prompt the last layer needs K and V; all else there of the token only that is sampled at.
    """
    layers = shape.n_layers * shape.layer_parameters()
    head = shape.vocab * shape.hidden
    attention = 4 * shape.n_layers * shape.n_heads * shape.head_dim
    if what == "prefill":
        once = shape.layer_parameters() - 2 * shape.n_kv_heads * shape.head_dim * shape.hidden
        flops = 2.0 * context * (layers - once) + 2 * (once + head)
        flops += attention / shape.n_layers * context * ((shape.n_layers - 1) * context / 2 + 1)
        return flops / limits.rate
    batch = int(what)
    moved = weights_bytes(shape, dtype) + batch * context * shape.kv_bytes_per_token(dtype)
    flops = batch * (2 * (layers + head) + attention * context)
    return max(moved / limits.bandwidth, flops / limits.rate)


def profile(rig: Rig, batch: int, context: int, rounds: int, limits: Limits) -> dict[str, Any]:
    """Return milliseconds of a decode step's parts, and the least that reading takes for each.

    Attention is what a step takes longer than one of sequences of two tokens: to begin with, it
    is all of it that reads KV.
    """
    longs = [rig.sequence(range(10, 11 + context), slot) for slot in range(batch)]
    for sequence in longs:
        rig.engine.forward([RowInput(sequence, 0, context, False)], rig.whole, None)
    long_rows = [decode_row(sequence) for sequence in longs]
    short_rows = [decode_row(rig.sequence([10, 11], slot)) for slot in range(batch)]
    rig.engine.forward(short_rows, rig.whole, None)
    times: dict[str, list[float]] = {"layers": [], "attention": [], "head": [], "sampling": []}
    for _ in range(rounds):
        start = time.perf_counter()
        rig.engine.forward(short_rows, rig.whole, None)
        short = time.perf_counter()
        hidden = rig.engine.forward(long_rows, rig.whole, None)
        long = time.perf_counter()
        logits = rig.engine.logits(long_rows, hidden)
        head = time.perf_counter()
        rig.engine.sample(long_rows, logits)
        times["layers"].append(short - start)
        times["attention"].append((long - short) - (short - start))
        times["head"].append(head - long)
        times["sampling"].append(time.perf_counter() - head)
    shape, dtype = rig.spec.shape, rig.spec.dtype
    head_bytes = shape.vocab * shape.hidden * dtype.size_bytes
    least_bytes = {
        "layers": weights_bytes(shape, dtype) - head_bytes,
        "attention": batch * context * shape.kv_bytes_per_token(dtype),
        "head": head_bytes,
        "sampling": 0,
    }
    return {
        part: {
            "ms": round(1e3 * statistics.median(found), 2),
            "least_ms": round(1e3 * least_bytes[part] / limits.bandwidth, 2),
        }
        for part, found in times.items()
    }
