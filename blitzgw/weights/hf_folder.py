"""A Hugging Face folder: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blitzgw.core.model import Dtype, ModelShape, TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_tensors, expected_tensors
from blitzgw.weights.config_json import dtype_from_config, shape_from_config
from blitzgw.weights.convert import convert
from blitzgw.weights.fields import Fields
from blitzgw.weights.files import DataFile, read_json
from blitzgw.weights.hf_text import text_from_folder
from blitzgw.weights.safetensors import StoredTensor, open_tensors

READ_BYTES = 4 << 20
"""Source bytes read at a time where they are converted on the way."""

_OUTER = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class HfFolder:
    """A checkpoint as `save_pretrained` writes it. Implements `base.Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._files: list[DataFile] = []
        config_path = self._folder / "config.json"
        config = read_json(config_path)
        self.shape: ModelShape = shape_from_config(config, str(config_path))
        self.eos_ids: tuple[int, ...] = self._eos(config)
        self._expected = expected_tensors(self.shape)
        self._stored_name = {name: stored_name(name) for name in self._expected}
        try:
            self._tensors = open_tensors(self._folder, self._files)
            self._check()
        except BaseException:
            self.close()
            raise
        self._position = {file: position for position, file in enumerate(self._files)}
        embedding = self._tensor("embedding")
        self.dtype: Dtype = dtype_from_config(config) or embedding.dtype("embedding")

    @property
    def path(self) -> str:
        """The folder."""
        return str(self._folder)

    def text(self) -> TextSpec:
        """Return the tokenizer and the chat template."""
        return text_from_folder(self._folder)

    def names(self) -> Sequence[str]:
        """Return the canonical names, in blob order."""
        return tuple(self._expected)

    def read(self, name: str, dtype: Dtype, out: memoryview, start: int = 0) -> None:
        """Fill `out` with rows from `start` on; bytes of the same format are not copied."""
        tensor = self._tensor(name)
        source = tensor.dtype(name)
        row = math.prod(tensor.shape[1:])
        count = len(out) // dtype.size_bytes
        first = start * row
        if first + count > math.prod(tensor.shape):
            raise CheckpointError(f"{name}: {count} elements from row {start} are not there")
        offset = tensor.offset + first * source.size_bytes
        if source is dtype:
            tensor.file.read_into(offset, out)
            return
        target = np.frombuffer(out, np.uint8)
        step = READ_BYTES // source.size_bytes
        for done in range(0, count, step):
            n = min(step, count - done)
            raw = np.empty(n * source.size_bytes, np.uint8)
            tensor.file.read_into(offset + done * source.size_bytes, raw.data)
            width = dtype.size_bytes
            convert(raw, source, dtype, target[done * width : (done + n) * width])

    def place(self, name: str) -> tuple[int, int]:
        """Return the position of a tensor's shard, and the offset there."""
        tensor = self._tensor(name)
        return self._position[tensor.file], tensor.offset

    def files(self) -> Sequence[DataFile]:
        """Return the shards, and the index where there is one."""
        return tuple(self._files)

    def close(self) -> None:
        """Close all shards."""
        for file in self._files:
            file.close()

    def _tensor(self, name: str) -> StoredTensor:
        return self._tensors[self._stored_name[name]]

    def _check(self) -> None:
        """Compare the files with the shape, and refuse weights that would be left out."""
        where = str(self._folder)
        stored = {name: tensor.shape for name, tensor in self._tensors.items()}
        check_tensors(where, self._expected, stored, self._stored_name)
        wanted = set(self._stored_name.values())
        for name in self._tensors:
            known = name in wanted or name.endswith(".rotary_emb.inv_freq")
            if name.startswith("model.layers.") and not known:
                raise CheckpointError(
                    f"{where}: holds {name}, which config.json leaves no place for"
                )
        for name in self._expected:
            self._tensor(name).dtype(name)

    def _eos(self, config: dict[str, object]) -> tuple[int, ...]:
        path = self._folder / "generation_config.json"
        if path.is_file():
            fields = Fields(read_json(path), str(path))
            if fields.has("eos_token_id"):
                return fields.ids("eos_token_id", self.shape.vocab)
        fields = Fields(config, str(self._folder / "config.json"))
        return fields.ids("eos_token_id", self.shape.vocab)


def stored_name(name: str) -> str:
    """Return the Hugging Face name of a canonical tensor."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, part = name.split(".", 2)
    part, _, kind = part.partition(".")
    return f"model.layers.{layer}.{_INNER[part]}.{kind or 'weight'}"
