"""Rotary position embedding: tables of cos and sin, with the scaling variants.

Su et al. 2021 (RoFormer); linear: Chen et al. 2023 (Position Interpolation); yarn: Peng et al.
2023; llama3: Meta's release of Llama 3.1, frequencies stretched by wavelength.
"""

from __future__ import annotations

import math

import torch

from blitzgw.core.model import Rope


def rope_table(rope: Rope, head_dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp32 cos and sin, each `[positions, head_dim / 2]`, with yarn's attention factor."""
    frequencies, scale = inverse_frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return angles.cos() * scale, angles.sin() * scale


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[torch.Tensor, float]:
    """Return the fp32 angle per position of each pair of dimensions, and the attention factor."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    base = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return base, 1.0
    if rope.kind == "linear":
        return base / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(base, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(base, rope, head_dim)
    raise ValueError(f"unknown rope kind {rope.kind!r}")


def _llama3(base: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Keep short wavelengths, divide long ones by `factor`, interpolate between the two."""
    wavelength = 2 * math.pi / base
    low = rope.original_positions / rope.low_freq_factor
    high = rope.original_positions / rope.high_freq_factor
    blend = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - blend) * base / rope.factor + blend * base
    stretched = torch.where(wavelength > low, base / rope.factor, base)
    return torch.where((wavelength <= low) & (wavelength >= high), between, stretched)


def _yarn(base: torch.Tensor, rope: Rope, head_dim: int) -> tuple[torch.Tensor, float]:
    """Ramp from extrapolation to interpolation between the dimensions of two rotation counts."""

    def dimension(rotations: float) -> float:
        turns = rope.original_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    attention = rope.attention_factor or (
        1.0 if rope.factor <= 1 else 0.1 * math.log(rope.factor) + 1.0
    )
    return base / rope.factor * ramp + base * (1 - ramp), attention


def rotate(x_THD: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor) -> torch.Tensor:
    """Return `[T, heads, D]` rotated; `cos` and `sin` are `[T, 1, D / 2]` in x's dtype or fp32."""
    first, second = x_THD.chunk(2, dim=-1)
    return torch.cat(
        (first * cos_T1d - second * sin_T1d, second * cos_T1d + first * sin_T1d), dim=-1
    )
