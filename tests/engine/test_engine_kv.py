"""KV cut into runs of positions: the same bytes in and out as in one piece."""

from __future__ import annotations

import random

import pytest
import torch

from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.kv import KvArena

LAYERS, HEADS, DIM, SLOTS, BLOCKS = 3, 2, 32, 4, 20
POSITION_BYTES = 2 * HEADS * DIM * Dtype.BFLOAT16.size_bytes
SHAPE = ModelShape(
    *("llama", LAYERS, 64, 4, HEADS, DIM, 64, 16, 1e-5),
    rope=Rope(theta=10000.0),
    max_positions=BLOCKS * BLOCK_TOKENS,
    tied_head=True,
)


def arena(run):
    return KvArena(SHAPE, Dtype.BFLOAT16, KvGeometry(SLOTS, BLOCKS, 0), torch.device("cpu"), run)


def table(slot, blocks=BLOCKS):
    return list(range(slot * BLOCKS, slot * BLOCKS + blocks))


@pytest.mark.parametrize("run", [16, 128, 320, 512])
def test_runs_hold_what_one_piece_does(run):
    draw = random.Random(run)
    both = (arena(0), arena(run))
    for _ in range(40):
        start = draw.choice([0, BLOCKS * BLOCK_TOKENS, draw.randrange(BLOCKS * BLOCK_TOKENS)])
        stop = draw.randint(start, BLOCKS * BLOCK_TOKENS)
        first = draw.randrange(LAYERS)
        span = Span(first, draw.randint(first + 1, LAYERS))
        data = draw.randbytes((stop - start) * len(span) * POSITION_BYTES)
        target, source = draw.sample(range(SLOTS), 2)
        count = draw.randint(1, BLOCKS)
        at, to = draw.randint(0, BLOCKS - count), draw.randint(0, BLOCKS - count)
        pairs = [(source * BLOCKS + at + i, target * BLOCKS + to + i) for i in range(count)]
        for one in both:
            one.import_(table(target), SequenceKv(span, start, stop, data))
            assert bytes(one.export(table(target), start, stop, span).data) == data
            one.copy_blocks(pairs)
        ends = (0, BLOCKS * BLOCK_TOKENS, Span(0, LAYERS))
        exported = [[bytes(one.export(table(s), *ends).data) for s in range(SLOTS)] for one in both]
        assert exported[0] == exported[1]


def test_what_does_not_fit_is_refused_before_anything_is_written():
    one = arena(128)
    before = bytes(one.export(table(1), 0, 300, Span(0, LAYERS)).data)
    short = bytes(299 * LAYERS * POSITION_BYTES)
    with pytest.raises(ValueError, match="does not fit"):
        one.import_(table(1), SequenceKv(Span(0, LAYERS), 0, 300, short))
    with pytest.raises(ValueError, match="in 2 blocks"):
        one.export(table(1, 2), 0, 33, Span(0, LAYERS))
    assert bytes(one.export(table(1), 0, 300, Span(0, LAYERS)).data) == before


def test_a_released_slot_is_zero_again_and_its_neighbours_are_not():
    one = arena(128)
    data = bytes([1]) * (BLOCKS * BLOCK_TOKENS * LAYERS * POSITION_BYTES)
    for slot in range(SLOTS):
        one.import_(table(slot), SequenceKv(Span(0, LAYERS), 0, BLOCKS * BLOCK_TOKENS, data))
    one.release([(BLOCKS, BLOCKS)])
    kept = [one.export(table(s), 0, 320, Span(0, LAYERS)).data for s in (0, 2, 3)]
    assert all(bytes(each) == data for each in kept)
    left = bytes(one.export(table(1), 0, 320, Span(0, LAYERS)).data).count(1)
    assert left < 2 * 4096  # what shares a page with its neighbours stays
