"""The KV of one instance: a slot for each sequence, cut into runs of positions.

A slot is one run, contiguous in positions, for kernels that need that. For others runs are short,
and one of all layers lies together. So a sequence fills its memory from the front, and that can be
huge pages without much of them lying idle (`KvGeometry.huge_pages`, where the budget allows for
it): a step finds its KV with a fraction of the TLB misses.

Legend: S slots, N runs, L layers, K kv heads, P positions of a run, D head dimension.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence

import torch

from blitzgw.core.model import Dtype, ModelShape
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.hostcopy import HostCopies, tensor_of
from blitzgw.engine.memory import PAGE, TORCH_DTYPES, anonymous_map


class KvArena:
    """K and V as `[S, N, L, 2, K, P, D]`: a slot is one range of bytes, a layer a strided view.

    `run`: positions of a run; 0: those of a slot.
    """

    def __init__(
        self,
        shape: ModelShape,
        dtype: Dtype,
        geometry: KvGeometry,
        device: torch.device,
        run: int = 0,
    ) -> None:
        self.geometry = geometry
        self._run = run or geometry.slot_tokens
        runs = -(-geometry.slot_tokens // self._run)
        parts = (shape.n_layers, 2, shape.n_kv_heads, self._run, shape.head_dim)
        size = (geometry.slots, runs, *parts)
        count = math.prod(size)
        self._map: mmap.mmap | None = None
        if device.type == "cpu":
            self._map = anonymous_map(count * dtype.size_bytes)
            if run and geometry.huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE)
            flat = torch.frombuffer(self._map, dtype=TORCH_DTYPES[dtype], count=count)
        else:
            flat = torch.empty(count, dtype=TORCH_DTYPES[dtype], device=device)
        self._slot_bytes = count * dtype.size_bytes // geometry.slots
        self._data = flat.view(size)
        layers = self._data.unbind(2) if run else self._data[:, 0].unbind(1)
        self._layers = [(both.select(-4, 0), both.select(-4, 1)) for both in layers]
        self._copies = HostCopies(device)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K and V of a layer, the same tuple each time.

        Each is `[S, N, K, P, D]`, or `[S, K, P, D]` where no `run` was given.
        """
        return self._layers[layer]

    def slot_of(self, table: Sequence[int]) -> int:
        """Return the slot of a block table. Raises ValueError where it is not one run in a slot."""
        blocks = self.geometry.blocks_per_slot
        slot = table[0] // blocks if table else 0
        expected = range(slot * blocks, slot * blocks + len(table))
        if list(table) != list(expected) or len(table) > blocks or slot >= self.geometry.slots:
            raise ValueError(f"not a run of blocks from the start of a slot: {list(table)[:8]} …")
        return slot

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of all layers, `(source, target)`, in order."""
        for source, target, count in _runs(pairs):
            source_slot, source_at = divmod(source, self.geometry.blocks_per_slot)
            target_slot, target_at = divmod(target, self.geometry.blocks_per_slot)
            source_at, target_at = source_at * BLOCK_TOKENS, target_at * BLOCK_TOKENS
            for at, n in self._pieces(source_at, target_at, count * BLOCK_TOKENS):
                self._span(target_slot, target_at + at, n)[...] = self._span(
                    source_slot, source_at + at, n
                )

    def _pieces(self, *bounds: int) -> Iterator[tuple[int, int]]:
        """Yield `(offset, positions)` of parts that cross no end of a run.

        `bounds`: positions where ranges of equal length begin, and then that length.
        """
        *starts, count = bounds
        at = 0
        while at < count:
            n = min(count - at, *(self._run - (start + at) % self._run for start in starts))
            yield at, n
            at += n

    def _span(self, slot: int, start: int, count: int) -> torch.Tensor:
        """Return `[L, 2, K, count, D]` of positions of one run; a view."""
        run, at = divmod(start, self._run)
        return self._data[slot, run, :, :, :, at : at + count]

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Return the pages of whole slots to the system; device memory stays with the arena."""
        if self._map is None:
            return
        for first, count in ranges:
            start = first // self.geometry.blocks_per_slot * self._slot_bytes
            stop = start + count // self.geometry.blocks_per_slot * self._slot_bytes
            start, stop = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
            if stop > start:
                self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def export(self, table: Sequence[int], start: int, stop: int, span: Span) -> SequenceKv:
        """Return a copy of the KV of positions `[start, stop)` for the layers of `span`."""
        parts = [part for _, part in self._parts(table, start, stop, span)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)
        return SequenceKv(span, start, stop, self._copies.take(whole))

    def import_(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write exported KV into a sequence's blocks. Raises ValueError on a size mismatch."""
        targets = self._parts(table, kv.start, kv.stop, kv.span)
        first = targets[0][1]
        size = (*first.shape[:3], kv.stop - kv.start, first.shape[4])
        if len(kv.data) != math.prod(size) * first.element_size():
            raise ValueError(f"KV of {len(kv.data)} bytes does not fit {size}")
        if len(kv.data):
            source = tensor_of(kv.data, first.dtype).view(size)
            for at, target in targets:
                target.copy_(source[:, :, :, at : at + target.shape[3]])

    def _parts(
        self, table: Sequence[int], start: int, stop: int, span: Span
    ) -> list[tuple[int, torch.Tensor]]:
        """Return views `[layers, 2, K, positions, D]` of a sequence, each with its offset."""
        if not 0 <= start <= stop <= len(table) * BLOCK_TOKENS:
            raise ValueError(f"KV of positions [{start}, {stop}) in {len(table)} blocks")
        if span.stop > self._data.shape[2]:
            raise ValueError(f"KV of layers {span} for a model of {self._data.shape[2]}")
        slot = self.slot_of(table)
        if start == stop:
            return [(0, self._span(slot, 0, 0)[span.start : span.stop])]
        pieces = self._pieces(start, stop - start)
        return [(at, self._span(slot, start + at, n)[span.start : span.stop]) for at, n in pieces]


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return `(source, target, count)` with consecutive pairs joined."""
    runs: list[tuple[int, int, int]] = []
    for source, target in pairs:
        if runs:
            first_source, first_target, count = runs[-1]
            if source == first_source + count and target == first_target + count:
                runs[-1] = (first_source, first_target, count + 1)
                continue
        runs.append((source, target, 1))
    return runs
