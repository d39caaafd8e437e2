"""BLAKE3 of bytes that arrive bit by bit, many blobs at once. For one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class _Growing:
    round: int
    hasher: blake3 = field(default_factory=blake3)


class GrowingHashes:
    """One hash for each blob that is under way, over what `read(index, start, stop)` gives."""

    def __init__(self, read: Callable[[int, int, int], memoryview]) -> None:
        self._read = read
        self._under_way: dict[int, _Growing] = {}

    def add(self, index: int, round_: int, start: int, stop: int) -> None:
        """Hash `[start, stop)` of a blob: what follows the bytes before, or begins a new round."""
        growing = self._under_way.get(index)
        if growing is None or growing.round != round_:
            growing = self._under_way[index] = _Growing(round_)
        growing.hasher.update(self._read(index, start, stop))  # without the GIL

    def digest(self, index: int) -> bytes:
        """Return the hash of what was added of a blob."""
        return growing.hasher.digest() if (growing := self._under_way.get(index)) else b""

    def forget(self, index: int) -> None:
        """Let go of a blob."""
        self._under_way.pop(index, None)
