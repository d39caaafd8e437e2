"""One decode step of all layers at fixed addresses, captured once and replayed.

Legend: B rows of the bucket, H query heads, K kv heads, D head dimension, S slots, P positions,
E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from blitzgw.engine.gpu.shell import Shell
from blitzgw.engine.paged import PagedRows
from blitzgw.engine.upload import refill


class DecodeRow(NamedTuple):
    """One row of a decode step: the token at a position of the sequence in a slot."""

    token: int
    slot: int
    position: int


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Where a captured step finds its rows: the lines of `matrix`, int64 `[3, B]`."""

    matrix: torch.Tensor

    @property
    def ids(self) -> torch.Tensor:
        """Return tokens; one that is PENDING is that which its slot has sampled last."""
        return self.matrix[0]

    @property
    def slots(self) -> torch.Tensor:
        """Return slots."""
        return self.matrix[1]

    @property
    def positions(self) -> torch.Tensor:
        """Return positions."""
        return self.matrix[2]


class FixedAttention:
    """`AttentionPlan` at fixed addresses. A dry one leaves the KV as it is, and reads it."""

    def __init__(self, inputs: DecodeInputs, rows: PagedRows, dry: bool) -> None:
        self._inputs, self._rows, self._dry = inputs, rows, dry

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        cache_SKPD: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Write the new K and V, return the attended values `[B, H × D]`."""
        if not self._dry:
            for cache, new in zip(cache_SKPD, (k_TKD, v_TKD), strict=True):
                cache[self._inputs.slots, :, self._inputs.positions] = new
        return self._rows.attend(q_THD, cache_SKPD).view(len(q_THD), -1)


class Compute(Protocol):
    """The whole model, for one token each of the rows of some inputs."""

    def __call__(
        self, inputs: DecodeInputs, attend: FixedAttention
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states `[B, E]` and fp32 logits `[B, V]`."""


class CapturedDecode:
    """A decode step of `bucket` rows, or fewer: those that lack repeat the first one.

    They compute what it computes and write the same KV to the same place, so there is no memory
    that would have to be kept for them.
    """

    def __init__(
        self, bucket: int, rows: PagedRows, device: torch.device, compute: Compute, shell: Shell
    ) -> None:
        self._bucket, self._rows = bucket, rows
        self._inputs = DecodeInputs(torch.zeros(3, bucket, dtype=torch.long, device=device))
        self._outputs: tuple[torch.Tensor, torch.Tensor] | None = None
        rows.load([0] * bucket, [1] * bucket)
        # Kernels that this batch is the first to use are loaded now: a capture may not do that.
        compute(self._inputs, FixedAttention(self._inputs, rows, dry=True))

        def work() -> None:
            self._outputs = compute(self._inputs, FixedAttention(self._inputs, rows, dry=False))

        self._replay: Callable[[], None] = shell.capture(work)

    def run(self, rows: Sequence[DecodeRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Launch a step; return hidden states and logits, which the next one overwrites."""
        padded = [*rows, *[rows[0]] * (self._bucket - len(rows))]
        tokens, slots, positions = zip(*padded, strict=True)
        refill(self._inputs.matrix, [tokens, slots, positions])
        self._rows.load(slots, [position + 1 for position in positions])
        self._replay()
        assert self._outputs is not None
        hidden, logits = self._outputs
        return hidden[: len(rows)], logits[: len(rows)]
