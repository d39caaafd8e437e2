"""The lane sum of a blob by torch, on whatever device its bytes are.

The same sum as `weights/digests.py` computes on a host: Σ w_i · (2i + 1) mod 2⁶⁴ over the blob's
32-bit words. It gates the running of a layer whose bytes came to a GPU, where hashing them by the
CPU would mean to copy them back.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_WORDS = 1 << 22
"""Words summed at a time: the temporaries take 64 MiB of the device."""

WORD_BYTES = 4
MODULUS = 1 << 64


def lane_sum(blob: Tensor) -> int:
    """Return the lane sum of a blob: a contiguous tensor of any dtype, aligned to a word.

    Waits for the device once. Integers of 64 bits overflow in torch as they do modulo 2⁶⁴, and
    their sign is put right at the end.
    """
    if not blob.numel():
        return 0
    data = blob.detach().reshape(-1).view(torch.uint8)
    whole = data.numel() - data.numel() % WORD_BYTES
    rest = data[whole:].cpu().numpy().tobytes()
    words = data[:whole].view(torch.int32) if whole else data[:0].to(torch.int32)
    factors = torch.arange(min(CHUNK_WORDS, words.numel()), device=blob.device, dtype=torch.int64)
    factors.mul_(2).add_(1)
    total = torch.zeros((), device=blob.device, dtype=torch.int64)
    for start in range(0, words.numel(), CHUNK_WORDS):
        lanes = words[start : start + CHUNK_WORDS].to(torch.int64).bitwise_and_(0xFFFFFFFF)
        total += lanes.mul_(factors[: lanes.numel()]).sum()
        factors += 2 * CHUNK_WORDS
    last = int.from_bytes(rest, "little") * (2 * words.numel() + 1)
    return (int(total) + last) % MODULUS
