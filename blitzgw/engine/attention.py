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
from torch.nn.attention.bias import causal_lower_right

from blitzgw.engine.paged import PagedDecode, PagedRows
from blitzgw.engine.upload import on_device

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
    slots and alike in length share a call over a strided view of the cache, or all of them one
    call of `paged` kernels; each prefill chunk is a call of its own.
    """

    def __init__(
        self,
        extents: Sequence[Extent],
        n_decode: int,
        window: int,
        device: torch.device,
        paged: PagedDecode | None = None,
    ) -> None:
        self._n_decode = n_decode
        decode = extents[:n_decode]
        slots = [e.slot for e in decode]
        self._slots = on_device(slots, device, torch.long)
        self._positions = on_device([e.start for e in decode], device, torch.long)
        self._groups: list[_DecodeGroup | _PagedGroup]
        if paged is not None and decode:
            self._groups = [_PagedGroup(paged.step(slots, [e.stop for e in decode]), n_decode)]
        else:
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
            stop_B1 = on_device(lengths, device)[:, None]
            start_B1 = on_device(starts, device)[:, None]
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


class _PagedGroup:
    """All decode rows of a step, by kernels that find them wherever they are."""

    def __init__(self, rows: PagedRows, count: int) -> None:
        self._paged, self._rows = rows, slice(count)

    def run(
        self, q_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Attend."""
        out[self._rows] = self._paged.attend(q_THD[self._rows], (keys, values))


class _PrefillChunk:
    """Consecutive tokens of one sequence."""

    def __init__(self, extent: Extent, window: int, device: torch.device) -> None:
        self._extent, self._window, self._device = extent, window, device
        self._start = max(0, extent.start - window + 1) if window else 0
        self._mask: torch.Tensor | None = None

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
        span = slice(self._start, e.stop)
        k_KPD, v_KPD = keys[e.slot, :, span], values[e.slot, :, span]
        if q_THD.is_cuda and not self._window and q_THD.dtype is not torch.float32:
            out[rows] = flash_chunk(q_THD[rows], k_KPD, v_KPD)
            return
        causal = self._start == e.start and not self._window
        out_HTD = F.scaled_dot_product_attention(
            q_THD[rows].transpose(0, 1)[None],
            k_KPD[None],
            v_KPD[None],
            attn_mask=None if causal else self._seen(),
            is_causal=causal,
            enable_gqa=True,
        )[0]
        out[rows] = out_HTD.transpose(0, 1)

    def _seen(self) -> torch.Tensor:
        """Return which positions each token sees, made for the first layer."""
        if self._mask is None:
            e, window = self._extent, self._window
            queries = torch.arange(e.start, e.stop, device=self._device)[:, None]
            positions = torch.arange(self._start, e.stop, device=self._device)
            seen = positions <= queries
            self._mask = seen & (positions > queries - window) if window else seen
        return self._mask


def flash_chunk(q_THD: torch.Tensor, k_KPD: torch.Tensor, v_KPD: torch.Tensor) -> torch.Tensor:
    """Attend to all P positions, of which the last T are the queries' own: `[T, H, D]`.

    On a GPU this reaches the flash kernel, which takes neither a mask nor fewer kv heads beside
    one: each kv head is a batch of its own, whose G queries share it by a stride of 0.
    """
    count, n_heads, dim = q_THD.shape
    n_kv, positions = k_KPD.shape[:2]
    shared = (n_kv, n_heads // n_kv, positions, dim)
    out_KGTD = F.scaled_dot_product_attention(
        q_THD.view(count, n_kv, -1, dim).permute(1, 2, 0, 3),
        k_KPD[:, None].expand(shared),
        v_KPD[:, None].expand(shared),
        attn_mask=causal_lower_right(count, positions),
    )
    return out_KGTD.permute(2, 0, 1, 3).reshape(q_THD.shape)


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
