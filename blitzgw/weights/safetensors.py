"""The safetensors container: an 8-byte length, a JSON table, then the tensors' bytes.

Specification: https://huggingface.co/docs/safetensors, "Format". Nothing in it is trusted: the
table must be in the file, every range in the data, sizes must follow from shapes, and no byte may
belong to two tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_overlaps
from blitzgw.weights.files import DataFile, parse_object, read_json

HEADER_LIMIT_BYTES = 100_000_000
"""The format's own limit."""

SHARD_LIMIT = 512
"""Files of one model, all held open; the largest published models have about 200."""

DIMENSION_LIMIT = 8

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip

_FLOATS = {"F32": Dtype.FLOAT32, "F16": Dtype.FLOAT16, "BF16": Dtype.BFLOAT16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `offset` counts from the start of `file`, in bytes."""

    file: DataFile
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def dtype(self, name: str) -> Dtype:
        """Return the number format; raise CheckpointError where it cannot be computed with."""
        found = _FLOATS.get(self.kind)
        if found is None:
            raise CheckpointError(
                f"{self.file.path}: {name} is stored as {self.kind}; supported are "
                f"{', '.join(_FLOATS)}"
            )
        return found


def open_tensors(folder: Path, files: list[DataFile]) -> dict[str, StoredTensor]:
    """Open the one file or all shards of a folder; `files` collects what must be closed."""
    index_path = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists() or not index_path.exists():
        if not single.exists():
            raise CheckpointError(
                f"{folder}: has neither model.safetensors nor model.safetensors.index.json; "
                "weights in other formats (.bin, .pt) are not read"
            )
        return _open(single, files)
    return _open_sharded(folder, index_path, files)


def _open_sharded(folder: Path, index_path: Path, files: list[DataFile]) -> dict[str, StoredTensor]:
    files.append(DataFile(index_path))
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map must be an object of tensor: file name")
    shards = {_shard_name(index_path, shard) for shard in weight_map.values()}
    if len(shards) > SHARD_LIMIT:
        raise CheckpointError(f"{index_path}: names {len(shards)} files; limit is {SHARD_LIMIT}")
    opened = {shard: _open(folder / shard, files) for shard in sorted(shards)}
    found: dict[str, StoredTensor] = {}
    for name, shard in weight_map.items():
        if name not in opened[shard]:
            raise CheckpointError(f"{index_path}: {shard} does not hold {name}; fetch it again")
        found[name] = opened[shard][name]
    return found


def _shard_name(index_path: Path, shard: Any) -> str:
    plain = isinstance(shard, str) and shard.endswith(".safetensors")
    if not plain or any(mark in shard for mark in "/\\\0:") or shard.startswith("."):
        raise CheckpointError(
            f"{index_path}: {shard!r} is not a plain .safetensors file name in the same folder"
        )
    return str(shard)


def _open(path: Path, files: list[DataFile]) -> dict[str, StoredTensor]:
    file = DataFile(path)
    files.append(file)
    if file.size_bytes < 8:
        raise CheckpointError(f"{path}: {file.size_bytes} bytes; not a safetensors file")
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(HEADER_LIMIT_BYTES, file.size_bytes - 8):
        raise CheckpointError(
            f"{path}: its header claims {length} bytes of a file of {file.size_bytes}; "
            "not a safetensors file, or truncated"
        )
    table = parse_object(file.read(8, length), str(path))
    table.pop("__metadata__", None)
    found = {name: _entry(file, 8 + length, name, entry) for name, entry in table.items()}
    check_overlaps(str(path), [(t.offset, t.size_bytes, name) for name, t in found.items()])
    return found


def _entry(file: DataFile, data_start: int, name: str, entry: Any) -> StoredTensor:
    where = f"{file.path}: tensor {name[:80]!r}"
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _BITS:
        raise CheckpointError(f"{where} has the unknown dtype {kind!r:.40}")
    if not _whole(shape) or len(shape) > DIMENSION_LIMIT:
        raise CheckpointError(f"{where}: shape must be a list of up to 8 sizes")
    if not _whole(span) or len(span) != 2:
        raise CheckpointError(f"{where}: data_offsets must be [begin, end]")
    begin, end = span
    if not begin <= end <= file.size_bytes - data_start:
        raise CheckpointError(
            f"{where} lies at [{begin}, {end}) of {file.size_bytes - data_start} bytes of data; "
            "the file is truncated or damaged"
        )
    size = math.prod(shape) * _BITS[kind] // 8
    if end - begin != size:
        raise CheckpointError(f"{where} takes {end - begin} bytes; its shape asks for {size}")
    return StoredTensor(file, kind, tuple(shape), data_start + begin, size)


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
