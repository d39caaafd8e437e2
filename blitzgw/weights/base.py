"""What every checkpoint format offers to the loader."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype, ModelShape, TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.files import DataFile

SIZE_LIMIT = 1 << 31
"""Largest extent of anything: kernels index rows and columns with 32 bits."""


class Checkpoint(Protocol):
    """A model on disk. Tensors have canonical names: `embedding`, `layer.3.q`, `norm`, `head`.

    `read` may be called from several threads. All methods raise CheckpointError.
    """

    @property
    def path(self) -> str:
        """The absolute path of the folder or file."""

    @property
    def shape(self) -> ModelShape:
        """The model's shape; every canonical tensor has been checked against it."""

    @property
    def dtype(self) -> Dtype:
        """The type that the weights are best computed in."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end a sequence."""

    def text(self) -> TextSpec:
        """Return the tokenizer and the chat template."""

    def names(self) -> Sequence[str]:
        """Return the canonical names, in blob order."""

    def read(self, name: str, dtype: Dtype, out: memoryview, start: int = 0) -> None:
        """Fill `out` (writable, contiguous) with rows of a tensor, converted to `dtype`.

        `start` is the first row; the length of `out` says how many. `q`, `k` and their biases are
        read whole.
        """

    def place(self, name: str) -> tuple[int, int]:
        """Return where a tensor lies: the position of its file in `files`, and the offset there."""

    def files(self) -> Sequence[DataFile]:
        """Return the files that decide what `read` gives, besides what is in `shape`."""

    def close(self) -> None:
        """Close the files."""


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every canonical tensor of a model, in blob order."""
    found: dict[str, tuple[int, ...]] = {}
    for blob in blob_layouts(shape, Dtype.BFLOAT16):
        for slot in blob.tensors:
            for part in slot.parts:
                found[canonical(blob.name, part.name)] = part.shape
    return found


def canonical(blob_name: str, part_name: str) -> str:
    """Return the canonical name of a part: the blob's name leads where the blob is a layer."""
    return f"{blob_name}.{part_name}" if blob_name.startswith("layer.") else part_name


def check_tensors(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    stored_name: Mapping[str, str],
) -> None:
    """Compare shapes: `expected` by canonical name, `stored` by the name that the file uses."""
    missing = [stored_name[name] for name in expected if stored_name[name] not in stored]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{where}: lacks the tensors {', '.join(missing[:3])}{more}")
    for name, shape in expected.items():
        found = stored[stored_name[name]]
        if found != shape:
            raise CheckpointError(
                f"{where}: {stored_name[name]} has the shape {list(found)}, "
                f"the configuration asks for {list(shape)}"
            )


def check_shape(where: str, shape: ModelShape) -> None:
    """Refuse sizes that no model has, before anything is computed from them."""
    sizes = {
        "hidden size": shape.hidden,
        "number of layers": shape.n_layers,
        "number of heads": shape.n_heads,
        "number of key/value heads": shape.n_kv_heads,
        "head size": shape.head_dim,
        "intermediate size": shape.intermediate,
        "vocabulary": shape.vocab,
        "number of positions": shape.max_positions,
        "query width": shape.n_heads * shape.head_dim,
    }
    for what, size in sizes.items():
        if not 0 < size < SIZE_LIMIT:
            raise CheckpointError(f"{where}: the {what} is {size}; it must be in [1, 2³¹)")
    if shape.n_layers > 4096:
        raise CheckpointError(f"{where}: {shape.n_layers} layers; at most 4096 are supported")
    if shape.n_heads % shape.n_kv_heads:
        raise CheckpointError(
            f"{where}: {shape.n_heads} heads cannot share {shape.n_kv_heads} key/value heads "
            "evenly; the first must be a multiple of the second"
        )
    if shape.head_dim % 2:
        raise CheckpointError(f"{where}: the head size {shape.head_dim} is odd; RoPE needs pairs")
    if not 0 <= shape.norm_eps < 1:
        raise CheckpointError(f"{where}: rms_norm_eps is {shape.norm_eps}; it must be in [0, 1)")
    if not 0 <= shape.window < SIZE_LIMIT:
        raise CheckpointError(f"{where}: the sliding window is {shape.window}; it must be positive")


def check_overlaps(where: str, ranges: list[tuple[int, int, str]]) -> None:
    """Refuse (offset, size in bytes, name) ranges that share a byte."""
    ranges = sorted(entry for entry in ranges if entry[1])
    for (offset, size, name), (following, _, other) in itertools.pairwise(ranges):
        if offset + size > following:
            raise CheckpointError(f"{where}: the tensors {name!r} and {other!r} overlap")
