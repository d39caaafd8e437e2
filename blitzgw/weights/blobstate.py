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
    alone may write to it and move its prefix, None for nobody. `gated`: a quicker sum of it decides
    whether it is `checked`, before its hash does; `proven`: by its hash.
    """

    digest: BlobDigest
    resident: int = 0
    hashed: int = 0
    round: int = 0
    checked: bool = False
    gated: bool = False
    proven: bool = False
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

    @property
    def awaits_gate(self) -> bool:
        """Whether all of it is there, and its quicker sum is to be taken."""
        return self.is_whole and self.gated and not self.checked

    def empty(self) -> None:
        """Forget all bytes, and what was known of them."""
        self.resident = self.hashed = 0
        self.round += 1
        self.source = ""
        self.checked = self.gated = self.proven = False
        if self.changed is not None:
            self.changed.notify_all()


@dataclass(frozen=True, slots=True)
class Turn:
    """What the thread does next: hash `[start, stop)` of a blob, in its round."""

    index: int
    round: int
    start: int
    stop: int
    is_last: bool
    trusted: bool = False
    is_gate: bool = False
    """Not to hash, but to take the quicker sum of all of it."""
