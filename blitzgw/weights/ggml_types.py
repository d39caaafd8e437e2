"""GGML's tensor types, and how their blocks become float32.

The formulas of Q4_0, Q4_1 and Q8_0 are ggml's; they are computed here because `gguf.quants` works
on 16 rows at a time, which makes Python itself the bottleneck and threads useless. All other
types go through `gguf.quants`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights.convert import CHUNK_ELEMENTS, F32, Bytes, convert, store


@dataclass(frozen=True, slots=True)
class GgmlType:
    """`block` elements are packed into `block_bytes`."""

    id: int
    name: str
    block: int
    block_bytes: int

    def size_bytes(self, elements: int) -> int:
        """Return the bytes of that many elements, a multiple of `block`."""
        return elements // self.block * self.block_bytes


TYPES: dict[int, GgmlType] = {
    entry.id: entry
    for entry in (
        GgmlType(0, "F32", 1, 4),
        GgmlType(1, "F16", 1, 2),
        GgmlType(30, "BF16", 1, 2),
        GgmlType(2, "Q4_0", 32, 18),
        GgmlType(3, "Q4_1", 32, 20),
        GgmlType(6, "Q5_0", 32, 22),
        GgmlType(7, "Q5_1", 32, 24),
        GgmlType(8, "Q8_0", 32, 34),
        GgmlType(10, "Q2_K", 256, 84),
        GgmlType(11, "Q3_K", 256, 110),
        GgmlType(12, "Q4_K", 256, 144),
        GgmlType(13, "Q5_K", 256, 176),
        GgmlType(14, "Q6_K", 256, 210),
        GgmlType(16, "IQ2_XXS", 256, 66),
        GgmlType(17, "IQ2_XS", 256, 74),
        GgmlType(18, "IQ3_XXS", 256, 98),
        GgmlType(19, "IQ1_S", 256, 50),
        GgmlType(20, "IQ4_NL", 32, 18),
        GgmlType(21, "IQ3_S", 256, 110),
        GgmlType(22, "IQ2_S", 256, 82),
        GgmlType(23, "IQ4_XS", 256, 136),
        GgmlType(29, "IQ1_M", 256, 56),
        GgmlType(34, "TQ1_0", 256, 54),
        GgmlType(35, "TQ2_0", 256, 66),
        GgmlType(39, "MXFP4", 32, 17),
    )
}

_PLAIN = {"F32": Dtype.FLOAT32, "F16": Dtype.FLOAT16, "BF16": Dtype.BFLOAT16}


def plain_dtype(kind: GgmlType) -> Dtype | None:
    """Return the number format of a type that is not quantised."""
    return _PLAIN.get(kind.name)


def dequantise(raw: Bytes, kind: GgmlType, target: Dtype, out: Bytes) -> None:
    """Turn whole blocks into packed elements of `target`."""
    plain = _PLAIN.get(kind.name)
    if plain is not None:
        convert(raw, plain, target, out)
        return
    unpack = _OWN.get(kind.name)
    if unpack is None:
        store(_by_gguf(raw, kind), target, out)
        return
    blocks = raw.reshape(-1, kind.block_bytes)
    step = CHUNK_ELEMENTS // kind.block
    width = kind.block * target.size_bytes
    values = np.empty((min(step, len(blocks)), kind.block), np.float32)
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        part = values[: len(chunk)]
        finite = unpack(chunk, part)
        stop = start + len(chunk)
        store(part.reshape(-1), target, out[start * width : stop * width], finite=finite)


def _by_gguf(raw: Bytes, kind: GgmlType) -> F32:
    import gguf  # noqa: PLC0415  a fifth of a second, wanted for rare types only

    try:
        found: F32 = gguf.quants.dequantize(
            raw.reshape(-1, kind.block_bytes), gguf.GGMLQuantizationType(kind.id)
        )
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(f"tensors of type {kind.name} cannot be read ({error})") from error
    return found.reshape(-1)


_HALF = np.dtype("V16")


def _scales(blocks: Bytes, count: int) -> F32:
    """Return the float16 numbers that a block begins with, as columns."""
    packed = np.ascontiguousarray(blocks[:, : 2 * count])
    return packed.view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, out: F32) -> None:
    """Unpack 16 bytes into 32 numbers: the low halves, then the high ones.

    Halves are moved 16 bytes at a time and all of them converted in one run: numpy takes longer to
    begin with a row of 16 numbers than to convert it.
    """
    packed = np.ascontiguousarray(packed)
    halves = np.empty((len(packed), 2), _HALF)
    halves[:, 0] = (packed & np.uint8(0x0F)).view(_HALF)[:, 0]
    halves[:, 1] = (packed >> np.uint8(4)).view(_HALF)[:, 0]
    np.copyto(out, halves.view(np.uint8))


def _q4_0(blocks: Bytes, out: F32) -> bool:
    scale = _scales(blocks, 1)
    _nibbles(blocks[:, 2:], out)
    out -= np.float32(8)
    out *= scale
    return bool(np.isfinite(scale).all())


def _q4_1(blocks: Bytes, out: F32) -> bool:
    scales = _scales(blocks, 2)
    _nibbles(blocks[:, 4:], out)
    out *= scales[:, :1]
    out += scales[:, 1:]
    return bool(np.isfinite(scales).all())


def _q8_0(blocks: Bytes, out: F32) -> bool:
    scale = _scales(blocks, 1)
    levels: NDArray[Any] = blocks[:, 2:].view(np.int8)
    np.multiply(levels, scale, out=out)
    return bool(np.isfinite(scale).all())


_OWN: dict[str, Callable[[Bytes, F32], bool]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
"""Fill float32 values of (blocks, 32) and say whether all of them are finite."""
