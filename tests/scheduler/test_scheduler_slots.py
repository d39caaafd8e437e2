"""Which slot a sequence gets, what it may reuse there, and what that costs."""

from __future__ import annotations

import pytest

from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.prefix import block_name, root
from blitzgw.scheduler.slots import SlotAllocator

PROMPT = list(range(1, 41))  # two full blocks and a half


def allocator(
    kv_blocks: int = 100, slots: int = 4, *, caching: bool = True
) -> tuple[SlotAllocator, KvBudget]:
    budget = KvBudget(kv_blocks * 10)
    return SlotAllocator(KvGeometry(slots, 6, 10), budget, prefix_caching=caching), budget


def serve(slots: SlotAllocator, seq: int, tokens: list[int], salt: str = "") -> None:
    """Compute a sequence to its end and free it."""
    assert slots.begin(seq, tokens, salt, len(tokens)) is not None
    slots.flush()
    slots.commit(seq, tokens, len(tokens))
    slots.free(seq)


def test_a_table_is_consecutive_and_the_lowest_slot_comes_first():
    slots, budget = allocator()
    assert slots.begin(1, PROMPT, "", 41).blocks == (0, 1, 2)
    assert slots.begin(2, PROMPT, "", 16).blocks == (6,)
    slots.free(1)
    assert slots.begin(3, PROMPT, "", 17).blocks == (0, 1)
    assert budget.active_bytes == 30
    slots.check_integrity()


def test_extending_gives_the_next_blocks_only_when_they_are_needed():
    slots, budget = allocator(kv_blocks=2)
    slots.begin(1, PROMPT[:5], "", 6)
    assert slots.extend(1, 16) == ()
    assert slots.extend(1, 17) == (1,)
    assert slots.extend(1, 33) is None
    assert budget.used_bytes == 20


@pytest.mark.parametrize(
    ("n_tokens", "cached"), [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (40, 32)]
)
def test_the_last_token_of_a_prompt_is_always_computed(n_tokens, cached):
    slots, _ = allocator()
    serve(slots, 1, PROMPT)
    found = slots.begin(2, PROMPT[:n_tokens], "", n_tokens)
    assert found.cached_tokens == cached


def test_a_conversation_goes_on_in_its_own_slot_without_copies():
    slots, _ = allocator()
    serve(slots, 1, [7] * 20)
    serve(slots, 2, PROMPT)
    found = slots.begin(3, [*PROMPT, 50, 51], "", 43)
    assert found.copies == ()
    assert found.blocks[0] == 6
    assert found.cached_tokens == 32


def test_a_prefix_in_use_is_copied():
    slots, _ = allocator()
    slots.begin(1, PROMPT, "", 41)
    slots.commit(1, PROMPT, 40)
    found = slots.begin(2, [*PROMPT[:32], 9], "", 34)
    assert found.copies == ((0, 6), (1, 7))
    assert found.cached_tokens == 32
    slots.check_integrity()


def test_a_retained_slot_that_holds_more_is_copied_while_there_is_room_elsewhere():
    slots, _ = allocator()
    serve(slots, 1, PROMPT)
    assert slots.begin(2, [*PROMPT[:16], 9], "", 17).copies == ((0, 6),)


def test_and_is_overwritten_where_there_is_none():
    slots, _ = allocator(slots=1)
    serve(slots, 1, PROMPT)
    found = slots.begin(2, [*PROMPT[:16], 9], "", 17)
    assert (found.copies, found.blocks, found.cached_tokens) == ((), (0, 1), 16)
    slots.free(2)
    assert slots.begin(3, PROMPT, "", 40).cached_tokens == 16
    slots.check_integrity()


def test_what_is_not_computed_yet_is_not_reused():
    slots, _ = allocator()
    slots.begin(1, PROMPT, "", 41)
    slots.commit(1, PROMPT, 31)
    assert slots.begin(2, PROMPT, "", 41).cached_tokens == 16
    assert slots.begin(3, PROMPT, "", 41).copies == ((0, 12),)  # never a copy of a copy


