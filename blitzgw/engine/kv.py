"""The KV of one instance: a slot for each sequence, contiguous in positions.

Legend: S slots, L layers, K kv heads, P positions of a slot, D head dimension.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from blitzgw.core.model import Dtype, ModelShape
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.hostcopy import HostCopies, tensor_of
from blitzgw.engine.memory import PAGE, TORCH_DTYPES, anonymous_map


class KvArena:
    """K and V as `[S, L, 2, K, P, D]`: a slot is one run of bytes, a layer of it a strided view."""

    def __init__(
        self, shape: ModelShape, dtype: Dtype, geometry: KvGeometry, device: torch.device
    ) -> None:
        self.geometry = geometry
        positions = geometry.slot_tokens
        size = (geometry.slots, shape.n_layers, 2, shape.n_kv_heads, positions, shape.head_dim)
        count = geometry.slots * positions * (shape.kv_bytes_per_token(dtype) // dtype.size_bytes)
        self._map: mmap.mmap | None = None
        if device.type == "cpu":
            self._map = anonymous_map(count * dtype.size_bytes)
            flat = torch.frombuffer(self._map, dtype=TORCH_DTYPES[dtype], count=count)
        else:
            flat = torch.empty(count, dtype=TORCH_DTYPES[dtype], device=device)
        self._slot_bytes = count * dtype.size_bytes // geometry.slots
        self._data = flat.view(size)
        self._layers = [(both[:, 0], both[:, 1]) for both in self._data.unbind(1)]
        self._copies = HostCopies(device)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K and V of a layer, each `[S, K, P, D]`: the same tuple each time."""
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
            tokens = count * BLOCK_TOKENS
            source_at, target_at = source_at * BLOCK_TOKENS, target_at * BLOCK_TOKENS
            self._data[target_slot, :, :, :, target_at : target_at + tokens] = self._data[
                source_slot, :, :, :, source_at : source_at + tokens
            ]

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
        data = self._copies.take(self._part(table, start, stop, span))
        return SequenceKv(span, start, stop, data)

    def import_(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write exported KV into a sequence's blocks. Raises ValueError on a size mismatch."""
        target = self._part(table, kv.start, kv.stop, kv.span)
        if len(kv.data) != target.numel() * target.element_size():
            raise ValueError(f"KV of {len(kv.data)} bytes does not fit {tuple(target.shape)}")
        if len(kv.data):
            target.copy_(tensor_of(kv.data, target.dtype).view(target.shape))

    def _part(self, table: Sequence[int], start: int, stop: int, span: Span) -> torch.Tensor:
        """Return `[layers, 2, K, stop − start, D]` of a sequence; a view."""
        if not 0 <= start <= stop <= len(table) * BLOCK_TOKENS:
            raise ValueError(f"KV of positions [{start}, {stop}) in {len(table)} blocks")
        if span.stop > self._data.shape[1]:
            raise ValueError(f"KV of layers {span} for a model of {self._data.shape[1]}")
        return self._data[self.slot_of(table), span.start : span.stop, :, :, start:stop]


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
