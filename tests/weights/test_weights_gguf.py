"""GGUF files: tiny ones of every architecture, and the real SmolLM2."""

from __future__ import annotations

import dataclasses
import os
import time

import gguf
import numpy as np
import pytest
import torch
import transformers

from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights.gguf_model import stored_name
from blitzgw.weights.hf_folder import stored_name as hf_name
from blitzgw.weights.info import open_checkpoint, resolve_model
from tests.support.checkpoints import FAMILIES, state_dict, tiny_checkpoint
from tests.support.ggufs import tiny_gguf


def read(checkpoint, name, shape, dtype=Dtype.FLOAT32) -> torch.Tensor:
    buffer = bytearray(int(np.prod(shape)) * dtype.size_bytes)
    checkpoint.read(name, dtype, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=getattr(torch, dtype.value)).view(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unquantised_file_equals_its_folder(tmp_path, family):
    folder = tiny_checkpoint(family, tmp_path / "m")
    file = open_checkpoint(tiny_gguf(family, folder, tmp_path / "m.gguf"))
    origin = open_checkpoint(folder)
    family = "llama" if origin.shape.family == "mistral" else origin.shape.family
    assert file.shape == dataclasses.replace(origin.shape, family=family)
    assert file.dtype is Dtype.BFLOAT16
    assert file.eos_ids == (2,)
    expected = state_dict(folder)
    for name in file.names():
        reference = expected[hf_name(name)]
        assert torch.equal(read(file, name, reference.shape), reference), name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_biases_are_put_back_in_order_as_well(tmp_path, family):
    overrides = {"attention_bias": True} if family == "llama" else {}
    folder = tiny_checkpoint(family, tmp_path / "m", **overrides)
    file = open_checkpoint(tiny_gguf(family, folder, tmp_path / "m.gguf"))
    expected = state_dict(folder)["model.layers.1.self_attn.k_proj.bias"]
    assert file.shape.qkv_bias
    assert torch.equal(read(file, "layer.1.k.bias", expected.shape), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("target", list(Dtype))
def test_quantised_tensors_equal_the_reference_reader(tmp_path, kind, target):
    folder = tiny_checkpoint("qwen2", tmp_path / "m")
    path = tiny_gguf("qwen2", folder, tmp_path / "m.gguf", quantise=kind)
    file = open_checkpoint(path)
    for tensor in gguf.GGUFReader(path).tensors:
        name = next(n for n in file.names() if stored_name(n) == tensor.name)
        reference = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        got = read(file, name, reference.shape, target)
        assert torch.equal(got, reference.to(got.dtype)), name


def test_llama3_frequencies_are_recognised(tmp_path):
    overrides = {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "head_dim": 64,
        "max_position_embeddings": 131072,
    }
    folder = tiny_checkpoint("llama", tmp_path / "m", **overrides)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    config = transformers.AutoConfig.from_pretrained(folder)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config)
    divisors = (plain / scaled.numpy()).astype(np.float32)
    path = tiny_gguf("llama", folder, tmp_path / "a.gguf", tensors={"rope_freqs.weight": divisors})
    assert open_checkpoint(path).shape.rope == open_checkpoint(folder).shape.rope
    divisors[20] *= 1.1
    path = tiny_gguf("llama", folder, tmp_path / "b.gguf", tensors={"rope_freqs.weight": divisors})
    with pytest.raises(CheckpointError, match="Llama 3's scaling"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("keys", "kind", "factor"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, "linear", 2.0),
        ({"llama.rope.scale_linear": 4.0}, "linear", 4.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, "default", 1.0),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
            },
            "yarn",
            4.0,
        ),
    ],
)
def test_rope_scaling_keys(tmp_path, keys, kind, factor):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    rope = open_checkpoint(tiny_gguf("llama", folder, tmp_path / "m.gguf", keys=keys)).shape.rope
    assert (rope.kind, rope.factor) == (kind, factor)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "gemma"}, "gemma.*supported are llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, "differs between layers"),
        ({"llama.attention.head_count_kv": 3}, "evenly"),
        ({"llama.attention.head_count": 0}, "positive"),
        ({"llama.rope.dimension_count": 8}, "head size"),
        ({"llama.rope.scaling.type": "longrope"}, "none, linear or yarn"),
        ({"llama.block_count": 4}, "lacks the tensors blk.3"),
        ({"llama.block_count": 2}, "blk.2.*no place"),
        ({"llama.block_count": 4_000_000_000}, "number of layers"),
        ({"llama.embedding_length": 32}, "shape"),
        ({"llama.context_length": 0}, "positions"),
        ({"llama.context_length": "many"}, "whole number"),
        ({"split.count": 2}, "gguf-split"),
        ({"tokenizer.ggml.eos_token_id": 300}, "eos_token_id"),
    ],
)
def test_keys_that_cannot_be_meant(tmp_path, keys, message):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    path = tiny_gguf("llama", folder, tmp_path / "m.gguf", keys=keys)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.skipif(
    os.environ.get("BLITZGW_LONG") != "1",
    reason="the engine's tokens are compared anyway: set BLITZGW_LONG=1, as scripts/test --long",
)
def test_the_real_model_equals_transformers(smollm2):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    expected = model.state_dict()
    file = open_checkpoint(smollm2)
    assert file.shape.tied_head
    for name in file.names():
        reference = expected[hf_name(name)]
        assert torch.equal(read(file, name, reference.shape), reference), name
    file.close()


def test_the_real_model_equals_the_reference_reader(smollm2):
    file = open_checkpoint(smollm2)
    tensors = {t.name: t for t in gguf.GGUFReader(smollm2).tensors}
    assert {stored_name(n) for n in file.names()} == set(tensors)
    for name in ("embedding", "layer.0.v", "layer.29.down", "layer.7.mlp_norm"):
        tensor = tensors[stored_name(name)]
        reference = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        got = read(file, name, reference.shape, Dtype.BFLOAT16)
        assert torch.equal(got, reference.to(torch.bfloat16))
    file.close()


def test_the_real_model_is_described_quickly(smollm2, own_cache):
    resolve_model("m", smollm2, None, None)
    start = time.perf_counter()
    model = resolve_model("m", smollm2, None, None)
    spec, text = model.spec, model.text
    assert time.perf_counter() - start < 0.3
    assert (spec.shape.n_layers, spec.shape.vocab, spec.max_model_len) == (30, 49152, 8192)
    assert (spec.dtype, spec.eos_ids, spec.shape.norm_eps) == (Dtype.BFLOAT16, (2,), 1e-5)
    assert (text.bos_token, text.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>assistant" in text.chat_template
    assert text.tokenizer_path.startswith(str(own_cache))
