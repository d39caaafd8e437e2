"""The GPU's part of `bench_engine`: an 8B-shaped model in bf16, with weights drawn at random.

decode    one token for each of B sequences with a context of 512, launched one step ahead
prefill   one prompt of 512 tokens, and one of 2,048
roofline  by the bandwidth of a large copy and the rate of a large product, in this run
start     in a process that has run such a model before, from the moment the last blob is there:
          the first token of a prompt of 128, and all decode steps captured while one stream
          goes on, with the longest gap between its tokens
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.engine.base import PENDING, RowInput, SequenceState
from blitzgw.engine.gpu.choice import Choice, choose
from blitzgw.engine.gpu.engine import GpuEngine
from blitzgw.engine.gpu.shell import CudaShell

DEVICE = DeviceSpec("cuda0", DeviceKind.CUDA)
BATCHES, CONTEXT, PROMPTS, STEPS, ROUNDS = (1, 8, 32), 512, (512, 2048), 50, 7
SLOT_TOKENS = 4096
SHAPE = ModelShape(
    *("llama", 32, 4096, 32, 8, 128, 14336, 128256, 1e-5),
    rope=Rope(theta=500000.0),
    max_positions=SLOT_TOKENS,
    tied_head=False,
)
SPEC = ModelSpec("8b-shaped", "", SHAPE, Dtype.BFLOAT16, SLOT_TOKENS, (0,))
KV = KvGeometry(
    max(BATCHES), SLOT_TOKENS // BLOCK_TOKENS, SHAPE.kv_bytes_per_token(Dtype.BFLOAT16) * 16
)
SAMPLINGS = {
    "greedy": SamplingParams(SLOT_TOKENS, temperature=0.0),
    "top-p": SamplingParams(SLOT_TOKENS, temperature=0.8, top_p=0.95, seed=3),
}


@dataclass
class Instance:
    """An engine, and a stream's steps that go one ahead of their tokens."""

    engine: GpuEngine
    under_way: deque[Any] = field(default_factory=deque)

    def sequence(self, slot: int, count: int, sampling: SamplingParams) -> SequenceState:
        first = slot * KV.blocks_per_slot
        table = list(range(first, first + KV.blocks_per_slot))
        return SequenceState([7 + i for i in range(count)], count, 0, sampling, table)

    def step(self, rows: list[RowInput]) -> Any:
        engine = self.engine
        hidden = engine.forward(rows, Span(0, SHAPE.n_layers), None)
        sampling = engine.launch(rows, engine.logits(rows, hidden))
        for row in rows:
            row.sequence.tokens.append(PENDING)
        return sampling

    def decode(self, sequences: list[SequenceState], steps: int) -> None:
        for _ in range(steps):
            rows = [RowInput(s, len(s.tokens) - 1, 1, True) for s in sequences]
            self.under_way.append(self.step(rows))
            if len(self.under_way) > 1:
                self.under_way.popleft().wait()

    def settle(self) -> None:
        while self.under_way:
            self.under_way.popleft().wait()


def build(choice: Choice, shell: CudaShell, last: bool = True) -> Instance:
    """Return an instance with drawn weights; without `last` its last blob is yet to arrive."""
    engine = GpuEngine(SPEC, KV, DEVICE, None, time.perf_counter, shell, lambda: choice)
    layouts = blob_layouts(SHAPE, SPEC.dtype)
    for layout in layouts:
        engine.blob_memory(layout.index).view(torch.bfloat16).normal_(0.0, 0.02)
        if last or layout is not layouts[-1]:
            engine.blob_arrived(layout.index)
    torch.cuda.synchronize()
    return Instance(engine)


