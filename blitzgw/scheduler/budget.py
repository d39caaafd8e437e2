"""The KV memory of a worker in bytes, shared by the instances on it."""

from __future__ import annotations

from typing import Protocol


class Evictable(Protocol):
    """An allocator as the budget sees it."""

    def evictable_bytes(self) -> int:
        """Return the bytes that nobody uses and that could be given back now."""

    def oldest_stamp(self) -> int | None:
        """Return when the least recently used of them was freed; None if there are none."""

    def evict_oldest(self) -> None:
        """Give those back, through `KvBudget.give_back`."""


class KvBudget:
    """Counts bytes; evicts what was used least recently, of whichever instance it is.

    `used_bytes` is the memory that slots have touched, `active_bytes` the part in the slots of
    running sequences; the difference can be evicted.
    """

    def __init__(self, total_bytes: int) -> None:
        if total_bytes < 0:
            raise ValueError(f"a KV budget of {total_bytes} bytes")
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.active_bytes = 0
        self.members: list[Evictable] = []
        self._stamp = 0

    @property
    def available_bytes(self) -> int:
        """Return what running sequences could still get if everything else were evicted."""
        return self.total_bytes - self.active_bytes

    def next_stamp(self) -> int:
        """Return a number greater than all before: the time axis of least recent use."""
        self._stamp += 1
        return self._stamp

    def could_take(self, size_bytes: int) -> bool:
        """Tell whether so much is free or can be evicted now."""
        free = self.total_bytes - self.used_bytes
        return (
            free >= size_bytes
            or free + sum(member.evictable_bytes() for member in self.members) >= size_bytes
        )

    def take(self, size_bytes: int) -> bool:
        """Account for newly touched memory, evicting as needed; False leaves all as it was."""
        if not self.could_take(size_bytes):
            return False
        self._evict_until_free(size_bytes)
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Account for memory that the worker is told to release."""
        self.used_bytes -= size_bytes

    def _evict_until_free(self, size_bytes: int) -> None:
        while self.total_bytes - self.used_bytes < size_bytes:
            stamps = [(member.oldest_stamp(), member) for member in self.members]
            held = [(stamp, i) for i, (stamp, _) in enumerate(stamps) if stamp is not None]
            self.members[min(held)[1]].evict_oldest()
