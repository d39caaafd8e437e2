"""Attention over slots: what to call for which rows is planned once a step, run once a layer.

Legend: T tokens of the step, H query heads, K kv heads, G = H / K, S slots, P positions, D head
dimension, B rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

PADDING_ALLOWED = 64
"""Positions of padding that cost less than another kernel launch (about 15 µs)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Tokens `[start, stop)` of a sequence in `slot`, at `[offset, …)` of the step's tokens."""

    slot: int
    start: int
    stop: int
    offset: int

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


class AttentionPlan(Protocol):
    """One step's attention: called for each layer with that layer's KV."""

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        cache_SKPD: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Write the new K and V, return the attended values `[T, H × D]`."""


class SlotAttention:
    """Attention by torch's SDPA over contiguous slots; nothing is gathered.

    Decode rows come first and sorted by slot (`decode` rows have one token each). Neighbours in
    slots and alike in length share a call over a strided view of the cache; each prefill chunk
    is a call of its own.
    """

    def __init__(
        self, extents: Sequence[Extent], n_decode: int, window: int, device: torch.device
    ) -> None:
        self._n_decode = n_decode
        decode = extents[:n_decode]
        self._slots = torch.tensor([e.slot for e in decode], device=device)
        self._positions = torch.tensor([e.start for e in decode], device=device)
        self._groups = [_DecodeGroup(g, window, device) for g in _groups(decode)]
        self._chunks = [_PrefillChunk(e, window, device) for e in extents[n_decode:]]

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        cache_SKPD: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Write the new K and V, return the attended values `[T, H × D]`."""
        keys, values = cache_SKPD
        n = self._n_decode
        if n:
            keys[self._slots, :, self._positions] = k_TKD[:n]
            values[self._slots, :, self._positions] = v_TKD[:n]
        out = q_THD.new_empty(q_THD.shape)
        for group in self._groups:
            group.run(q_THD, keys, values, out)
        for chunk in self._chunks:
            chunk.run(q_THD, k_TKD, v_TKD, cache_SKPD, out)
        return out.view(out.shape[0], -1)


class _DecodeGroup:
    """One token each of sequences in neighbouring slots."""

    def __init__(self, extents: Sequence[Extent], window: int, device: torch.device) -> None:
        self._rows = slice(extents[0].offset, extents[-1].offset + 1)
        self._slots = slice(extents[0].slot, extents[-1].slot + 1)
        lengths = [e.stop for e in extents]
        starts = [max(0, e.stop - window) if window else 0 for e in extents]
        self._span = slice(min(starts), max(lengths))
        self._mask: torch.Tensor | None = None
        if min(lengths) != max(lengths) or min(starts) != max(starts):
            positions = torch.arange(self._span.start, self._span.stop, device=device)
            stop_B1 = torch.tensor(lengths, device=device)[:, None]
            start_B1 = torch.tensor(starts, device=device)[:, None]
            seen_BP = (positions < stop_B1) & (positions >= start_B1)
            self._mask = seen_BP[:, None, None, :]

    def run(
        self, q_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Attend: the heads that share a kv head stand as G queries of it."""
        n_kv, dim = keys.shape[1], keys.shape[3]
        q_BHD = q_THD[self._rows]
        q_BKGD = q_BHD.view(q_BHD.shape[0], n_kv, -1, dim)
        out_BKGD = F.scaled_dot_product_attention(
            q_BKGD,
            keys[self._slots, :, self._span],
            values[self._slots, :, self._span],
            attn_mask=self._mask,
        )
        out[self._rows] = out_BKGD.reshape(q_BHD.shape)


class _PrefillChunk:
    """Consecutive tokens of one sequence."""

    def __init__(self, extent: Extent, window: int, device: torch.device) -> None:
        self._extent = extent
        start = max(0, extent.start - window + 1) if window else 0
        self._span = slice(start, extent.stop)
        self._causal = start == extent.start and not window
        self._mask: torch.Tensor | None = None
        if not self._causal and extent.count > 0:
            queries = torch.arange(extent.start, extent.stop, device=device)[:, None]
            positions = torch.arange(start, extent.stop, device=device)
            seen = positions <= queries
            self._mask = seen & (positions > queries - window) if window else seen

    def run(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        cache_SKPD: tuple[torch.Tensor, torch.Tensor],
        out: torch.Tensor,
    ) -> None:
        """Write the chunk's K and V, attend to everything before and to itself."""
        e, (keys, values) = self._extent, cache_SKPD
        rows = slice(e.offset, e.offset + e.count)
        keys[e.slot, :, e.start : e.stop] = k_TKD[rows].transpose(0, 1)
        values[e.slot, :, e.start : e.stop] = v_TKD[rows].transpose(0, 1)
        out_HTD = F.scaled_dot_product_attention(
            q_THD[rows].transpose(0, 1)[None],
            keys[e.slot, :, self._span][None],
            values[e.slot, :, self._span][None],
            attn_mask=self._mask,
            is_causal=self._causal,
            enable_gqa=True,
        )[0]
        out[rows] = out_HTD.transpose(0, 1)


def _groups(decode: Sequence[Extent]) -> list[list[Extent]]:
    """Join neighbours in slots while the padding stays below PADDING_ALLOWED a row."""
    groups: list[list[Extent]] = []
    for extent in decode:
        last = groups[-1] if groups else None
        if last and last[-1].slot + 1 == extent.slot and _padding(last, extent) <= PADDING_ALLOWED:
            last.append(extent)
        else:
            groups.append([extent])
    return groups


def _padding(group: Sequence[Extent], extent: Extent) -> float:
    lengths = [e.stop for e in group] + [extent.stop]
    return max(lengths) - sum(lengths) / len(lengths)
