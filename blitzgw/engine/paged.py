"""Attention of decode rows that needs no gathering and no neighbours: an interface for kernels.

Legend: B rows, H query heads, K kv heads, D head dimension, S slots, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class PagedRows(Protocol):
    """One token each of sequences in any slots."""

    def load(self, slots: Sequence[int], stops: Sequence[int]) -> None:
        """Tell the rows of the coming step: their slots, and their lengths with the new token."""

    def attend(
        self, q_BHD: torch.Tensor, cache_SKPD: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the attended values `[B, H, D]`; the new K and V are in the cache already."""


class PagedDecode(Protocol):
    """Kernels that attend to one model's KV, on one device."""

    def fixed(self, bucket: int) -> PagedRows:
        """Return rows for captured steps: `load` changes no address, `attend` may be captured."""

    def step(self, slots: Sequence[int], stops: Sequence[int]) -> PagedRows:
        """Return the rows of one step, loaded; they are void with the next call."""
