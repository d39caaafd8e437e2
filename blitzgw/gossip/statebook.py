"""What every member has published, and who lacks what: entries by key, versions, digests.

A holder's entries are those of their origin or older ones, so its sum of versions reaches the
origin's only when it has them all: comparing with the origin is exact, also at an earlier version
of which the origin remembers the sum. Two others may by chance have equal sums of different
entries; the origin's next packet tells each of them what it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from blitzgw.core.rumours import Digest, Update
from blitzgw.gossip.members import NUMBER_MAX

ENTRY_MAX_BYTES = 32 << 10
"""A value. Facts are some hundred bytes; one that does not fit into a datagram travels by sync."""

KEY_MAX_CHARS = 256
"""Of a key: a kind, a slash and an id."""

STATE_MAX_BYTES = 256 << 10
"""Keys and values of one node: hundreds of instances. 4,096 full ones would come to 1 GiB."""

ENTRIES_MAX = 1024
"""Living entries of one node."""

TOMBSTONES_MAX = 4096
"""Entries of one node that are gone. Above, every holder lets go of the oldest, and so all hold
the same; a node would have to miss that many changes without being given up to keep a ghost."""

SYNC_UPDATES_MAX_BYTES = 8 << 20
"""Updates in one message of a sync, half of that message's limit; the next sync brings the rest."""

TOTALS_KEPT = 128
"""Versions of the own state of which the sum is remembered: some seconds of a node whose loads are
news twenty times a second. Whoever is further behind is sent everything."""

UPDATE_OVERHEAD_BYTES = 96
"""Boot id, version and framing of an update, generously."""


class NodeState:
    """The entries of one node. `full`: something was refused, so digests need not agree."""

    __slots__ = ("entries", "full", "n_gone", "size_bytes", "total", "version")

    def __init__(self) -> None:
        self.entries: dict[str, Update] = {}
        self.version = 0
        self.total = 0
        self.size_bytes = 0
        self.n_gone = 0
        self.full = False

    def apply(self, update: Update) -> bool:
        """Put in an entry; return False where it would be too much."""
        old = self.entries.get(update.key)
        size = self.size_bytes + _size_bytes(update) - (0 if old is None else _size_bytes(old))
        n_gone = self.n_gone + (update.value is None) - (old is not None and old.value is None)
        n_living = len(self.entries) + (old is None) - n_gone
        grows = old is None or update.value is not None
        if grows and (size > STATE_MAX_BYTES or n_living > ENTRIES_MAX):
            self.full = True
            return False
        self.entries[update.key] = update
        self.size_bytes, self.n_gone = size, n_gone
        self.version = max(self.version, update.version)
        self.total += update.version - (0 if old is None else old.version)
        if n_gone > TOMBSTONES_MAX:
            self._drop_oldest_tombstone()
        return True

    def _drop_oldest_tombstone(self) -> None:
        gone = (update for update in self.entries.values() if update.value is None)
        oldest = min(gone, key=lambda update: update.version)
        del self.entries[oldest.key]
        self.n_gone -= 1
        self.total -= oldest.version

    def check_integrity(self, boot: str) -> None:
        """Raise AssertionError if the sums contradict the entries."""
        updates = self.entries.values()
        assert all(u.boot == boot and u.key == key for key, u in self.entries.items())
        assert self.total == sum(u.version for u in updates)
        assert self.version >= max((u.version for u in updates), default=0)
        assert self.n_gone == sum(u.value is None for u in updates)
        assert self.size_bytes == sum(map(_size_bytes, updates))


