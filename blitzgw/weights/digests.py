"""The two digests of a blob: BLAKE3, which nobody can forge, and the lane sum.

Any device computes the latter, at about the speed of its memory:

    lanes = Σ w_i · (2i + 1) mod 2⁶⁴

over the blob's 32-bit little-endian words w_i, the last one filled up with zeros. The factors are
odd, so a change of any one word changes the sum, and so does an exchange of two different words
less than 2³² places apart. It guards against accidents, not against malice.
"""

from __future__ import annotations

import numpy as np
from blake3 import blake3

from blitzgw.core.manifest import BlobDigest

Buffer = bytes | bytearray | memoryview
"""A contiguous run of bytes; memoryviews may be of any element type."""

CHUNK_WORDS = 1 << 15
"""Words summed at a time: with their factors, 64 bits each, they stay in a core's L2 cache. Fewer
cost more calls of numpy, some microseconds with the GIL each."""

WORD_BYTES = 4
CHUNK_BYTES = CHUNK_WORDS * WORD_BYTES
_ODD = np.arange(1, 2 * CHUNK_WORDS, 2, dtype=np.uint64)

THREADED_BYTES = 64 << 20
"""Bytes at a time where several threads share them."""
MODULUS = 1 << 64


def lane_sum(buffer: Buffer, start_word: int = 0) -> int:
    """Return the part of a lane sum that a run of bytes has, which begins at word `start_word`.

    Sums of adjacent runs add up modulo 2⁶⁴; only the last may be no whole number of words.
    Releases the GIL while it computes.
    """
    data = memoryview(buffer).cast("B")
    whole = len(data) - len(data) % WORD_BYTES
    words = np.frombuffer(data[:whole], np.dtype("<u4"))
    lanes = np.empty(min(CHUNK_WORDS, words.size), np.uint64)
    total = 0
    for start in range(0, words.size, CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        part = lanes[: chunk.size]
        np.copyto(part, chunk)
        total += int(np.dot(part, _ODD[: chunk.size]))
        total += 2 * (start_word + start) * int(part.sum())
    if whole < len(data):
        last = int.from_bytes(data[whole:], "little")
        total += last * (2 * (start_word + words.size) + 1)
    return total % MODULUS


def blake3_digest(buffer: Buffer, threads: int = 1) -> bytes:
    """Return the 32 bytes of BLAKE3. Releases the GIL; several threads pay from megabytes on."""
    return blake3(memoryview(buffer).cast("B"), max_threads=threads).digest()


def blob_digest(buffer: Buffer, threads: int = 1) -> BlobDigest:
    """Return size and digests of a whole blob."""
    hasher = BlobHasher(threads)
    hasher.update(buffer)
    return hasher.finish()


class BlobHasher:
    """Computes a blob's digests from its bytes as they come, in order."""

    def __init__(self, threads: int = 1) -> None:
        """Begin with no bytes. `threads` are used for BLAKE3 within an update of megabytes."""
        self.size_bytes = 0
        self._blake3 = blake3(max_threads=threads)
        self._step = CHUNK_BYTES if threads == 1 else THREADED_BYTES
        self._lanes = 0
        self._rest = b""

    def update(self, buffer: Buffer) -> None:
        """Take the next bytes, any number of them. Releases the GIL for large ones.

        Both digests go over a chunk before the next, so that the second finds it in the cache.
        """
        data = memoryview(buffer).cast("B")
        for start in range(0, len(data), self._step):
            chunk = data[start : start + self._step]
            self._blake3.update(chunk)
            self._add_lanes(chunk)
            self.size_bytes += len(chunk)

    def finish(self) -> BlobDigest:
        """Return the digests of all bytes so far; more may follow."""
        lanes = self._lanes
        if self._rest:
            lanes += lane_sum(self._rest, self.size_bytes // WORD_BYTES)
        return BlobDigest(self.size_bytes, self._blake3.digest(), lanes % MODULUS)

    def _add_lanes(self, chunk: memoryview) -> None:
        """Add whole words; what is left of one waits for the bytes that follow."""
        position = self.size_bytes - len(self._rest)
        if self._rest:
            missing = WORD_BYTES - len(self._rest)
            self._rest += chunk[:missing]
            chunk = chunk[missing:]
            if len(self._rest) < WORD_BYTES:
                return
            self._lanes += lane_sum(self._rest, position // WORD_BYTES)
            self._rest = b""
            position += WORD_BYTES
        whole = len(chunk) - len(chunk) % WORD_BYTES
        self._lanes += lane_sum(chunk[:whole], position // WORD_BYTES)
        self._rest = bytes(chunk[whole:])
