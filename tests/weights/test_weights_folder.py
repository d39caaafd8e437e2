"""Hugging Face folders: every tensor, in every pair of number formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights.hf_folder import HfFolder, stored_name
from blitzgw.weights.info import open_checkpoint, resolve_model
from tests.support.checkpoints import CHAT_TEMPLATE, FAMILIES, state_dict, tiny_checkpoint


def as_torch(buffer: bytearray, dtype: Dtype) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=getattr(torch, dtype.value))


def read(checkpoint, name: str, shape: tuple[int, ...], dtype: Dtype) -> torch.Tensor:
    buffer = bytearray(int(np.prod(shape)) * dtype.size_bytes)
    checkpoint.read(name, dtype, memoryview(buffer))
    return as_torch(buffer, dtype).view(shape)


def assert_equal_to_transformers(folder: Path, target: Dtype) -> None:
    checkpoint = open_checkpoint(folder)
    expected = state_dict(folder)
    seen = set()
    for name in checkpoint.names():
        reference = expected[stored_name(name)]
        got = read(checkpoint, name, tuple(reference.shape), target)
        assert torch.equal(got, reference.to(got.dtype)), name
        seen.add(stored_name(name))
    left = expected.keys() - seen
    assert left <= ({"lm_head.weight"} if checkpoint.shape.tied_head else set())
    checkpoint.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_what_transformers_reads(tmp_path, family):
    folder = tiny_checkpoint(family, tmp_path / family)
    assert_equal_to_transformers(folder, Dtype.FLOAT32)
    checkpoint = HfFolder(folder)
    assert checkpoint.eos_ids == (2,)
    assert checkpoint.dtype is Dtype.FLOAT32
    assert checkpoint.shape.family == ("llama" if family == "smollm" else family)
    assert checkpoint.shape.tied_head == (family == "smollm")
    checkpoint.close()


@pytest.mark.parametrize("source", list(Dtype))
@pytest.mark.parametrize("target", list(Dtype))
def test_every_pair_of_formats(tmp_path, source, target):
    folder = tiny_checkpoint("qwen2", tmp_path / "m", dtype=source.value)
    assert HfFolder(folder).dtype is source
    assert_equal_to_transformers(folder, target)


def test_shards(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert_equal_to_transformers(folder, Dtype.BFLOAT16)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 16, "num_key_value_heads": 1}),
    ],
)
def test_variants(tmp_path, family, overrides):
    folder = tiny_checkpoint(family, tmp_path / "m", **overrides)
    assert_equal_to_transformers(folder, Dtype.FLOAT32)


def test_rows_in_parts(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    checkpoint = HfFolder(folder)
    whole = read(checkpoint, "embedding", (300, 64), Dtype.BFLOAT16)
    part = bytearray(7 * 64 * 2)
    checkpoint.read("embedding", Dtype.BFLOAT16, memoryview(part), start=100)
    assert torch.equal(as_torch(part, Dtype.BFLOAT16).view(7, 64), whole[100:107])
    with pytest.raises(CheckpointError, match="not there"):
        checkpoint.read("embedding", Dtype.BFLOAT16, memoryview(part), start=294)
    checkpoint.close()


def test_what_is_known_of_a_folder(tmp_path):
    folder = tiny_checkpoint("qwen3", tmp_path / "m", dtype="bfloat16")
    model = resolve_model("tiny", folder, None, 100)
    spec, text = model.spec, model.text
    assert (spec.name, spec.path, spec.dtype) == ("tiny", str(folder), Dtype.BFLOAT16)
    assert (spec.max_model_len, spec.eos_ids) == (100, (2,))
    assert text.tokenizer_path == str(folder / "tokenizer.json")
    assert text.chat_template == CHAT_TEMPLATE
    assert (text.bos_token, text.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert resolve_model("tiny", folder, Dtype.FLOAT32, None).spec.max_model_len == 512
    for length in (513, 0, -1):
        with pytest.raises(CheckpointError, match="512 positions"):
            resolve_model("tiny", folder, None, length)


def test_weights_that_the_configuration_leaves_out_are_refused(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m", attention_bias=True)
    edit(folder / "config.json", attention_bias=False)
    with pytest.raises(CheckpointError, match=r"self_attn.*bias.*no place"):
        open_checkpoint(folder)
    edit(folder / "config.json", attention_bias=True, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"layers\.2.*no place"):
        open_checkpoint(folder)


def test_weights_that_are_missing_or_of_another_shape(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    edit(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"lacks the tensors model\.layers\.3.*6 more"):
        open_checkpoint(folder)
    edit(folder / "config.json", num_hidden_layers=3, intermediate_size=100)
    with pytest.raises(CheckpointError, match=r"gate_proj.* \[96, 64\].* \[100, 64\]"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json: cannot be opened"),
        ("model.safetensors", "neither model.safetensors nor"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_missing_files(tmp_path, file, message):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        resolve_model("m", folder, None, None)


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="ends at byte"):
        read(checkpoint, "layer.2.down", (64, 96), Dtype.FLOAT32)
    checkpoint.close()


def test_paths_that_are_no_checkpoint(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    for path in (tmp_path / "absent", tmp_path / "model.bin", tmp_path, "a\0b"):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_no_files_stay_open_after_a_refusal(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    edit(folder / "config.json", num_hidden_layers=4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_eos_ids_come_from_the_generation_configuration_first(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[5, 7, 5])
    assert open_checkpoint(folder).eos_ids == (5, 7)
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).eos_ids == (2,)
    for wrong in (300, -1, "2", [1, 2.5], True):
        edit(folder / "config.json", eos_token_id=wrong)
        with pytest.raises(CheckpointError, match="eos_token_id"):
            open_checkpoint(folder)


def test_chat_template_from_all_its_places(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m")
    config = folder / "tokenizer_config.json"
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    edit(config, chat_template=named, eos_token="</s>")
    text = open_checkpoint(folder).text()
    assert (text.chat_template, text.eos_token) == ("d", "</s>")
    edit(config, chat_template=named[:1])
    with pytest.raises(CheckpointError, match="named 'default'"):
        open_checkpoint(folder).text()
    (folder / "chat_template.json").write_text('{"chat_template": "j"}')
    assert open_checkpoint(folder).text().chat_template == "j"
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert open_checkpoint(folder).text().chat_template == "{{ 1 }}"
    config.unlink()
    text = open_checkpoint(folder).text()
    assert (text.bos_token, text.eos_token) == ("", "")


def test_float16_overflow_is_refused_rather_than_infinite(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint("llama", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="float16"):
        read(open_checkpoint(folder), "norm", (64,), Dtype.FLOAT16)


def test_names_cover_the_layout(tmp_path):
    folder = tiny_checkpoint("qwen2", tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    parts = [
        p
        for blob in blob_layouts(checkpoint.shape, Dtype.FLOAT32)
        for s in blob.tensors
        for p in s.parts
    ]
    assert len(checkpoint.names()) == len(parts)
    assert checkpoint.names()[:3] == ("embedding", "layer.0.attn_norm", "layer.0.q")
    shutil.rmtree(folder)


def edit(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))
