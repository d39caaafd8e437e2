"""A torch engine with a real checkpoint, and loops that generate with it in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.decoder import TorchEngine
from blitzgw.weights.info import open_checkpoint, resolve_model
from blitzgw.weights.loader import load_blobs

CPU = DeviceSpec("cpu0", DeviceKind.CPU)
GREEDY = SamplingParams(max_tokens=64, temperature=0.0)
NEAR_TIE = 1e-3
"""Logits of the reference closer than this may fall either way."""


class Rig:
    """One engine and its slots."""

    def __init__(
        self,
        path: Path,
        dtype: Dtype,
        slots: int = 8,
        context: int = 512,
        device: DeviceSpec = CPU,
        new_engine: Callable[[ModelSpec, KvGeometry, DeviceSpec], TorchEngine] = TorchEngine,
    ) -> None:
        self.spec = resolve_model("tested", path, dtype, None).spec
        shape = self.spec.shape
        blocks = -(-min(context, self.spec.max_model_len) // BLOCK_TOKENS)
        block_bytes = shape.kv_bytes_per_token(dtype) * BLOCK_TOKENS
        self.kv = KvGeometry(slots, blocks, block_bytes, huge_pages=True)
        self.engine = new_engine(self.spec, self.kv, device)
        load_into(self.engine, path, self.spec)
        self.whole = Span(0, shape.n_layers)

    def sequence(
        self, tokens: Sequence[int], slot: int, sampling: SamplingParams = GREEDY, choice: int = 0
    ) -> SequenceState:
        """Return a sequence that owns a whole slot."""
        first = slot * self.kv.blocks_per_slot
        table = list(range(first, first + self.kv.blocks_per_slot))
        return SequenceState(list(tokens), len(tokens), choice, sampling, table)

    def step(self, rows: Sequence[RowInput]) -> torch.Tensor:
        """Run rows through all layers, append what they sample, return the logits."""
        hidden = self.engine.forward(rows, self.whole, None)
        logits = self.engine.logits(rows, hidden)
        sampling = [row for row in rows if row.sample]
        for row, sampled in zip(sampling, self.engine.sample(rows, logits), strict=True):
            row.sequence.tokens.append(sampled.token)
        return logits

    def prefill(self, sequence: SequenceState, chunk: int = 10_000, start: int = 0) -> torch.Tensor:
        """Compute a prompt in chunks and sample once; return the last logits."""
        end = len(sequence.tokens)
        logits = torch.empty(0)
        for at in range(start, end, chunk):
            count = min(chunk, end - at)
            logits = self.step([RowInput(sequence, at, count, at + count == end)])
        return logits

    def decode(self, sequences: Sequence[SequenceState], steps: int) -> torch.Tensor:
        """Decode all sequences together; return the last logits."""
        logits = torch.empty(0)
        for _ in range(steps):
            logits = self.step([decode_row(sequence) for sequence in sequences])
        return logits

    def generate(
        self, tokens: Sequence[int], n: int, slot: int = 0, chunk: int = 10_000
    ) -> list[int]:
        """Return `n` greedy tokens of one sequence alone."""
        sequence = self.sequence(tokens, slot)
        self.prefill(sequence, chunk)
        self.decode([sequence], n - 1)
        return sequence.tokens[len(tokens) :]


def load_into(engine: TorchEngine, path: Path, spec: ModelSpec) -> None:
    """Load all weights of a checkpoint into an engine."""
    checkpoint = open_checkpoint(path)
    load_blobs(
        checkpoint,
        blob_layouts(spec.shape, spec.dtype),
        spec.dtype,
        engine.blob_buffer,
        engine.blob_arrived,
    )
    checkpoint.close()


def decode_row(sequence: SequenceState) -> RowInput:
    """Return the row that computes a sequence's newest token."""
    return RowInput(sequence, len(sequence.tokens) - 1, 1, True)


@dataclass
class Verdict:
    """Greedy tokens against a reference's logits at the same positions."""

    compared: int = 0
    near_ties: int = 0
    wrong: int = 0


def judge(tokens: Sequence[int], reference: torch.Tensor) -> Verdict:
    """Compare tokens with fp32 logits `[tokens, vocabulary]` of the same prefix each.

    A difference where the two best logits are a near-tie ends the comparison of the sequence.
    """
    verdict = Verdict()
    for token, line in zip(tokens, reference, strict=True):
        verdict.compared += 1
        if token == int(line.argmax()):
            continue
        best = line.topk(2).values
        if float(best[0] - best[1]) < NEAR_TIE:
            verdict.near_ties += 1
        else:
            verdict.wrong += 1
        break
    return verdict
