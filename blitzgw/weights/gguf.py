"""The GGUF container, versions 2 and 3, little endian: keys, a tensor table, the tensors.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, length and
offset is compared with what the file can hold before it is used, so that the work is bounded by
the file's size. Arrays are stepped over and decoded when asked for: a vocabulary has 100,000
strings, and a start that finds its tokenizer in the cache needs none of them.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blitzgw.errors import CheckpointError
from blitzgw.weights.base import check_overlaps
from blitzgw.weights.files import DataFile
from blitzgw.weights.ggml_types import TYPES, GgmlType

HEADER_STEPS_BYTES = (16 << 20, 64 << 20, 256 << 20)
"""How much is read in search of the header's end: a vocabulary of 150,000 tokens takes 6 MB."""

KEY_LIMIT = 4096
TENSOR_LIMIT = 1 << 16
ARRAY_LIMIT = 1 << 22
"""Elements of one array: the largest vocabularies have 260,000 tokens and twice the merges."""
NAME_LIMIT_BYTES = 256
TEXT_LIMIT_BYTES = 4 << 20

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_SCALAR_STRUCTS = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _EndOfData(Exception):
    """The header goes on beyond the bytes that were read."""


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array that has been stepped over: `[start, stop)` in the header's bytes."""

    kind: int
    count: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` is row major (GGUF writes it the other way round)."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    size_bytes: int


class GgufHeader:
    """The parsed header: `keys` holds scalars, strings and ArrayRefs; `tensors` by name."""

    def __init__(self, file: DataFile) -> None:
        self.where = str(file.path)
        self.keys: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        for limit in HEADER_STEPS_BYTES:
            self.data = bytes(file.read(0, min(limit, file.size_bytes)))
            try:
                self._parse(file)
            except _EndOfData:
                if limit >= file.size_bytes:
                    break
            except (UnicodeDecodeError, struct.error) as error:
                raise CheckpointError(f"{self.where}: damaged header ({error})") from error
            else:
                return
        raise CheckpointError(
            f"{self.where}: the header goes on beyond {len(self.data)} bytes; "
            "the file is truncated or not a GGUF file"
        )

    def strings(self, key: str) -> list[str]:
        """Return an array of strings."""
        ref = self._array(key, (_STRING,), "strings")
        data, position, found = self.data, ref.start, []
        try:
            for _ in range(ref.count):
                (length,) = _U64.unpack_from(data, position)
                position += 8 + length
                found.append(data[position - length : position].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.where}: {key} holds invalid UTF-8 ({error})") from error
        return found

    def string_at(self, key: str, index: int) -> str:
        """Return one string of an array, empty where there is none."""
        ref = self._array(key, (_STRING,), "strings")
        if not 0 <= index < ref.count:
            return ""
        position, length = ref.start, 0
        for _ in range(index + 1):
            position += length
            (length,) = _U64.unpack_from(self.data, position)
            position += 8
        return self.data[position : position + length].decode("utf-8", "replace")

    def numbers(self, key: str) -> list[Any]:
        """Return an array of numbers."""
        ref = self._array(key, tuple(_SCALARS), "numbers")
        code = f"<{ref.count}{_SCALARS[ref.kind][1]}"
        return list(struct.unpack(code, self.data[ref.start : ref.stop]))

    def _array(self, key: str, kinds: tuple[int, ...], what: str) -> ArrayRef:
        ref = self.keys.get(key)
        if not isinstance(ref, ArrayRef) or ref.kind not in kinds:
            raise CheckpointError(f"{self.where}: {key} is missing or not an array of {what}")
        return ref

    def _parse(self, file: DataFile) -> None:
        cursor = _Cursor(self.data, self.where)
        if self.data[:4] != b"GGUF":
            raise CheckpointError(f"{self.where}: not a GGUF file (it does not begin with 'GGUF')")
        cursor.position = 4
        version = cursor.integer(_U32)
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.where}: GGUF version {version}; supported are 2 and 3, little endian"
            )
        n_tensors, n_keys = cursor.integer(_U64), cursor.integer(_U64)
        if n_keys > KEY_LIMIT or n_tensors > TENSOR_LIMIT:
            raise CheckpointError(
                f"{self.where}: {n_keys} keys and {n_tensors} tensors; at most {KEY_LIMIT} and "
                f"{TENSOR_LIMIT} are read"
            )
        self.keys = cursor.key_values(n_keys)
        infos = [cursor.tensor_info() for _ in range(n_tensors)]
        alignment = self.keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise CheckpointError(f"{self.where}: general.alignment is {alignment!r:.40}")
        data_start = -(-cursor.position // alignment) * alignment
        self.tensors = _place(infos, data_start, alignment, file)
        self.data = self.data[: cursor.position]


class _Cursor:
    """Reads the header front to back."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.position = 0

    def integer(self, layout: struct.Struct) -> int:
        """Return the next number."""
        value = self._scalar(layout)
        assert isinstance(value, int)
        return value

    def text(self, limit: int) -> str:
        """Return the next string of at most `limit` bytes."""
        length = self.integer(_U64)
        if length > limit:
            raise CheckpointError(f"{self.where}: a string of {length} bytes; limit is {limit}")
        start = self._advance(length)
        return self.data[start : self.position].decode("utf-8")

    def key_values(self, count: int) -> dict[str, Any]:
        """Return the keys; none may be given twice."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text(1 << 16)
            if key in found:
                raise CheckpointError(f"{self.where}: the key {key[:80]!r} is given twice")
            found[key] = self._value(key)
        return found

    def tensor_info(self) -> GgufTensor:
        """Return one line of the tensor table; its offset still counts from the data's start."""
        name = self.text(NAME_LIMIT_BYTES)
        where = f"{self.where}: tensor {name!r}"
        n_dimensions = self.integer(_U32)
        if not 1 <= n_dimensions <= 4:
            raise CheckpointError(f"{where} has {n_dimensions} dimensions; 1 to 4 are possible")
        shape = tuple(self.integer(_U64) for _ in range(n_dimensions))[::-1]
        kind = TYPES.get(self.integer(_U32))
        offset = self.integer(_U64)
        if kind is None:
            names = ", ".join(known.name for known in TYPES.values())
            raise CheckpointError(f"{where} is of an unsupported type; supported are {names}")
        elements = math.prod(shape)
        if not 0 < elements < 1 << 48 or shape[-1] % kind.block:
            raise CheckpointError(
                f"{where} has the shape {list(shape)}; rows of {kind.name} are multiples of "
                f"{kind.block}"
            )
        return GgufTensor(name, shape, kind, offset, kind.size_bytes(elements))

    def _value(self, key: str) -> Any:
        kind = self.integer(_U32)
        if kind == _STRING:
            return self.text(TEXT_LIMIT_BYTES)
        if kind == _ARRAY:
            return self._skip_array(key)
        layout = _SCALAR_STRUCTS.get(kind)
        if layout is None:
            raise CheckpointError(f"{self.where}: {key[:80]!r} is of the unknown type {kind}")
        return self._scalar(layout)

    def _skip_array(self, key: str) -> ArrayRef:
        kind, count = self.integer(_U32), self.integer(_U64)
        if count > ARRAY_LIMIT or (kind != _STRING and kind not in _SCALARS):
            raise CheckpointError(
                f"{self.where}: {key[:80]!r} is an array of {count} elements of type {kind}; "
                f"at most {ARRAY_LIMIT} numbers or strings are read"
            )
        start = self.position
        if kind != _STRING:
            self._advance(count * _SCALAR_STRUCTS[kind].size)
            return ArrayRef(kind, count, start, self.position)
        position, last, data, unpack = start, len(self.data) - 8, self.data, _U64.unpack_from
        for _ in range(count):
            if position > last:
                raise _EndOfData
            position += 8 + unpack(data, position)[0]
        self._advance(position - start)
        return ArrayRef(kind, count, start, position)

    def _scalar(self, layout: struct.Struct) -> Any:
        return layout.unpack_from(self.data, self._advance(layout.size))[0]

    def _advance(self, count: int) -> int:
        """Step over `count` bytes and return where they began."""
        start = self.position
        if count > len(self.data) - start:
            raise _EndOfData
        self.position = start + count
        return start


def _place(
    infos: list[GgufTensor], data_start: int, alignment: int, file: DataFile
) -> dict[str, GgufTensor]:
    """Turn offsets into positions in the file; check ranges, overlaps and names."""
    found: dict[str, GgufTensor] = {}
    for info in infos:
        where = f"{file.path}: tensor {info.name!r}"
        if info.name in found:
            raise CheckpointError(f"{where} is listed twice")
        offset = data_start + info.offset
        if info.offset % alignment:
            raise CheckpointError(f"{where} lies at {info.offset}, not aligned to {alignment}")
        if offset + info.size_bytes > file.size_bytes:
            raise CheckpointError(
                f"{where} ends at byte {offset + info.size_bytes} of a file of {file.size_bytes}; "
                "the file is truncated"
            )
        found[info.name] = GgufTensor(info.name, info.shape, info.kind, offset, info.size_bytes)
    check_overlaps(str(file.path), [(t.offset, t.size_bytes, t.name) for t in found.values()])
    return found


def open_header(path: Path) -> tuple[DataFile, GgufHeader]:
    """Open a file and parse its header."""
    file = DataFile(path)
    try:
        return file, GgufHeader(file)
    except BaseException:
        file.close()
        raise
