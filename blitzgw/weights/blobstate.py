"""What a store knows of one blob, and what its thread does next."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from blitzgw.core.manifest import BlobDigest

HASH_BYTES = 4 << 20
"""Bytes hashed at once, and how many must have come before the thread is woken for them: about a
millisecond of work, against some 20 µs for a change of threads and the lock. After the last byte
of a blob at most this much is left to hash."""


@dataclass(slots=True, eq=False)
class BlobState:
    """One blob, under the store's lock. `changed` is of its own: nobody wakes for another's bytes.

    `round` counts how often it was emptied; a hash of an older round is worthless. `filler` is who
    alone may write to it and move its prefix, None for nobody.
    """

    digest: BlobDigest
    resident: int = 0
    hashed: int = 0
    round: int = 0
    checked: bool = False
    trusted: bool = False
    source: str = ""
    filler: str | None = None
    changed: threading.Condition | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the last byte has come."""
        return self.resident == self.digest.size_bytes

    @property
    def is_due(self) -> bool:
        """Whether there is enough to hash."""
        return self.is_whole or self.resident - self.hashed >= HASH_BYTES


@dataclass(frozen=True, slots=True)
class Turn:
    """What the thread does next: hash `[start, stop)` of a blob, in its round."""

    index: int
    round: int
    start: int
    stop: int
    is_last: bool
    trusted: bool
