"""How the bytes of a model are laid out in blobs. A versioned table: peers must agree on it.

A model of L layers is L + 2 blobs: the embedding, L layers, the head. A blob is one contiguous
run of bytes; its tensors stand in the order of the tables below, each aligned to ALIGNMENT, row
major. Fused tensors are their parts' rows one after another (`qkv` = q, k, v; `gate_up` = gate,
up), so that a part is itself a contiguous range and can be read straight into its place.

A tied head holds the final norm only and refers to the embedding blob for its matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blitzgw.core.model import Dtype, ModelShape

LAYOUT_VERSION = 1
"""Part of a model's identity; any change to what follows needs the next number."""

ALIGNMENT = 64
"""Bytes: a cache line and the widest vector register."""

SLAB_ALIGNMENT = 4096
"""Bytes: in a slab each blob begins on a page of its own, so that blobs can be pinned, advised and
given back one by one. Files in shared memory are laid out by it: a constant, not the machine's."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one checkpoint tensor inside a fused tensor.

    `name` is the canonical name, without a layer's index: `q`, `k.bias`, `gate`, `embedding`, …
    `offset` counts from the start of the blob, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One tensor of a blob, as the engine sees it."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """One blob: index 0 is the embedding, 1 + i layer i, L + 1 the head."""

    index: int
    name: str
    size_bytes: int
    tensors: tuple[TensorSlot, ...]


def blob_layouts(shape: ModelShape, dtype: Dtype) -> tuple[BlobLayout, ...]:
    """Return the layout of all blobs, in blob order."""
    embedding = _blob(
        0, "embedding", [("embedding", [("embedding", (shape.vocab, shape.hidden))])], dtype
    )
    layers = [_blob(1 + i, f"layer.{i}", _layer_table(shape), dtype) for i in range(shape.n_layers)]
    head_table: _Table = [("norm", [("norm", (shape.hidden,))])]
    if not shape.tied_head:
        head_table.append(("head", [("head", (shape.vocab, shape.hidden))]))
    return (embedding, *layers, _blob(1 + shape.n_layers, "head", head_table, dtype))


def slab_offsets(layouts: Iterable[BlobLayout]) -> tuple[tuple[int, ...], int]:
    """Return where each blob begins in one run of memory, and the size of that, in bytes.

    Engines, host copies and whoever maps them all lay out blobs by this, in blob order.
    """
    offsets: list[int] = []
    total = 0
    for layout in layouts:
        offsets.append(total)
        total += -(-layout.size_bytes // SLAB_ALIGNMENT) * SLAB_ALIGNMENT
    return tuple(offsets), total


_Table = list[tuple[str, list[tuple[str, tuple[int, ...]]]]]
"""(fused name, [(part name, part shape)]) in the order of the bytes."""


def _layer_table(shape: ModelShape) -> _Table:
    """Return (fused name, [(part name, part shape)]) in the order of the bytes. Version 1."""
    d, hd = shape.hidden, shape.head_dim
    q, kv, mlp = shape.n_heads * hd, shape.n_kv_heads * hd, shape.intermediate
    table: _Table = [
        ("attn_norm", [("attn_norm", (d,))]),
        ("qkv", [("q", (q, d)), ("k", (kv, d)), ("v", (kv, d))]),
    ]
    if shape.qkv_bias:
        table.append(("qkv.bias", [("q.bias", (q,)), ("k.bias", (kv,)), ("v.bias", (kv,))]))
    if shape.qk_norm:
        table += [("q_norm", [("q_norm", (hd,))]), ("k_norm", [("k_norm", (hd,))])]
    table.append(("out", [("out", (d, q))]))
    if shape.out_bias:
        table.append(("out.bias", [("out.bias", (d,))]))
    table += [
        ("mlp_norm", [("mlp_norm", (d,))]),
        ("gate_up", [("gate", (mlp, d)), ("up", (mlp, d))]),
    ]
    if shape.mlp_bias:
        table.append(("gate_up.bias", [("gate.bias", (mlp,)), ("up.bias", (mlp,))]))
    table.append(("down", [("down", (d, mlp))]))
    if shape.mlp_bias:
        table.append(("down.bias", [("down.bias", (d,))]))
    return table


def _blob(index: int, name: str, table: _Table, dtype: Dtype) -> BlobLayout:
    tensors: list[TensorSlot] = []
    offset = 0
    for fused_name, named_shapes in table:
        start = offset
        parts: list[Part] = []
        for part_name, part_shape in named_shapes:
            size = _elements(part_shape) * dtype.size_bytes
            parts.append(Part(part_name, part_shape, offset, size))
            offset += size
        rows = sum(part.shape[0] for part in parts)
        fused_shape = (rows, *parts[0].shape[1:])
        tensors.append(TensorSlot(fused_name, fused_shape, start, offset - start, tuple(parts)))
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
    return BlobLayout(index, name, offset, tuple(tensors))


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
