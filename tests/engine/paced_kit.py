"""A small paced model, and a loop that generates with it any way a test likes."""

from collections.abc import Callable, Sequence

import numpy as np

from blitzgw.core.instance import ModelSpec, PacedCost
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.paced import PacedEngine

LAYERS = 5
WHOLE = Span(0, LAYERS)
EOS = (0, 7, 300)
KV = KvGeometry(slots=8, blocks_per_slot=8, block_bytes=0)
FREE = PacedCost()
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
PROMPT = [int(token) for token in np.random.default_rng(5).integers(1, 300, 45)]


def model(tied: bool = True, vocab: int = 301, eos: tuple[int, ...] = EOS) -> ModelSpec:
    shape = ModelShape("llama", LAYERS, 16, 2, 1, 8, 24, vocab, 1e-5, Rope(), 256, tied)
    return ModelSpec("tiny", "/nowhere", shape, Dtype.BFLOAT16, 128, eos)


def no_sleep(duration_s: float) -> None:
    raise AssertionError(f"slept {duration_s} s")


def engine(
    spec: ModelSpec | None = None,
    cost: PacedCost = FREE,
    sleep: Callable[[float], None] = no_sleep,
    now: Callable[[], float] = lambda: 0.0,
    skip: Sequence[int] = (),
    seed: int = 1,
) -> PacedEngine:
    """An engine whose blobs hold random bytes; those in `skip` have not arrived."""
    made = PacedEngine(spec or model(), KV, cost, sleep, now)
    rng = np.random.default_rng(seed)
    for index in range(LAYERS + 2):
        buffer = made.blob_buffer(index)
        buffer[:] = rng.bytes(len(buffer))
        if index not in skip:
            made.blob_arrived(index)
    return made


def sequence(
    tokens: Sequence[int] = PROMPT,
    slot: int = 0,
    sampling: SamplingParams = GREEDY,
    table: Sequence[int] | None = None,
    choice: int = 0,
) -> SequenceState:
    first = slot * KV.blocks_per_slot
    blocks = list(table) if table is not None else list(range(first, first + KV.blocks_per_slot))
    return SequenceState(list(tokens), len(tokens), choice, sampling, blocks)


def row(state: SequenceState, start: int | None = None, sample: bool = True) -> RowInput:
    """The last position of a sequence, or everything from `start`."""
    start = len(state.tokens) - 1 if start is None else start
    return RowInput(state, start, len(state.tokens) - start, sample)


def step(
    made: PacedEngine, rows: Sequence[RowInput], spans: Sequence[Span] = (WHOLE,)
) -> list[int]:
    """Run a batch through the spans in order, append and return the sampled tokens."""
    hidden = None
    for span in spans:
        hidden = made.forward(rows, span, hidden)
    assert hidden is not None
    sampled = made.sample(rows, made.logits(rows, hidden))
    for one, sampling in zip(sampled, (r for r in rows if r.sample), strict=True):
        sampling.sequence.tokens.append(one.token)
    return [one.token for one in sampled]


def generate(made: PacedEngine, state: SequenceState, n: int = 6, start: int = 0) -> list[int]:
    """Prefill from `start` in one piece, then decode until n tokens are there."""
    tokens = step(made, [row(state, start)])
    while len(tokens) < n:
        tokens += step(made, [row(state)])
    return tokens
