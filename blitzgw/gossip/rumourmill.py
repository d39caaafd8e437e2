"""What is still to be told: least told first, newest first, a bounded number of times each."""

from __future__ import annotations

from collections.abc import Hashable

from blitzgw.core.rumours import Rumour, SyncOffer, SyncRest, Update
from blitzgw.wire import dump

MISFITS_MAX = 3
"""How many parts that no longer fit are passed over before a packet counts as full."""


class Part:
    """Something to tell, its encoded size in bytes, and how often it has been told.

    `what` None tells nothing but makes packets go out, which carry the sender's digest.
    """

    __slots__ = ("size_bytes", "times", "what")

    def __init__(self, what: Rumour | Update | None) -> None:
        self.what = what
        self.size_bytes = encoded_bytes(what)
        self.times = 0


def encoded_bytes(what: Rumour | Update | None) -> int:
    """Return what a part adds to a packet, in bytes.

    Measured in a message around it: tag, fields and array headers take 3 or 4 bytes.
    """
    if what is None:
        return 0
    if isinstance(what, Update):
        return len(dump(SyncRest((what,)))) - 3
    return len(dump(SyncOffer((what,), ()))) - 4


class Load:
    """Up to `packets` packets being filled, each with `room_bytes` for its parts."""

    __slots__ = ("_left_bytes", "_packets", "_room_bytes", "packed")

    def __init__(self, room_bytes: int, packets: int) -> None:
        self.packed: list[tuple[list[Rumour], list[Update]]] = [([], [])]
        self._left_bytes = self._room_bytes = room_bytes
        self._packets = packets

    def add(self, what: Rumour | Update | None, size_bytes: int) -> bool:
        """Put a part into the last packet or a new one; return whether it found room."""
        if size_bytes > self._left_bytes:
            if len(self.packed) >= self._packets or size_bytes > self._room_bytes:
                return False
            self.packed.append(([], []))
            self._left_bytes = self._room_bytes
        self._left_bytes -= size_bytes
        if isinstance(what, Update):
            self.packed[-1][1].append(what)
        elif what is not None:
            self.packed[-1][0].append(what)
        return True


class RumourMill:
    """Parts by key; a new one takes the place of an older one with the same key."""

    def __init__(self) -> None:
        self._rows: list[dict[Hashable, Part]] = [{}]
        self._parts: dict[Hashable, Part] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._parts

    def put(self, key: Hashable, part: Part) -> None:
        """Tell this from now on."""
        self.drop(key)
        self._parts[key] = part
        self._rows[0][key] = part

    def drop(self, key: Hashable) -> None:
        """Tell this no more; an unknown key is ignored."""
        part = self._parts.pop(key, None)
        if part is not None:
            del self._rows[part.times][key]

    def draw(self, load: Load, limit: int) -> int:
        """Move parts into `load` until it is full; return how many.

        Each of them counts as told once more, and is dropped when it has been told `limit` times.
        """
        drawn: list[tuple[Hashable, Part]] = []
        misfits: list[tuple[Hashable, Part]] = []
        for row in self._rows:
            while row and len(misfits) < MISFITS_MAX:
                key, part = row.popitem()
                fits = load.add(part.what, part.size_bytes)
                (drawn if fits else misfits).append((key, part))
        for key, part in reversed(misfits):
            self._rows[part.times][key] = part
        for key, part in reversed(drawn):
            self._told(key, part, limit)
        return len(drawn)

    def _told(self, key: Hashable, part: Part, limit: int) -> None:
        part.times += 1
        if part.times >= limit:
            del self._parts[key]
            return
        if part.times == len(self._rows):
            self._rows.append({})
        self._rows[part.times][key] = part

    def check_integrity(self) -> None:
        """Raise AssertionError if the rows contradict the parts."""
        assert sum(map(len, self._rows)) == len(self._parts)
        for times, row in enumerate(self._rows):
            for key, part in row.items():
                assert self._parts[key] is part
                assert part.times == times
