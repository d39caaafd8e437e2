"""Sampling on the device: the tokens of `engine/sampling.py`, for all rows of a step together.

The same order, the same filters and the same noise, in torch operations that never wait for the
device. Only logarithms and sums may differ from numpy's, in their last bit. Rows whose logits must
be adjusted first, or that want log-probabilities, are not for here: `is_unadjusted`.

Legend: R rows that sample, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from blitzgw.engine.base import RowInput
from blitzgw.engine.noise import MAX_NOISE, MIN_NOISE, noise_key
from blitzgw.engine.upload import on_device

CHUNK_ELEMENTS = 1 << 21
"""Logits that are filtered at a time: each of some eight temporaries takes 16 MiB of the device."""

_LOW_32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What rows want, as columns `[R, 1]`: fp64, but the keys, which are 64 bits in int64."""

    temperature: torch.Tensor
    reach: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    keys: torch.Tensor


def sample_on_device(rows: Sequence[RowInput], logits_RV: torch.Tensor) -> torch.Tensor:
    """Return the tokens `[R]` of rows whose logits are used as they are. Logits are fp32."""
    greedy = [row.sequence.sampling.temperature == 0 for row in rows]
    if all(greedy):
        return logits_RV.argmax(-1)  # the first of equals
    tokens = logits_RV.argmax(-1) if any(greedy) else _no_tokens(logits_RV)
    filtered = [row.sequence.sampling.top_k > 0 or row.sequence.sampling.top_p < 1 for row in rows]
    for draw, wanted in ((_draw_filtered, True), (_draw_free, False)):
        indices = [i for i, f in enumerate(filtered) if f is wanted and not greedy[i]]
        size = max(1, CHUNK_ELEMENTS // logits_RV.shape[1])
        for start in range(0, len(indices), size):
            some = indices[start : start + size]
            at = on_device(some, logits_RV.device)
            wishes = _wishes([rows[i] for i in some], logits_RV.device)
            tokens[at] = draw(logits_RV[at], wishes)
    return tokens


def _no_tokens(logits_RV: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(logits_RV), dtype=torch.long, device=logits_RV.device)


def _wishes(rows: Sequence[RowInput], device: torch.device) -> _Wishes:
    numbers: list[list[float]] = []
    keys: list[int] = []
    for row in rows:
        p = row.sequence.sampling
        reach = MAX_NOISE - MIN_NOISE
        if p.min_p > 0:
            reach = min(reach, -math.log(p.min_p))
        numbers.append([p.temperature, reach, p.top_k, p.top_p])
        keys.append(_signed(noise_key(p.seed, row.sequence.choice, row.start + row.count)))
    numbers_R4 = on_device(numbers, device, torch.float64)
    return _Wishes(
        temperature=numbers_R4[:, 0:1],
        reach=numbers_R4[:, 1:2],
        top_k=numbers_R4[:, 2:3],
        top_p=numbers_R4[:, 3:4],
        keys=on_device(keys, device)[:, None],
    )


def _draw_free(logits_RV: torch.Tensor, wishes: _Wishes) -> torch.Tensor:
    """Draw where all tokens within reach of the best one may come."""
    scaled = logits_RV.double() / wishes.temperature
    ids = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    within = scaled >= scaled.amax(1, keepdim=True) - wishes.reach
    scores = torch.where(within, scaled + _gumbel(wishes.keys, ids), -math.inf)
    equals = scores == scores.amax(1, keepdim=True)
    scaled = torch.where(equals, scaled, -math.inf)  # of equal scores the larger logit
    return scaled.argmax(1)


def _draw_filtered(logits_RV: torch.Tensor, wishes: _Wishes) -> torch.Tensor:
    """Draw under top-k and top-p: in the order of (logit, lower id)."""
    values, ids = logits_RV.sort(dim=1, descending=True, stable=True)
    scaled = values.double() / wishes.temperature
    best = scaled[:, :1]
    ranks = torch.arange(scaled.shape[1], device=scaled.device)
    weights = torch.exp(scaled - best)
    kept = scaled >= best - wishes.reach
    by_rank = wishes.top_k > 0
    chosen = kept & (ranks < wishes.top_k)
    kept = torch.where(by_rank, chosen, kept)
    # top-p is a share of the top-k, or of the whole vocabulary.
    mass = torch.where(by_rank & ~chosen, 0.0, weights).sum(1, keepdim=True) * wishes.top_p
    before = weights.cumsum(1) - weights
    nucleus = (before < mass) | (ranks == 0) | (wishes.top_p >= 1)
    scores = torch.where(kept & nucleus, scaled + _gumbel(wishes.keys, ids), -math.inf)
    return ids.gather(1, scores.argmax(1, keepdim=True))[:, 0]


def _gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return `noise.gumbel` for ids `[V]` or `[R, V]` under keys `[R, 1]`: fp64 `[R, V]`."""
    bits = _mix(ids * _signed(0x9E3779B97F4A7C15) + keys) >> 32 & _LOW_32
    uniform = (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform))


def _mix(values: torch.Tensor) -> torch.Tensor:
    """Return `noise.mix` of int64: products wrap alike, shifts must not bring the sign along."""
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned one."""
    return value - (1 << 64) if value >> 63 else value