class StateBook:
    """The states of all members by boot id, this node's own among them."""

    def __init__(self, me: str) -> None:
        self._me = me
        self.own = NodeState()
        self.digest = Digest(me, 0, 0)
        self.states: dict[str, NodeState] = {me: self.own}
        self._totals: dict[int, int] = {}
        """What whoever has all of the own state at a version has for a sum, for the last ones."""

    def publish(self, entries: Mapping[str, bytes | None]) -> list[Update]:
        """Change the own state; return what is new.

        Raises ValueError, and changes nothing, where a key or value is too large or there is too
        much of them.
        """
        updates = list(self._changes(entries))
        self._check_room(updates)
        for update in updates:
            self.own.apply(update)
            self._totals[update.version] = self.own.total
        while len(self._totals) > TOTALS_KEPT:
            del self._totals[next(iter(self._totals))]
        self.digest = Digest(self._me, self.own.version, self.own.total)
        return updates

    def _changes(self, entries: Mapping[str, bytes | None]) -> Iterator[Update]:
        version = self.own.version
        for key, value in entries.items():
            if not 0 < len(key) <= KEY_MAX_CHARS:
                raise ValueError(f"a key has 1 to {KEY_MAX_CHARS} characters, not {len(key)}")
            if value is not None and len(value) > ENTRY_MAX_BYTES:
                raise ValueError(f"{key}: {len(value)} bytes; the limit is {ENTRY_MAX_BYTES}")
            old = self.own.entries.get(key)
            if value != (None if old is None else old.value):
                version += 1
                yield Update(self._me, key, version, value)

    def _check_room(self, updates: list[Update]) -> None:
        entries = self.own.entries
        living = {key: _size_bytes(u) for key, u in entries.items() if u.value is not None}
        for update in updates:
            living[update.key] = _size_bytes(update)
            if update.value is None:
                del living[update.key]
        if len(living) > ENTRIES_MAX or sum(living.values()) > STATE_MAX_BYTES:
            raise ValueError(
                f"{len(living)} entries of {sum(living.values())} bytes are more than the limit "
                f"of {ENTRIES_MAX} and {STATE_MAX_BYTES}"
            )

    def state(self, boot: str) -> NodeState:
        """Return the state of a member, which is empty before it is heard of."""
        state = self.states.get(boot)
        if state is None:
            state = self.states[boot] = NodeState()
        return state

    def digest_of(self, boot: str) -> Digest:
        """Return what is held of a node."""
        state = self.states.get(boot)
        return Digest(boot, 0, 0) if state is None else Digest(boot, state.version, state.total)

    def is_news(self, update: Update) -> bool:
        """Whether an update is newer than what is held."""
        state = self.states.get(update.boot)
        old = None if state is None else state.entries.get(update.key)
        return old is None or update.version > old.version

    def forget(self, boot: str) -> None:
        """Let go of a node's state."""
        self.states.pop(boot, None)

    def digests(self) -> tuple[Digest, ...]:
        """Return what is held of every node of which something is held."""
        return tuple(self.digest_of(boot) for boot, state in self.states.items() if state.version)

    def lacking(self, theirs: Iterable[Digest]) -> tuple[Update, ...]:
        """Return what one who holds `theirs` lacks, as far as one message carries it."""
        known = {digest.boot: digest for digest in theirs}
        updates: list[Update] = []
        room = SYNC_UPDATES_MAX_BYTES
        for boot, state in self.states.items():
            for update in _newer(state, self._unless_holed(known.get(boot))):
                room -= _size_bytes(update) + UPDATE_OVERHEAD_BYTES
                if room < 0:
                    return tuple(updates)
                updates.append(update)
        return tuple(updates)

    def _unless_holed(self, theirs: Digest | None) -> Digest | None:
        """Return what another one holds; None where it lacks some of the own state before that."""
        if theirs is None or theirs.boot != self._me or theirs.version >= self.own.version:
            return theirs
        return theirs if self._totals.get(theirs.version) == theirs.total else None

    def check_integrity(self) -> None:
        """Raise AssertionError if any state contradicts itself."""
        assert self.states[self._me] is self.own
        assert self.digest == self.digest_of(self._me)
        for boot, state in self.states.items():
            state.check_integrity(boot)


def _newer(state: NodeState, theirs: Digest | None) -> Iterable[Update]:
    """Return what to send to a holder of `theirs`.

    One at the same version with another sum has a hole, and which it is only all entries tell. Of
    one at an earlier version only the origin knows that (`theirs` is None then). One at a later
    version gets nothing: it is first to send what it has.
    """
    if theirs is None:
        return state.entries.values()
    if theirs.version == state.version:
        return () if theirs.total == state.total else state.entries.values()
    return (u for u in state.entries.values() if u.version > theirs.version)


def is_sound(update: Update) -> bool:
    """Whether an update is within the limits that every origin keeps."""
    return (
        0 < len(update.key) <= KEY_MAX_CHARS
        and 0 < update.version <= NUMBER_MAX
        and (update.value is None or len(update.value) <= ENTRY_MAX_BYTES)
    )


def _size_bytes(update: Update) -> int:
    """Return what an entry counts towards `STATE_MAX_BYTES`; nothing once it is gone."""
    return 0 if update.value is None else len(update.key) + len(update.value)
