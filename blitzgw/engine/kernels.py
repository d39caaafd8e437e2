"""How a model's layers are computed on a device: an interface for kernels.

Legend: T tokens of the step, E hidden size, D head dimension, V vocabulary, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from blitzgw.engine.attention import Extent


class Layer(Protocol):
    """One decoder layer, for the kernels that have made it."""

    tensors: dict[str, torch.Tensor]


class Kernels(Protocol):
    """How one model's layers are computed on one device.

    `kv_run`: positions whose KV may lie apart from the next ones (kv.py); 0: all of a slot's lie
    together.
    """

    kv_run: int

    def layer(self, tensors: dict[str, torch.Tensor]) -> Layer:
        """Return a layer over views into its blob."""

    def plan(
        self,
        extents: Sequence[Extent],
        n_decode: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        wanted: Sequence[Extent] | None = None,
    ) -> Any:
        """Prepare a step: its extents (decode rows first), and their angles `[T, D / 2]`.

        `wanted` are the tokens, one each, whose output of the last of the layers that are run is
        asked for; None: all are. What is left of others need have no meaning, but for their KV.
        """

    def run(
        self,
        layers: Sequence[Any],
        x_TE: torch.Tensor,
        plan: Any,
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Return the output of layers of its own making that follow each other, writing their KV.

        `plan` is what it has prepared for the step; `x` may be overwritten.
        """

    def head(self, x_RE: torch.Tensor, norm: torch.Tensor, matrix_VE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states before the final norm."""
