"""GGUF keys → the shape of a model. Key names: gguf.md, "LLM"."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blitzgw.core.model import ModelShape, Rope
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_shape
from blitzgw.weights.fields import Fields
from blitzgw.weights.gguf import ArrayRef, GgufHeader


@dataclass(frozen=True, slots=True)
class Architecture:
    """`interleaved`: llama.cpp's converter has reordered the rows of q and k (see gguf_model)."""

    family: str
    interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", interleaved=False),
    "qwen3": Architecture("qwen3", interleaved=False),
}
"""By `general.architecture`. Mistral models are written as `llama`."""

ROPE_FACTORS = "rope_freqs.weight"


def architecture(header: GgufHeader) -> Architecture:
    """Return the architecture; raise CheckpointError where it is not supported."""
    name = header.keys.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"{header.where}: the architecture {name!r:.60} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def shape_from_header(header: GgufHeader, rope_factors: NDArray[np.float32] | None) -> ModelShape:
    """Return the shape. `rope_factors` is the tensor of Llama 3's scaled frequencies, if any."""
    arch = architecture(header)
    fields = _fields(header)
    _refuse_what_is_not_llama(fields, header)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{header.where}: lacks the matrix token_embd.weight")
    hidden, n_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if n_heads <= 0:
        raise fields.wrong("attention.head_count", "positive")
    head_dim = fields.integer("attention.key_length", hidden // n_heads)
    rope = _rope(fields, head_dim, rope_factors)
    tensors = header.tensors
    shape = ModelShape(
        family=arch.family,
        n_layers=fields.integer("block_count"),
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        intermediate=fields.integer("feed_forward_length"),
        vocab=embedding.shape[0],
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope=rope,
        max_positions=fields.integer("context_length"),
        tied_head="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        window=fields.integer("attention.sliding_window", 0),
    )
    check_shape(header.where, shape)
    return shape


def _fields(header: GgufHeader) -> Fields:
    """Return the architecture's keys without their prefix; float32 as the decimal it stood for."""
    prefix = f"{header.keys['general.architecture']}."
    found: dict[str, Any] = {}
    for key, value in header.keys.items():
        if key.startswith(prefix):
            short = isinstance(value, float) and math.isfinite(value)
            found[key.removeprefix(prefix)] = float(str(np.float32(value))) if short else value
    return Fields(found, f"{header.where}: {prefix}*")


def _refuse_what_is_not_llama(fields: Fields, header: GgufHeader) -> None:
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(fields.values.get(key), ArrayRef):
            raise CheckpointError(f"{fields.where}: {key} differs between layers; not supported")
    if fields.integer("expert_count", 0):
        raise CheckpointError(f"{fields.where}: mixtures of experts are not supported")
    count = header.keys.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise CheckpointError(
            f"{header.where}: one of {count} parts; join them with `llama-gguf-split --merge`"
        )


def _rope(fields: Fields, head_dim: int, factors: NDArray[np.float32] | None) -> Rope:
    for key in ("rope.dimension_count", "attention.value_length"):
        if fields.integer(key, head_dim) != head_dim:
            raise fields.wrong(key, f"the head size, {head_dim}")
    theta = fields.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise fields.wrong("rope.freq_base", "above 1")
    kind = fields.string("rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor", 0.0) or fields.number("rope.scale_linear", 1.0)
    if factor < 1:
        raise fields.wrong("rope.scaling.factor", "at least 1")
    if factors is not None:
        if kind != "none":
            raise fields.wrong("rope.scaling.type", f"absent, because {ROPE_FACTORS} is there")
        return _llama3(theta, head_dim, factors, fields)
    if kind == "yarn":
        return _yarn(theta, factor, fields)
    if kind not in ("none", "linear"):
        raise fields.wrong("rope.scaling.type", "none, linear or yarn")
    linear = kind == "linear" or fields.has("rope.scale_linear")
    if not linear or factor == 1:
        return Rope(theta=theta)
    return Rope(theta=theta, kind="linear", factor=factor)


def _yarn(theta: float, factor: float, fields: Fields) -> Rope:
    """llama.cpp scales by `attn_factor · (1 + 0.1 ln factor)`; no log multiplier here."""
    if fields.number("rope.scaling.yarn_log_multiplier", 0.0):
        raise fields.wrong("rope.scaling.yarn_log_multiplier", "absent: it is not supported")
    attention = fields.number("rope.scaling.yarn_attn_factor", 0.0) or fields.number(
        "rope.scaling.attn_factor", 1.0
    )
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_positions=fields.integer("rope.scaling.original_context_length"),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=0.0 if attention == 1 else attention * (1 + 0.1 * math.log(factor)),
    )


def _llama3(theta: float, head_dim: int, factors: NDArray[np.float32], fields: Fields) -> Rope:
    """Find the parameters behind Llama 3's table of divisors, and prove it by recomputing it.

    The table holds the divisor of each frequency; the parameters themselves are not in the file.
    All published models use low 1, high 4 and 8192 original positions.
    """
    largest = float(factors.max(initial=0))
    rope = Rope(theta=theta, kind="llama3", factor=round(largest, 3), original_positions=8192)
    positions = fields.integer("rope.scaling.original_context_length", 8192)
    for original in (8192, positions):
        candidate = dataclasses.replace(rope, original_positions=original)
        if factors.shape == (head_dim // 2,) and largest >= 1:
            table = _llama3_divisors(candidate, head_dim)
            if np.allclose(table, factors, rtol=1e-3, atol=0):
                return candidate
    raise CheckpointError(
        f"{fields.where}: {ROPE_FACTORS} is not Llama 3's scaling with its usual parameters; "
        "use the model's Hugging Face folder"
    )


def _llama3_divisors(rope: Rope, head_dim: int) -> NDArray[np.float64]:
    """The reciprocal of what transformers' `_compute_llama3_parameters` multiplies with."""
    exponent = np.arange(0, head_dim, 2) / head_dim
    turns = rope.original_positions / (2 * math.pi * rope.theta**exponent)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / rope.factor + smooth)
    return divisors