def test_a_copy_counts_only_once_its_step_has_completed():
    slots, _ = allocator()
    slots.begin(1, PROMPT, "", 41)
    slots.commit(1, PROMPT, 40)
    slots.begin(2, PROMPT, "", 41)
    slots.free(2)  # its step failed
    assert slots.statistics().retained_slots == 0
    slots.begin(3, PROMPT, "", 41)
    slots.commit(3, PROMPT, 40)
    slots.free(3)
    assert slots.statistics().retained_slots == 1


def test_tenants_share_nothing():
    slots, _ = allocator()
    serve(slots, 1, PROMPT, salt="alice")
    assert slots.begin(2, PROMPT, "bob", 41).cached_tokens == 0
    assert slots.begin(3, PROMPT, "alice", 41).cached_tokens == 32


def test_a_name_stands_for_everything_before_it():
    one, other = block_name(root(""), [1] * 16), block_name(root("x"), [1] * 16)
    assert one != other
    assert block_name(one, [2] * 16) != block_name(other, [2] * 16)


def test_caching_can_be_switched_off():
    slots, _ = allocator(caching=False)
    serve(slots, 1, PROMPT)
    assert slots.begin(2, PROMPT, "", 41).cached_tokens == 0
    assert slots.statistics().retained_slots == 0


def test_the_least_recently_used_slot_is_evicted_and_released_whole():
    slots, budget = allocator(kv_blocks=7)
    serve(slots, 1, PROMPT)
    serve(slots, 2, [8] * 33)
    slots.flush()
    assert slots.begin(3, [9] * 17, "", 18) is not None
    assert slots.flush() == ((0, 6),)
    assert budget.used_bytes == 50
    assert slots.statistics().evictions == 1
    assert slots.begin(4, [8] * 40, "", 40).cached_tokens == 32


def test_eviction_goes_across_instances():
    budget = KvBudget(60)
    one = SlotAllocator(KvGeometry(4, 6, 10), budget, prefix_caching=True)
    two = SlotAllocator(KvGeometry(4, 6, 20), budget, prefix_caching=True)
    serve(one, 1, PROMPT)
    serve(two, 2, [5] * 16)
    assert two.begin(3, [6] * 17, "", 17) is not None
    assert one.flush() == ((0, 6),)
    assert two.flush() == ()
    one.close()
    assert budget.used_bytes == 60
    two.close()
    assert (budget.used_bytes, budget.active_bytes, budget.members) == (0, 0, [])


def test_a_slot_is_not_evicted_while_a_pending_copy_reads_it():
    slots, _ = allocator(kv_blocks=5)
    serve(slots, 1, PROMPT)
    assert slots.begin(2, [*PROMPT[:16], 9], "", 17).copies == ((0, 6),)
    assert slots.begin(3, [4] * 5, "", 5) is None
    slots.flush()
    assert slots.begin(3, [4] * 5, "", 5) is not None
    assert slots.flush() == ((0, 6),)


def test_a_slot_taken_over_costs_what_the_newcomer_needs():
    slots, budget = allocator(slots=1)
    serve(slots, 1, [7] * 90)
    assert budget.used_bytes == 60
    slots.begin(2, [8] * 10, "", 11)
    assert (budget.used_bytes, slots.flush()) == (10, ((0, 6),))


def test_a_refusal_changes_nothing():
    slots, budget = allocator(kv_blocks=4)
    serve(slots, 1, PROMPT)
    assert slots.begin(2, PROMPT, "", 90) is None
    assert (budget.used_bytes, budget.active_bytes, slots.flush()) == (30, 0, ())
    assert slots.begin(3, PROMPT, "", 41).cached_tokens == 32
    slots.check_integrity()


def test_a_refusal_leaves_nothing_pinned():
    slots, _ = allocator(kv_blocks=4)
    serve(slots, 1, PROMPT)
    assert slots.begin(2, PROMPT, "", 90) is None
    assert slots.begin(3, [9] * 64, "", 64) is not None


def test_slots_that_come_and_go_are_ranked_in_bounded_memory():
    slots, _ = allocator(slots=3)
    for seq in range(1, 200):
        serve(slots, seq, PROMPT)  # goes on in its own slot, while others are blank
        slots.check_integrity()
    assert len(slots._ranking._heap) <= 12