def limits() -> tuple[float, float]:
    """Return bytes per second of a copy, both ways counted, and FLOP per second of a product."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    bandwidth = 2 * len(source) / best(lambda: target.copy_(source))
    return bandwidth, 2 * 8192**3 / best(lambda: square @ square)


def best(work: Callable[[], Any], rounds: int = 10) -> float:
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def decode_s(instance: Instance, batch: int, sampling: SamplingParams) -> float:
    """Return the seconds of one decode step, the median of rounds."""
    sequences = [instance.sequence(slot, CONTEXT, sampling) for slot in range(batch)]
    for sequence in sequences:
        instance.step([RowInput(sequence, 0, CONTEXT, True)]).wait()
    seconds = []
    for _ in range(ROUNDS):
        for sequence in sequences:
            del sequence.tokens[CONTEXT + 1 :]
        instance.decode(sequences, 3)
        instance.settle()
        start = time.perf_counter()
        instance.decode(sequences, STEPS)
        instance.settle()
        seconds.append((time.perf_counter() - start) / STEPS)
    return statistics.median(seconds)


def prefill_s(instance: Instance, count: int) -> float:
    sequence = instance.sequence(0, count, SAMPLINGS["greedy"])
    seconds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        instance.step([RowInput(sequence, 0, count, True)]).wait()
        seconds.append(time.perf_counter() - start)
        del sequence.tokens[count:]
    return statistics.median(seconds[2:])


def capture_all(instance: Instance) -> list[float]:
    """Capture every bucket; return the seconds of each."""
    instance.decode([instance.sequence(0, 8, SAMPLINGS["greedy"])], 1)
    instance.settle()
    seconds = []
    while (wait_s := instance.engine.moment_s()) is not None:
        time.sleep(wait_s)
        start = time.perf_counter()
        instance.engine.use_moment()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def start_s(choice: Choice, shell: CudaShell) -> dict[str, float]:
    """Return how soon a fresh instance gives its first token, and is fast."""
    instance = build(choice, shell, last=False)
    sequence = instance.sequence(0, 128, SAMPLINGS["greedy"])
    start = last = time.perf_counter()
    instance.engine.blob_arrived(SHAPE.n_layers + 1)
    instance.step([RowInput(sequence, 0, 128, True)]).wait()
    first_token = time.perf_counter() - start
    gap = 0.0
    while len(sequence.tokens) < 8 or instance.engine.moment_s() is not None:
        instance.decode([sequence], 1)
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
        if instance.engine.moment_s() == 0:
            instance.engine.use_moment()
        del sequence.tokens[1024:]
    instance.settle()
    return {
        "first_token_s": first_token,
        "captured_s": time.perf_counter() - start,
        "longest_gap_s": gap,
    }


def roofline_s(batch: int, tokens: int, limits: tuple[float, float]) -> float:
    """Return the least seconds of a step of `batch` sequences with `tokens` each."""
    bandwidth, rate = limits
    layers, head = SHAPE.n_layers * SHAPE.layer_parameters(), SHAPE.vocab * SHAPE.hidden
    attention = 4 * SHAPE.n_layers * SHAPE.n_heads * SHAPE.head_dim
    if tokens > 1:
        return (2 * tokens * layers + 2 * head + attention * tokens**2 / 2) / rate
    kv = batch * CONTEXT * SHAPE.kv_bytes_per_token(SPEC.dtype)
    flops = batch * (2 * (layers + head) + attention * CONTEXT)
    return max((2 * (layers + head) + kv) / bandwidth, flops / rate)


def measure_cuda() -> dict[str, Any]:
    """Run everything on the first GPU; return what was found."""
    where = torch.device("cuda", 0)
    shell = CudaShell(where)
    found = limits()
    began = time.perf_counter()
    with torch.inference_mode():
        choice = choose(SPEC, SLOT_TOKENS, where, shell)
    chosen_s = time.perf_counter() - began
    instance = build(choice, shell)
    eager = decode_s(instance, 1, SAMPLINGS["greedy"])
    captures = capture_all(instance)
    steps = {
        f"{name} B={batch}": decode_s(instance, batch, sampling)
        for name, sampling in SAMPLINGS.items()
        for batch in BATCHES
    }
    share = {
        what: round(roofline_s(int(what.split("=")[1]), 1, found) / s, 3)
        for what, s in steps.items()
    }
    for count in PROMPTS:
        steps[f"prefill {count}"] = prefill_s(instance, count)
        share[f"prefill {count}"] = round(
            roofline_s(1, count, found) / steps[f"prefill {count}"], 3
        )
    return {
        "device": torch.cuda.get_device_name(0),
        "kernels": choice.name,
        "chosen_s": round(chosen_s, 3),
        "bytes_per_s": found[0],
        "flop_per_s": found[1],
        "step_ms": {what: round(1e3 * s, 3) for what, s in steps.items()},
        "eager_step_ms": round(1e3 * eager, 3),
        "roofline_share": share,
        "capture_ms": [round(1e3 * s, 1) for s in captures],
        "start": {what: round(s, 4) for what, s in start_s(choice, shell).items()},
    }
