"""config.json: what is understood, what is refused, and agreement with transformers."""

from __future__ import annotations

import pytest
import transformers

from blitzgw.core.model import Dtype, Rope
from blitzgw.errors import CheckpointError
from blitzgw.weights.config_json import dtype_from_config, shape_from_config

BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
}


def shape(family="Llama", **changes):
    values = {**BASE, "architectures": [f"{family}ForCausalLM"], **changes}
    return shape_from_config({k: v for k, v in values.items() if v is not ...}, "config.json")


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_defaults_are_those_of_transformers(family):
    """Every key that has a default in transformers may be absent, and means the same."""
    required = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size",
                "vocab_size", "max_position_embeddings")  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        **{**{key: BASE[key] for key in required}, "num_attention_heads": 32, "hidden_size": 256}
    )
    got = shape(family, num_attention_heads=32, hidden_size=256, rms_norm_eps=...)
    assert got.n_kv_heads == config.num_key_value_heads
    assert got.head_dim == (getattr(config, "head_dim", None) or 256 // 32)
    assert got.norm_eps == config.rms_norm_eps
    assert got.tied_head == config.tie_word_embeddings
    assert got.window == (config.sliding_window or 0 if family != "Llama" else 0)
    assert got.rope == Rope(theta=config.rope_parameters["rope_theta"])
    assert (got.qkv_bias, got.out_bias) == (family == "Qwen2", False)
    assert got.qk_norm == (family == "Qwen3")


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("Llama", {"num_key_value_heads": 2}, {"n_kv_heads": 2, "head_dim": 16}),
        ("Llama", {"num_key_value_heads": None}, {"n_kv_heads": 4}),
        ("Llama", {"head_dim": 20, "hidden_size": 62}, {"head_dim": 20}),
        ("Llama", {"head_dim": None}, {"head_dim": 16}),
        ("Llama", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        ("Llama", {"mlp_bias": True}, {"mlp_bias": True}),
        ("Qwen3", {"attention_bias": True, "num_key_value_heads": 1}, {"out_bias": True}),
        ("Qwen2", {"attention_bias": True, "num_key_value_heads": 1}, {"out_bias": False}),
        ("Mistral", {"sliding_window": None, "num_key_value_heads": 4}, {"window": 0}),
        ("Mistral", {"sliding_window": 77, "num_key_value_heads": 4}, {"window": 77}),
        ("Llama", {"sliding_window": 77}, {"window": 0}),
        ("Llama", {"tie_word_embeddings": True}, {"tied_head": True}),
        ("Llama", {"hidden_size": 64.0}, {"hidden": 64}),
    ],
)
def test_variants(family, changes, expected):
    got = shape(family, **changes)
    assert {key: getattr(got, key) for key in expected} == expected


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": 16}, 0),
        ({"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 0}, 0),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, 0),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, 16),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 4}, 0),
        ({"use_sliding_window": True, "sliding_window": 16}, 0),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, None),
        (
            {"use_sliding_window": True, "sliding_window": 16,
             "layer_types": ["full_attention"] * 4, "max_window_layers": 0},
            0,
        ),
    ],
)  # fmt: skip
def test_qwen_windows_follow_transformers(family, changes, window):
    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, hidden_size=64, **changes
    )
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    if window is None:
        assert any(sliding)
        assert not all(sliding)
        with pytest.raises(CheckpointError, match="2 of 4 layers use a sliding window"):
            shape(family, num_key_value_heads=4, **changes)
    else:
        assert all(sliding) if window else not any(sliding)
        assert shape(family, num_key_value_heads=4, **changes).window == window


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}  # fmt: skip


@pytest.mark.parametrize(
    ("scaling", "expected", "positions"),
    [
        (None, Rope(theta=5e5), 1024),
        ({"rope_type": "default"}, Rope(theta=5e5), 1024),
        (
            {"type": "linear", "factor": 2},
            Rope(theta=5e5, kind="linear", factor=2.0, original_positions=1024),
            1024,
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, Rope(theta=5e5), 1024),
        (
            {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 256},
            Rope(theta=5e5),
            256,
        ),
        (
            {"rope_type": "llama3", **LLAMA3},
            Rope(theta=5e5, kind="llama3", factor=8.0, original_positions=256),
            1024,
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
            Rope(theta=5e5, kind="yarn", factor=4.0, original_positions=512),
            2048,
        ),
        (
            {"rope_type": "yarn", "original_max_position_embeddings": 256, "truncate": False,
             "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16},
            Rope(theta=5e5, kind="yarn", factor=4.0, original_positions=256, beta_fast=16.0,
                 attention_factor=1.0, truncate=False),
            1024,
        ),
    ],
)  # fmt: skip
def test_rope_in_both_generations(scaling, expected, positions):
    old = shape(rope_theta=500000.0, rope_scaling=scaling)
    assert (old.rope, old.max_positions) == (expected, positions)
    new = shape(rope_parameters={"rope_theta": 500000.0, **(scaling or {})})
    assert (new.rope, new.max_positions) == (expected, positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM.*supported are LlamaForCausal"),
        ({"architectures": None}, "none given"),
        ({"architectures": "LlamaForCausalLM"}, "none given"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; it must be silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*GGUF"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "whole number"),
        ({"hidden_size": True}, "whole number"),
        ({"hidden_size": 66}, "not a multiple"),
        ({"hidden_size": 0, "head_dim": 16}, r"hidden size is 0; it must be in \[1"),
        ({"hidden_size": 1 << 31}, "hidden size"),
        ({"num_hidden_layers": -1}, "number of layers"),
        ({"num_hidden_layers": 100_000}, "at most 4096"),
        ({"num_attention_heads": 0}, "positive"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"num_key_value_heads": 0}, "key/value heads is 0"),
        ({"head_dim": 7}, "odd"),
        ({"head_dim": 1 << 30}, "query width"),
        ({"intermediate_size": 1e300}, "intermediate size"),
        ({"vocab_size": 0}, "vocabulary"),
        ({"max_position_embeddings": 0}, "original_max_position_embeddings|positions"),
        ({"rms_norm_eps": float("nan")}, "finite"),
        ({"rms_norm_eps": 2}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"rope_theta": -1}, "positive"),
        ({"rope_scaling": [1]}, "an object"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "'longrope'.*known are default"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 5}}, "high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "between layer types"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial"),
    ],
)
def test_configurations_that_cannot_be_meant(changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        shape(**changes)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("window", [0, -5])
def test_windows_must_be_positive(window):
    with pytest.raises(CheckpointError, match="sliding_window"):
        shape("Mistral", num_key_value_heads=4, sliding_window=window)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, Dtype.BFLOAT16),
        ({"dtype": "float16"}, Dtype.FLOAT16),
        ({"dtype": "torch.float32"}, Dtype.FLOAT32),
        ({"torch_dtype": "float8_e4m3fn"}, None),
        ({"torch_dtype": 7}, None),
        ({}, None),
    ],
)
def test_dtype(values, expected):
    assert dtype_from_config(values) is expected
