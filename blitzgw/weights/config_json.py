"""Hugging Face `config.json` → the shape of a model.

Defaults of absent keys are those of the transformers configuration class of the same family,
because `save_pretrained` may leave out what equals them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blitzgw.core.model import Dtype, ModelShape
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_shape
from blitzgw.weights.fields import Fields
from blitzgw.weights.rope import rope_from_config


@dataclass(frozen=True, slots=True)
class Family:
    """What sets a family apart. A key/value head count of 0: as many as heads."""

    name: str
    n_kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    qkv_bias_always: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layered_window: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", attention_bias=True, mlp_bias=True),
    "MistralForCausalLM": Family("mistral", n_kv_heads=8, window=4096),
    "Qwen2ForCausalLM": Family("qwen2", n_kv_heads=32, qkv_bias_always=True, layered_window=True),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        n_kv_heads=32,
        head_dim=128,
        qk_norm=True,
        attention_bias=True,
        layered_window=True,
    ),
}
"""By the entry of `architectures`; each flag says that the family reads the key of that name."""

_QWEN_FIRST_WINDOWED_LAYER = 28
_QWEN_WINDOW = 4096


def shape_from_config(values: dict[str, Any], where: str) -> ModelShape:
    """Return the shape; raise CheckpointError where it is unsupported or makes no sense."""
    config = Fields(values, where)
    family = _family(config)
    hidden, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if n_heads <= 0:
        raise config.wrong("num_attention_heads", "positive")
    rope, positions = rope_from_config(config)
    attention_bias = family.attention_bias and config.boolean("attention_bias", default=False)
    n_layers = config.integer("num_hidden_layers")
    shape = ModelShape(
        family=family.name,
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=_kv_heads(config, family, n_heads),
        head_dim=_head_dim(config, family, hidden, n_heads),
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=positions,
        tied_head=config.boolean("tie_word_embeddings", default=False),
        qkv_bias=family.qkv_bias_always or attention_bias,
        out_bias=attention_bias,
        mlp_bias=family.mlp_bias and config.boolean("mlp_bias", default=False),
        qk_norm=family.qk_norm,
        window=_window(config, family, n_layers),
    )
    check_shape(where, shape)
    return shape


def dtype_from_config(values: dict[str, Any]) -> Dtype | None:
    """Return the type that the weights were saved in; None where it is not said or not known."""
    named = values.get("dtype") or values.get("torch_dtype")
    if not isinstance(named, str):
        return None
    named = named.removeprefix("torch.")
    return Dtype(named) if named in set(Dtype) else None


def _family(config: Fields) -> Family:
    listed = config.values.get("architectures")
    names = listed if isinstance(listed, list) else []
    for name in names:
        if isinstance(name, str) and name in FAMILIES:
            break
    else:
        raise CheckpointError(
            f"{config.where}: the architecture {', '.join(map(str, names)) or '(none given)'} is "
            f"not supported; supported are {', '.join(FAMILIES)}"
        )
    if config.has("quantization_config"):
        raise CheckpointError(
            f"{config.where}: has a quantization_config; supported are plain float32, float16 and "
            "bfloat16 weights, and GGUF files for quantised ones"
        )
    if config.string("hidden_act", "silu") not in ("silu", "swish"):
        raise config.wrong("hidden_act", "silu")
    return FAMILIES[name]


def _kv_heads(config: Fields, family: Family, n_heads: int) -> int:
    if "num_key_value_heads" in config.values:
        return config.integer("num_key_value_heads", n_heads)
    return family.n_kv_heads or n_heads


def _head_dim(config: Fields, family: Family, hidden: int, n_heads: int) -> int:
    if "head_dim" not in config.values and family.head_dim:
        return family.head_dim
    if not config.has("head_dim") and hidden % n_heads:
        raise CheckpointError(
            f"{config.where}: hidden_size {hidden} is not a multiple of num_attention_heads "
            f"{n_heads}, and head_dim is not given"
        )
    return config.integer("head_dim", hidden // n_heads)


def _window(config: Fields, family: Family, n_layers: int) -> int:
    """Return the window in tokens, 0 for none; it must be the same in every layer."""
    if not family.layered_window:
        if not family.window or (
            "sliding_window" in config.values and not config.has("sliding_window")
        ):
            return 0
        return _positive_window(config, family.window)
    if not config.boolean("use_sliding_window", default=False):
        return 0
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return 0
    first = config.integer("max_window_layers", _QWEN_FIRST_WINDOWED_LAYER)
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list):
        windowed = max(0, n_layers - max(0, first))
    else:
        windowed = sum(kind == "sliding_attention" for kind in kinds)
    if windowed == 0:
        return 0
    if windowed != n_layers:
        raise CheckpointError(
            f"{config.where}: {windowed} of {n_layers} layers use a sliding window; "
            "all or none is supported (use_sliding_window: false switches it off)"
        )
    return _positive_window(config, _QWEN_WINDOW)


def _positive_window(config: Fields, default: int) -> int:
    window = config.integer("sliding_window", default)
    if window <= 0:
        raise config.wrong("sliding_window", "positive, or null for none")
    return window
