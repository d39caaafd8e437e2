"""Small lists of numbers on their way to a device, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray


def on_device(
    values: Sequence[Any] | NDArray[Any], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return numbers as a tensor on a device.

    To a GPU they go from pinned memory, in the order of the stream: from pageable memory each copy
    would wait until all that was launched before is computed. torch keeps the pinned memory until
    the copy is over.
    """
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def refill(target: torch.Tensor, values: Sequence[Any]) -> None:
    """Write numbers over a tensor of their shape, in the order of the stream."""
    pinned = target.device.type != "cpu"
    target.copy_(torch.tensor(values, dtype=target.dtype, pin_memory=pinned), non_blocking=True)
