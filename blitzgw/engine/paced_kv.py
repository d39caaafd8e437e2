"""The KV of a paced device: one uint64 for each layer and position, in blocks; see `paced.py`.

Letters: T tokens of a batch, R rows, B blocks that the rows read (one after another, no padding),
P positions in a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.base import RowInput
from blitzgw.engine.noise import U64
from blitzgw.engine.payload import pack, unpack
from blitzgw.engine.slab import anonymous_map

I64 = NDArray[np.int64]


class PacedKv:
    """The arena `[layer, block, position in the block]` of one instance.

    The kernel gives zeroed pages on first touch, so slots that nobody used cost no memory. numpy's
    own arrays would be of huge pages: the first token would zero 2 MiB for every layer.
    `entry_bytes` is what an entry weighs when it travels (payload.py).
    """

    def __init__(self, n_layers: int, kv: KvGeometry, entry_bytes: int = 0) -> None:
        self._entry_bytes = entry_bytes
        shape = (n_layers, kv.slots * kv.blocks_per_slot, BLOCK_TOKENS)
        pages = anonymous_map(8 * math.prod(shape))
        self.arena: U64 = np.frombuffer(pages, np.uint64, math.prod(shape)).reshape(shape)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the entries of all layers from block to block, `(source, target)`, in order."""
        for source, target in pairs:
            self._check(np.array([source, target]))
            self.arena[:, target] = self.arena[:, source]

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Zero the blocks of `(first block, number of blocks)`: who still reads them, shows it."""
        for first, count in ranges:
            self._check(np.array([first, first + count - 1]))
            self.arena[:, first : first + count] = 0

    def export(self, table: Sequence[int], start: int, stop: int, span: Span) -> SequenceKv:
        """Return the entries of positions `[start, stop)` as a payload of `[layer, position]`."""
        block_T, offset_T = self._places(table, start, stop)
        entries = self.arena[span.start : span.stop, block_T, offset_T]
        return SequenceKv(span, start, stop, pack(entries, self._entry_bytes))

    def import_(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write entries that another device exported. Raises ValueError if they do not fit."""
        if kv.span.stop > len(self.arena):
            raise ValueError(f"KV of layers {kv.span} for a model of {len(self.arena)}")
        block_T, offset_T = self._places(table, kv.start, kv.stop)
        entries = unpack(kv.data, self._entry_bytes).reshape(len(kv.span), kv.stop - kv.start)
        self.arena[kv.span.start : kv.span.stop, block_T, offset_T] = entries

    def blocks_of(self, rows: Sequence[RowInput], used_R: I64) -> I64:
        """Return the first `used_R[i]` blocks of every row's table, one row after another."""
        tables = (row.sequence.table[:n] for row, n in zip(rows, used_R.tolist(), strict=True))
        block_B = np.fromiter(chain.from_iterable(tables), np.int64)
        if len(block_B) != used_R.sum():
            raise ValueError("a row reaches beyond the block table of its sequence")
        return self._check(block_B)

    def _places(self, table: Sequence[int], start: int, stop: int) -> tuple[I64, I64]:
        used = -(-stop // BLOCK_TOKENS)
        if not 0 <= start <= stop:
            raise ValueError(f"positions [{start}, {stop})")
        if len(table) < used:
            raise ValueError(f"{stop} tokens need {used} blocks, the table has {len(table)}")
        position_T = np.arange(start, stop)
        block_B = self._check(np.array(table[:used], np.int64))
        return block_B[position_T // BLOCK_TOKENS], position_T % BLOCK_TOKENS

    def _check(self, blocks: I64) -> I64:
        n_blocks = self.arena.shape[1]
        if blocks.size and not 0 <= blocks.min() <= blocks.max() < n_blocks:
            raise ValueError(f"a block outside [0, {n_blocks})")
        return blocks


class Reading:
    """Where one batch writes and what it reads, the same in every layer.

        fold(row, p) = Σ for j = 0 … start of e(j) · (2j + 1)        one segment sum for each row
                     + Σ for j = start + 1 … p of e(j) · (2j + 1)    one running sum over T

    The running sum goes on across rows and is taken as a difference: exact, for it wraps. A batch
    of single positions, which is what decode is, needs the first line only.
    """

    def __init__(self, kv: PacedKv, rows: Sequence[RowInput]) -> None:
        start_R = np.array([row.start for row in rows], np.int64)
        count_R = np.array([row.count for row in rows], np.int64)
        if (start_R < 0).any() or (count_R < 1).any():
            raise ValueError("a row without a position")
        used_R = -(-(start_R + count_R) // BLOCK_TOKENS)
        self.block_B = kv.blocks_of(rows, used_R)
        first_R = np.cumsum(used_R) - used_R
        before_R = np.cumsum(count_R) - count_R
        self.row_T = np.repeat(np.arange(len(rows)), count_R)
        self.position_T = np.arange(len(self.row_T)) + (start_R - before_R)[self.row_T]
        flat_T = first_R[self.row_T] * BLOCK_TOKENS + self.position_T
        self.slot_T = self.block_B[flat_T // BLOCK_TOKENS] * BLOCK_TOKENS + flat_T % BLOCK_TOKENS
        self.segment_R = first_R * BLOCK_TOKENS
        self.weight_BP = self._weights(start_R, used_R, first_R)
        self.product_BP = np.empty_like(self.weight_BP)
        self.decode_only = bool((count_R == 1).all())
        self.head_T = before_R[self.row_T]
        self.weight_T = _odd(self.position_T)

    def write(self, arena_BP: U64, entry_T: U64) -> None:
        """Put the batch's entries of one layer where they belong."""
        arena_BP.reshape(-1)[self.slot_T] = entry_T

    def fold(self, arena_BP: U64) -> U64:
        """Return the fold of every token over what its row reads of one layer."""
        # The blocks were checked for all layers at once; "clip" lets numpy write into `out`.
        np.take(arena_BP, self.block_B, axis=0, out=self.product_BP, mode="clip")
        np.multiply(self.product_BP, self.weight_BP, out=self.product_BP)
        fold_R: U64 = np.add.reduceat(self.product_BP.reshape(-1), self.segment_R)
        if self.decode_only:
            return fold_R
        running_T = np.cumsum(arena_BP.reshape(-1)[self.slot_T] * self.weight_T)
        fold_T: U64 = fold_R[self.row_T] + running_T - running_T[self.head_T]
        return fold_T

    def _weights(self, start_R: I64, used_R: I64, first_R: I64) -> U64:
        in_row_B = np.arange(len(self.block_B)) - np.repeat(first_R, used_R)
        position_BP = in_row_B[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)
        counted_BP = position_BP <= np.repeat(start_R, used_R)[:, None]
        weight_BP: U64 = np.where(counted_BP, _odd(position_BP), np.uint64(0))
        return weight_BP


def _odd(position: I64) -> U64:
    weights: U64 = (2 * position + 1).astype(np.uint64)
    return weights
