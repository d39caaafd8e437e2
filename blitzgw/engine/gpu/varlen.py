"""Decode attention by torch's own kernels, from 2.13 on: a slot is one page of a block table.

No GPU has run this yet: unmeasured.

Legend: B rows, H query heads, K kv heads, D head dimension, S slots, P positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from blitzgw.engine.upload import refill

PAGE_MULTIPLE = 256
"""The flash kernel takes pages of a multiple of so many positions."""


def varlen_attention() -> Any:
    """Return torch's function. Raises ImportError where it has none that takes block tables."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  not in every torch

    if "block_table" not in inspect.signature(varlen_attn).parameters:
        raise ImportError(f"torch {torch.__version__} attends to no block tables; 2.13 does")
    return varlen_attn


class VarlenDecode:
    """`PagedDecode` for slots of `positions`. Raises ImportError, ValueError where it cannot be."""

    def __init__(self, positions: int, window: int, device: torch.device) -> None:
        if positions % PAGE_MULTIPLE:
            raise ValueError(f"slots of {positions} positions are no multiple of {PAGE_MULTIPLE}")
        self.attention = varlen_attention()
        self.positions, self.device = positions, device
        self.window = (window - 1, 0) if window else (-1, -1)

    def fixed(self, bucket: int) -> VarlenRows:
        """Return rows at fixed addresses."""
        return VarlenRows(self, bucket)

    def step(self, slots: Sequence[int], stops: Sequence[int]) -> VarlenRows:
        """Return the rows of one step."""
        rows = VarlenRows(self, len(slots))
        rows.load(slots, stops)
        return rows


class VarlenRows:
    """`PagedRows` of a `VarlenDecode`."""

    def __init__(self, kernels: VarlenDecode, count: int) -> None:
        self._kernels = kernels
        device, int32 = kernels.device, torch.int32
        self._table_B1 = torch.zeros(count, 1, dtype=int32, device=device)
        self._stops_B = torch.ones(count, dtype=int32, device=device)
        self._offsets = torch.arange(count + 1, dtype=int32, device=device)

    def load(self, slots: Sequence[int], stops: Sequence[int]) -> None:
        """Tell the rows of the coming step."""
        refill(self._table_B1, [[slot] for slot in slots])
        refill(self._stops_B, stops)

    def attend(
        self, q_BHD: torch.Tensor, cache_SKPD: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the attended values `[B, H, D]`."""
        k_SPKD, v_SPKD = (cache.transpose(1, 2) for cache in cache_SKPD)
        out: torch.Tensor = self._kernels.attention(
            *(q_BHD, k_SPKD, v_SPKD, self._offsets, None, 1, self._kernels.positions),
            window_size=self._kernels.window,
            enable_gqa=True,
            seqused_k=self._stops_B,
            block_table=self._table_B1,
        )
        return out
