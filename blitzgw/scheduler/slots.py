"""Gives KV slots to sequences, and finds prefixes in them that need not be computed again.

A sequence occupies one slot and uses its blocks from the first on. A slot is *active* while a
sequence occupies it; then *retained* while it holds named blocks that a later sequence may reuse,
else *blank*. A slot's account is the largest number of blocks touched since it was last released:
memory that the worker really holds, to within a run of positions and a huge page where these are
allowed (`KvGeometry.huge_pages`). So blank slots cost budget too until they are released.

All of it rests on the worker's order of execution (core/step.py): what is handed out here is first
used by the step that is posted next, after everything posted before. Within that step releases come
before copies, so a slot that is copied from is pinned until `flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blitzgw.core.record import record
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.prefix import PrefixIndex, block_name, root
from blitzgw.scheduler.ranking import Rank, Ranking


@record(frozen=True, slots=True)
class Allocation:
    """A sequence's block table, what to copy into it first, and the tokens that need no compute."""

    blocks: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """Slots by state, blocks in use by sequences, blocks touched in all, evictions so far."""

    active_slots: int
    retained_slots: int
    active_blocks: int
    touched_blocks: int
    evictions: int


class _Slot:
    """`names[:published]` are held for sure; names beyond are known but not yet computed.

    While `withheld` nothing is published: some layers' KV has yet to arrive.
    """

    __slots__ = (
        "account",
        "index",
        "names",
        "owner",
        "parent",
        "published",
        "stamp",
        "used",
        "withheld",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.owner: int | None = None
        self.account = 0
        self.used = 0
        self.parent = b""
        self.names: list[bytes] = []
        self.published = 0
        self.stamp = 0
        self.withheld = False


_Place = Callable[[int, list[bytes], int], tuple[_Slot, _Slot | None] | None]
"""(sequence, matched names, blocks needed) → (its slot, the slot to copy from), or None."""


def blocks_for(n_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-n_tokens // BLOCK_TOKENS)


class SlotAllocator:
    """The slots of one instance."""

    def __init__(self, geometry: KvGeometry, budget: KvBudget, *, prefix_caching: bool) -> None:
        self.geometry = geometry
        self.prefix_caching = prefix_caching
        self._budget = budget
        self._slots = [_Slot(i) for i in range(geometry.slots)]
        self._ranking = Ranking(geometry.slots, self._is_idle)
        self._owned: dict[int, _Slot] = {}
        self._index = PrefixIndex()
        self._pinned: set[int] = set()
        self._releases: list[tuple[int, int]] = []
        self._evictions = 0
        self._touched_blocks = 0
        self.active_blocks = 0
        """In the slots of sequences, all that these slots have touched."""
        # Cheapest first: lose nothing, lose nothing but copy, lose a longer prefix, reuse nothing.
        self._places: tuple[_Place, ...] = (self._continue, self._copy, self._overwrite)
        budget.members.append(self)

    @property
    def has_releases(self) -> bool:
        """Whether memory has been accounted as released that the worker does not know of."""
        return bool(self._releases)

    def begin(self, seq: int, tokens: Sequence[int], salt: str, n_tokens: int) -> Allocation | None:
        """Give a sequence a slot with room for `n_tokens` of KV; None when there is no memory.

        `tokens` are those known; the last of them is always left to compute.
        """
        need = blocks_for(n_tokens)
        parent = root(salt)
        names = self._index.match(tokens, parent) if self.prefix_caching else []
        for place in self._places if names else ():
            found = place(seq, names, need)
            if found is not None:
                return self._settle(*found, parent, names)
        slot = self._start_afresh(seq, need)
        return self._settle(slot, None, parent, []) if slot is not None else None

    def extend(self, seq: int, n_tokens: int) -> tuple[int, ...] | None:
        """Return the ids of the blocks to append so that `n_tokens` fit; None without memory."""
        slot = self._owned[seq]
        need = blocks_for(n_tokens)
        assert need <= self.geometry.blocks_per_slot, f"{n_tokens} tokens in one slot"
        if not self._touch(slot, need):
            return None
        first = slot.index * self.geometry.blocks_per_slot
        added = tuple(range(first + slot.used, first + need))
        slot.used = max(slot.used, need)
        return added

    def commit(self, seq: int, tokens: Sequence[int], computed: int) -> None:
        """Publish the full blocks among the first `computed` tokens: a step has computed them."""
        if not self.prefix_caching:
            return
        slot = self._owned[seq]
        if slot.withheld:
            return
        names = slot.names
        full = computed // BLOCK_TOKENS
        for i in range(len(names), full):
            start = i * BLOCK_TOKENS
            parent = names[-1] if names else slot.parent
            names.append(block_name(parent, tokens[start : start + BLOCK_TOKENS]))
        for i in range(slot.published, full):
            self._index.add(names[i], slot.index)
        slot.published = max(slot.published, full)

    def withhold(self, seq: int, *, withheld: bool = True) -> None:
        """Publish nothing of a sequence, whatever is committed, until told otherwise."""
        self._owned[seq].withheld = withheld

    def blocks(self, seq: int) -> tuple[int, ...]:
        """Return a sequence's block table."""
        slot = self._owned[seq]
        first = slot.index * self.geometry.blocks_per_slot
        return tuple(range(first, first + slot.used))

    def named_tokens(self, seq: int) -> int:
        """Return how many tokens a sequence has found or computed that others may copy."""
        return len(self._owned[seq].names) * BLOCK_TOKENS

    def has_prefix(self, tokens: Sequence[int], salt: str) -> bool:
        """Tell whether `begin` would find at least one block."""
        return self.prefix_caching and self._index.holds_first(tokens, root(salt))

    def free(self, seq: int) -> None:
        """Take a slot back; what it holds can be reused until it is evicted or overwritten."""
        slot = self._owned.pop(seq)
        slot.owner = None
        slot.used = 0
        slot.withheld = False
        del slot.names[slot.published :]
        slot.stamp = self._budget.next_stamp() if slot.published else 0
        self._ranking.put((slot.stamp, slot.index))
        self._account_active(-slot.account)

    def flush(self) -> tuple[tuple[int, int], ...]:
        """Return the releases for the step that is posted now; what it copies from is unpinned."""
        releases = tuple(self._releases)
        self._releases.clear()
        self._pinned.clear()
        return releases

    def close(self) -> None:
        """Return all memory to the budget: the instance is gone."""
        for seq in list(self._owned):
            self.free(seq)
        self._budget.give_back(self._touched_blocks * self.geometry.block_bytes)
        self._budget.members.remove(self)

    def evictable_bytes(self) -> int:
        """Return the bytes in slots that no sequence occupies and no pending copy reads."""
        return sum(slot.account for slot in self._idle()) * self.geometry.block_bytes

    def oldest_stamp(self) -> int | None:
        """Return when the least recently used evictable slot was freed (0: it holds nothing)."""
        return min((slot.stamp for slot in self._idle() if slot.account), default=None)

    def evict_oldest(self) -> None:
        """Forget and release the least recently used evictable slot."""
        slot = min((slot for slot in self._idle() if slot.account), key=lambda slot: slot.stamp)
        self._forget(slot, 0)
        self._release(slot)
        self._evictions += 1

    def _continue(
        self, seq: int, names: list[bytes], need: int
    ) -> tuple[_Slot, _Slot | None] | None:
        """Go on in a slot that holds just this prefix and has touched no more than is needed."""
        for index in self._index.holders(names[-1]):
            slot = self._slots[index]
            exact = slot.published == len(names) and slot.account <= need
            if exact and slot.owner is None and self._occupy(slot, seq, need):
                return slot, None
        return None

    def _copy(self, seq: int, names: list[bytes], need: int) -> tuple[_Slot, _Slot | None] | None:
        """Copy the prefix into another slot; its holder keeps it."""
        source = self._slots[next(iter(self._index.holders(names[-1])))]
        newly_pinned = source.index not in self._pinned
        self._pinned.add(source.index)
        slot = self._start_afresh(seq, need)
        if slot is not None:
            return slot, source
        if newly_pinned:
            self._pinned.discard(source.index)
        return None

    def _overwrite(
        self, seq: int, names: list[bytes], need: int
    ) -> tuple[_Slot, _Slot | None] | None:
        """Go on in a slot that holds this prefix, at the price of what it holds beyond."""
        for index in self._index.holders(names[-1]):
            slot = self._slots[index]
            if slot.owner is None and self._occupy(slot, seq, need):
                self._forget(slot, len(names))
                return slot, None
        return None

    def _start_afresh(self, seq: int, need: int) -> _Slot | None:
        """Use the lowest blank slot, else the least recently used retained one."""
        index = self._ranking.first(but=self._pinned)
        if index is None or not self._budget.could_take(need * self.geometry.block_bytes):
            return None
        slot = self._slots[index]
        self._forget(slot, 0)
        if slot.account > need:
            self._release(slot)  # or every slot would come to cost what its longest sequence did
        return slot if self._occupy(slot, seq, need) else None

    def _settle(
        self, slot: _Slot, source: _Slot | None, parent: bytes, names: list[bytes]
    ) -> Allocation:
        """Make the slot the sequence's own and say what the worker has to do."""
        per_slot = self.geometry.blocks_per_slot
        first = slot.index * per_slot
        copies: tuple[tuple[int, int], ...] = ()
        if source is not None:
            # published once a step has completed: nobody copies from a copy that may fail
            source_first = source.index * per_slot
            copies = tuple((source_first + i, first + i) for i in range(len(names)))
        slot.parent = parent
        slot.names = names
        blocks = tuple(range(first, first + slot.used))
        return Allocation(blocks, copies, len(names) * BLOCK_TOKENS)

    def _idle(self) -> list[_Slot]:
        pinned = self._pinned
        return [slot for slot in self._slots if slot.owner is None and slot.index not in pinned]

    def _is_idle(self, rank: Rank) -> bool:
        slot = self._slots[rank[1]]
        return slot.owner is None and slot.stamp == rank[0]

    def _occupy(self, slot: _Slot, seq: int, need: int) -> bool:
        """Give a slot to a sequence with room for `need` blocks; False leaves it idle."""
        slot.owner = seq  # before touching, lest it be evicted to make room for itself
        self._account_active(slot.account)
        if not self._touch(slot, need):
            slot.owner = None
            self._ranking.put((slot.stamp, slot.index))
            self._account_active(-slot.account)
            return False
        slot.used = need
        self._owned[seq] = slot
        return True

    def _touch(self, slot: _Slot, need: int) -> bool:
        """Account for the first `need` blocks of an active slot."""
        more = need - slot.account
        if more <= 0:
            return True
        if not self._budget.take(more * self.geometry.block_bytes):
            return False
        self._account_active(more)
        self._touched_blocks += more
        slot.account = need
        return True

    def _account_active(self, blocks: int) -> None:
        """Count blocks into those that sequences occupy, or out of them."""
        self.active_blocks += blocks
        self._budget.active_bytes += blocks * self.geometry.block_bytes

    def _forget(self, slot: _Slot, keep: int) -> None:
        """Take the names of a slot beyond the first `keep` out of the index."""
        self._index.remove(slot.names[keep : slot.published], slot.index)
        del slot.names[keep:]
        slot.published = min(slot.published, keep)
        if slot.stamp and not slot.published:
            slot.stamp = 0
            self._ranking.put((0, slot.index))

    def _release(self, slot: _Slot) -> None:
        per_slot = self.geometry.blocks_per_slot
        self._releases.append((slot.index * per_slot, per_slot))
        self._budget.give_back(slot.account * self.geometry.block_bytes)
        self._touched_blocks -= slot.account
        slot.account = 0

    def statistics(self) -> SlotStatistics:
        """Return counts for metrics and the router."""
        return SlotStatistics(
            active_slots=len(self._owned),
            retained_slots=sum(1 for s in self._slots if s.owner is None and s.published),
            active_blocks=self.active_blocks,
            touched_blocks=self._touched_blocks,
            evictions=self._evictions,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        held = set()
        for slot in self._slots:
            assert 0 <= slot.used <= slot.account <= self.geometry.blocks_per_slot
            assert slot.published <= len(slot.names)
            if slot.owner is not None:
                assert self._owned[slot.owner] is slot
            else:
                assert slot.used == 0
                assert len(slot.names) == slot.published <= slot.account
                assert (slot.stamp > 0) == (slot.published > 0)
            for name in slot.names[: slot.published]:
                held.add(name)
                assert slot.index in self._index.holders(name)
        assert self.active_blocks == sum(slot.account for slot in self._owned.values())
        assert self._touched_blocks == sum(slot.account for slot in self._slots)
        first = min(self._idle(), key=lambda slot: (slot.stamp, slot.index), default=None)
        assert self._ranking.first(but=self._pinned) == (first and first.index)
        assert len(held) == len(self._index)
        assert len(self._owned) == sum(1 for slot in self._slots if slot.owner is not None)
