"""What a paced device sends: its 64-bit values, and padding that makes them weigh what they should.

    payload   values, 8 bytes each, little endian; then padding up to `each_bytes` for each of them
    padding   words w_i = (d + i · PHI) mod 2⁶⁴ with d the xxh3 of the values, cut where it ends

So bytes that are missing, damaged, shifted or of another payload are noticed where they arrive.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from blitzgw.engine.noise import U64

TRAVELLING = np.dtype("<u8")
"""A KV entry or hidden state as raw bytes: 8, little endian."""

_PHI = np.uint64(0x9E3779B97F4A7C15)


def weight_bytes(each_bytes: int) -> int:
    """Return what a value weighs: as asked for, its own 8 bytes at least."""
    return max(each_bytes, TRAVELLING.itemsize)


def pack(values: U64, each_bytes: int) -> memoryview:
    """Return values of any shape, row major, as a payload in a buffer of its own."""
    size = values.size * TRAVELLING.itemsize
    data = np.empty(values.size * weight_bytes(each_bytes), np.uint8)
    data[:size].view(TRAVELLING)[:] = values.reshape(-1)
    if len(data) > size:
        data[size:] = _padding(data[:size], len(data) - size)
    return data.data


def unpack(data: bytes | memoryview, each_bytes: int) -> U64:
    """Return the values of a payload. Raises ValueError for bytes that are not one."""
    raw = np.frombuffer(data, np.uint8)
    count, rest = divmod(len(raw), weight_bytes(each_bytes))
    if rest:
        raise ValueError(f"{len(raw)} bytes are no values of {weight_bytes(each_bytes)}")
    size = count * TRAVELLING.itemsize
    if len(raw) > size and not np.array_equal(raw[size:], _padding(raw[:size], len(raw) - size)):
        raise ValueError("the padding is not what belongs to these values")
    return np.frombuffer(data, TRAVELLING, count).astype(np.uint64)


def _padding(values: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    words = np.arange(-(-size // TRAVELLING.itemsize), dtype=np.uint64)
    words *= _PHI
    words += np.uint64(xxhash.xxh3_64_intdigest(values.data))
    return words.astype(TRAVELLING, copy=False).view(np.uint8)[:size]
