"""Number formats: float32, float16 and bfloat16 into one another, in numpy.

numpy has no bfloat16: its elements are handled as the upper halves of float32 bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 16
"""Elements converted at a time: a few float32 copies of them fit into a core's L2 cache."""


def convert(raw: Bytes, source: Dtype, target: Dtype, out: Bytes) -> None:
    """Convert packed elements of `source` into packed elements of `target`.

    Raises CheckpointError where a finite number does not fit into float16.
    """
    if source is target:
        out[:] = raw
        return
    values = raw.view(_storage(source))
    width = target.size_bytes
    for start in range(0, values.size, CHUNK_ELEMENTS):
        chunk = values[start : start + CHUNK_ELEMENTS]
        stop = start + chunk.size
        store(widen(chunk, source), target, out[start * width : stop * width])


def widen(values: NDArray[Any], source: Dtype) -> F32:
    """Return stored elements as float32; exact."""
    if source is Dtype.BFLOAT16:
        bits = values.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return values.astype(np.float32, copy=False)


def store(values: F32, target: Dtype, out: Bytes, *, finite: bool = False) -> None:
    """Round float32 to `target`, to nearest even. `finite`: the caller knows of no NaN."""
    view: NDArray[Any] = out.view(_storage(target))
    if target is Dtype.BFLOAT16:
        _to_bfloat16(values, view, finite)
    elif target is Dtype.FLOAT16:
        with np.errstate(over="raise", invalid="ignore"):
            try:
                view[:] = values
            except FloatingPointError:
                raise CheckpointError(
                    "a weight is beyond the range of float16 (±65504); "
                    "use bfloat16 or float32 for this model"
                ) from None
    else:
        view[:] = values


def _to_bfloat16(values: F32, out: NDArray[np.uint16], finite: bool) -> None:
    """Add half a unit in the last place, less one bit unless the kept part is odd, and cut.

    The carry goes from the mantissa into the exponent, which is what rounding up to the next
    power of two (or to infinity) means. A NaN could be carried away, so NaNs are set afterwards.
    """
    bits = values.view(np.uint32)
    rounded = np.right_shift(bits, np.uint32(16))
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    np.copyto(out, rounded, casting="unsafe")
    if not finite:
        nan = np.isnan(values)
        if nan.any():
            out[nan] = 0x7FC0


def _storage(dtype: Dtype) -> type[np.float32 | np.float16 | np.uint16]:
    if dtype is Dtype.BFLOAT16:
        return np.uint16
    return np.float32 if dtype is Dtype.FLOAT32 else np.float16
