"""Rotary embeddings as Hugging Face configurations describe them.

Two generations: `rope_theta` beside `rope_scaling` (transformers 4), and `rope_parameters` with
everything in it (transformers 5). Formulas and defaults are those of transformers'
`modeling_rope_utils`.
"""

from __future__ import annotations

import math
from typing import Any

from blitzgw.core.model import Rope
from blitzgw.errors import CheckpointError
from blitzgw.weights.fields import Fields

KINDS = ("default", "linear", "llama3", "yarn", "dynamic")
DEFAULT_THETA = 10000.0


def rope_from_config(config: Fields) -> tuple[Rope, int]:
    """Return the rotary embedding and the number of positions that it is good for.

    `dynamic` changes nothing up to its original length, so it is the default kind cut off there.
    """
    positions = config.integer("max_position_embeddings")
    fields = _gather(config)
    theta = fields.number("rope_theta", DEFAULT_THETA)
    if theta <= 0:
        raise fields.wrong("rope_theta", "positive")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.wrong("partial_rotary_factor", "1: partial rotation is not supported")
    kind = fields.string("rope_type", fields.string("type", "default"))
    if kind not in KINDS:
        raise CheckpointError(
            f"{config.where}: RoPE of kind {kind!r} is not supported; known are {', '.join(KINDS)}"
        )
    original = fields.integer("original_max_position_embeddings", positions)
    if original <= 0:
        raise fields.wrong("original_max_position_embeddings", "positive")
    if kind == "default":
        return Rope(theta=theta), positions
    if kind == "dynamic":
        return Rope(theta=theta), min(positions, original)
    return _scaled(kind, theta, original, positions, fields)


def _gather(config: Fields) -> Fields:
    """Merge both generations; inner values win over outer ones."""
    inner = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        raise config.wrong("rope_scaling", "an object")
    merged: dict[str, Any] = {}
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if config.has(key):
            merged[key] = config.values[key]
    merged.update({key: value for key, value in inner.items() if value is not None})
    if any(isinstance(value, dict) for value in merged.values()):
        raise CheckpointError(
            f"{config.where}: RoPE differs between layer types; one for all layers is supported"
        )
    return Fields(merged, f"{config.where}: rope_parameters")


def _scaled(
    kind: str, theta: float, original: int, positions: int, fields: Fields
) -> tuple[Rope, int]:
    default_factor = positions / original if kind == "yarn" else None
    factor = fields.number("factor", default_factor)
    if factor < 1:
        raise fields.wrong("factor", "at least 1")
    if kind == "linear":
        return Rope(theta=theta, kind=kind, factor=factor, original_positions=original), positions
    if kind == "llama3":
        return _llama3(theta, factor, original, fields), positions
    stretched = int(original * factor) if fields.has("factor") else positions
    return _yarn(theta, factor, original, fields), max(positions, stretched)


def _llama3(theta: float, factor: float, original: int, fields: Fields) -> Rope:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if not 0 < low < high:
        raise fields.wrong("high_freq_factor", f"above low_freq_factor ({low}), which is above 0")
    return Rope(
        theta=theta,
        kind="llama3",
        factor=factor,
        original_positions=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(theta: float, factor: float, original: int, fields: Fields) -> Rope:
    attention = fields.number("attention_factor", 0.0)
    if attention < 0:
        raise fields.wrong("attention_factor", "positive")
    scale, all_dims = fields.number("mscale", 0.0), fields.number("mscale_all_dim", 0.0)
    if not attention and scale and all_dims:
        attention = _magnitude(factor, scale) / _magnitude(factor, all_dims)
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_positions=original,
        beta_fast=fields.number("beta_fast", 0.0) or 32.0,
        beta_slow=fields.number("beta_slow", 0.0) or 1.0,
        attention_factor=attention,
        truncate=fields.boolean("truncate", default=True),
    )


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
