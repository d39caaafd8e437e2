"""A checkpoint written anew as a Hugging Face folder, for programs that read nothing else."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from blitzgw.core.model import Dtype, ModelShape
from blitzgw.core.paths import cache_dir
from blitzgw.weights.base import expected_tensors
from blitzgw.weights.hf_folder import stored_name
from blitzgw.weights.info import open_checkpoint, resolve_model

DTYPE = Dtype.BFLOAT16


def hf_folder(path: Path) -> Path:
    """Return a folder with the weights in bf16, kept in the cache folder under the file's name.

    Raises ValueError for a model that is more than a plain Llama.
    """
    target = cache_dir() / "folders" / path.stem
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        folder = Path(made) / "folder"
        folder.mkdir()
        _write_weights(path, folder / "model.safetensors")
        _write_texts(path, folder)
        folder.replace(target)
    return target


def _write_weights(path: Path, file: Path) -> None:
    checkpoint = open_checkpoint(path)
    try:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        tensors = expected_tensors(checkpoint.shape)
        end = 0
        for name, shape in tensors.items():
            start, end = end, end + DTYPE.size_bytes * math.prod(shape)
            entry = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            header[stored_name(name)] = entry
        table = json.dumps(header).encode()
        table += b" " * (-len(table) % 8)
        with file.open("wb") as out:
            out.write(len(table).to_bytes(8, "little") + table)
            for name, shape in tensors.items():
                data = bytearray(DTYPE.size_bytes * math.prod(shape))
                checkpoint.read(name, DTYPE, memoryview(data))
                out.write(data)
    finally:
        checkpoint.close()


def _write_texts(path: Path, folder: Path) -> None:
    model = resolve_model("folder", path, DTYPE, None)
    text = model.text
    config = _config(model.spec.shape) | {"eos_token_id": list(model.spec.eos_ids)}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(text.tokenizer_path, folder / "tokenizer.json")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.spec.shape.max_positions,
        "bos_token": text.bos_token,
        "eos_token": text.eos_token,
        "chat_template": text.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def _config(shape: ModelShape) -> dict[str, Any]:
    biased = shape.qkv_bias or shape.out_bias or shape.mlp_bias
    if biased or shape.qk_norm or shape.window or shape.rope.kind != "default":
        raise ValueError(f"a {shape.family} model with more than Llama's own parts is not written")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied_head,
        "torch_dtype": "bfloat16",
    }
