"""A GGUF file as a checkpoint: quantised weights are turned back into floats while loading.

llama.cpp rotates neighbouring elements of a head where Hugging Face rotates element i with
i + head_dim/2, so its converter for `llama` has stored row i of each head of q and k at 2i and row
i + head_dim/2 at 2i + 1. Reading puts them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blitzgw.core.model import Dtype, ModelShape, TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_tensors, expected_tensors
from blitzgw.weights.convert import Bytes
from blitzgw.weights.fields import Fields
from blitzgw.weights.files import DataFile
from blitzgw.weights.ggml_types import dequantise, plain_dtype
from blitzgw.weights.gguf import GgufHeader, GgufTensor, open_header
from blitzgw.weights.gguf_shape import ROPE_FACTORS, architecture, shape_from_header
from blitzgw.weights.gguf_text import text_from_gguf

READ_ELEMENTS = 1 << 22
"""Elements read at a time, a multiple of every block: 2.6 MB of Q4_1, 16 MB of float32."""

_OUTER = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}
_INNER = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "out": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_INTERLEAVED = ("q", "k", "q.bias", "k.bias")


class GgufFile:
    """One GGUF file with model and vocabulary. Implements `base.Checkpoint`."""

    dtype: Dtype = Dtype.BFLOAT16

    def __init__(self, path: Path) -> None:
        self._file, self._header = open_header(path.absolute())
        try:
            self._interleaved = architecture(self._header).interleaved
            self.shape: ModelShape = shape_from_header(self._header, self._rope_factors())
            self.eos_ids: tuple[int, ...] = _eos(self._header, self.shape.vocab)
            self._expected = expected_tensors(self.shape)
            self._stored_name = {name: stored_name(name) for name in self._expected}
            self._check()
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> str:
        """The file."""
        return str(self._file.path)

    def text(self) -> TextSpec:
        """Return the tokenizer, made from the file's vocabulary and kept in the cache folder."""
        return text_from_gguf(self._header, self._file, self.shape.vocab)

    def names(self) -> Sequence[str]:
        """Return the canonical names, in blob order."""
        return tuple(self._expected)

    def read(self, name: str, dtype: Dtype, out: memoryview, start: int = 0) -> None:
        """Fill `out` with rows from `start` on."""
        tensor = self._header.tensors[self._stored_name[name]]
        target = np.frombuffer(out, np.uint8)
        if self._interleaved and name.split(".", 2)[-1] in _INTERLEAVED:
            stored = np.empty(len(out), np.uint8)
            self._read(tensor, dtype, stored, start)
            self._restore(stored, target, len(out) // tensor.shape[0])
        else:
            self._read(tensor, dtype, target, start)

    def place(self, name: str) -> tuple[int, int]:
        """Return a tensor's offset in the one file."""
        return 0, self._header.tensors[self._stored_name[name]].offset

    def files(self) -> Sequence[DataFile]:
        """Return the one file."""
        return (self._file,)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, tensor: GgufTensor, dtype: Dtype, out: Bytes, start: int) -> None:
        kind = tensor.kind
        first = start * math.prod(tensor.shape[1:])
        count = out.size // dtype.size_bytes
        if first + count > math.prod(tensor.shape):
            raise CheckpointError(f"{tensor.name}: {count} elements from row {start} are not there")
        offset = tensor.offset + kind.size_bytes(first)
        if plain_dtype(kind) is dtype:
            self._file.read_into(offset, out.data)
            return
        for done in range(0, count, READ_ELEMENTS):
            n = min(READ_ELEMENTS, count - done)
            raw = np.empty(kind.size_bytes(n), np.uint8)
            self._file.read_into(offset + kind.size_bytes(done), raw.data)
            width = dtype.size_bytes
            dequantise(raw, kind, dtype, out[done * width : (done + n) * width])

    def _restore(self, stored: Bytes, out: Bytes, row_bytes: int) -> None:
        """Put rows (2i, 2i + 1) of every head back to (i, i + head_dim/2)."""
        half = self.shape.head_dim // 2
        pairs = stored.reshape(-1, half, 2, row_bytes)
        out.reshape(-1, 2, half, row_bytes)[:] = pairs.swapaxes(1, 2)

    def _rope_factors(self) -> NDArray[np.float32] | None:
        tensor = self._header.tensors.get(ROPE_FACTORS)
        if tensor is None:
            return None
        if tensor.size_bytes > 1 << 16:
            raise CheckpointError(f"{self.path}: {ROPE_FACTORS} has the shape {tensor.shape}")
        out = np.empty(math.prod(tensor.shape), np.float32)
        self._read(tensor, Dtype.FLOAT32, out.view(np.uint8), 0)
        return out

    def _check(self) -> None:
        """Compare the table with the shape, and refuse weights that would be left out."""
        tensors = self._header.tensors
        stored = {name: tensor.shape for name, tensor in tensors.items()}
        check_tensors(self.path, self._expected, stored, self._stored_name)
        left_out = tensors.keys() - set(self._stored_name.values()) - {ROPE_FACTORS}
        if left_out:
            raise CheckpointError(
                f"{self.path}: holds {', '.join(sorted(left_out)[:3])}, which a model of this "
                "architecture has no place for"
            )


def stored_name(name: str) -> str:
    """Return the GGUF name of a canonical tensor."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, part = name.split(".", 2)
    part, _, kind = part.partition(".")
    return f"blk.{layer}.{_INNER[part]}.{kind or 'weight'}"


def _eos(header: GgufHeader, vocab: int) -> tuple[int, ...]:
    """Return the ids that end a sequence, a turn or a message."""
    fields = Fields(header.keys, header.where)
    found: list[int] = []
    for what in ("eos", "eot", "eom"):
        found += fields.ids(f"tokenizer.ggml.{what}_token_id", vocab)
    return tuple(dict.fromkeys(found))
