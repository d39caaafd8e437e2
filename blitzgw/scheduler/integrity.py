"""Do the scheduler's books agree with each other? For tests and for `inspect`; costs O(all)."""

from __future__ import annotations

from collections import Counter

from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase, Sequence


def check_books(budget: KvBudget, planner: Planner, requests: dict[str, Sequence]) -> None:
    """Raise AssertionError at the first contradiction."""
    assert 0 <= budget.active_bytes <= budget.used_bytes <= budget.total_bytes
    active = used = 0
    for lane in planner.lanes.values():
        slots = lane.allocator.statistics()
        active += slots.active_blocks * lane.instance.kv.block_bytes
        used += slots.touched_blocks * lane.instance.kv.block_bytes
        _check_lane(lane, [seq for seq in requests.values() if seq.instance == lane.instance.id])
    assert (active, used) == (budget.active_bytes, budget.used_bytes)
    assert all(seq.instance in planner.lanes for seq in requests.values())
    _check_samples(planner, requests)
    assert not planner.has_begun


def _check_lane(lane: Lane, requests: list[Sequence]) -> None:
    lane.allocator.check_integrity()
    running = {id(seq) for seq in lane.running()}
    waiting = {id(seq) for seq in lane.queue.items()}
    assert len(running) == lane.n_running <= lane.max_running
    others = len(lane.sending) + len(lane.relays)
    assert lane.allocator.statistics().active_slots == lane.n_running + others
    assert len(waiting) == len(lane.queue)
    assert lane.queue.tokens == sum(len(seq.tokens) for seq in lane.queue.items())
    assert len(running) + len(waiting) <= len(requests)
    for seq in requests:
        assert (id(seq) in running) == (seq.phase is Phase.RUNNING)
        assert (id(seq) in waiting) == (seq.phase is Phase.WAITING)
        assert len(seq.tokens) + seq.samples_in_flight <= seq.limit
        assert seq.phase is not Phase.PREEMPTED or seq.samples_in_flight
        assert (seq.number > 0) == (seq.phase is Phase.RUNNING)
        assert not seq.number or seq.scheduled <= seq.capacity
    for number, seq in lane.decoding.items():
        assert (number, len(seq.tokens) + seq.samples_in_flight) == (seq.number, seq.scheduled + 1)
    for number, seq in lane.prefilling.items():
        assert number == seq.number
        assert seq.scheduled < len(seq.tokens) <= seq.capacity
        assert seq.samples_in_flight == 0
    assert all(seq.capacity % BLOCK_TOKENS == 0 for seq in requests)


def _check_samples(planner: Planner, requests: dict[str, Sequence]) -> None:
    """Check that every awaited sample belongs to a step in flight."""
    awaited = Counter(id(seq) for step in planner.in_flight.values() for seq in step.samplers)
    for seq in requests.values():
        assert seq.phase is not Phase.ENDED
        assert awaited[id(seq)] == seq.samples_in_flight
    for lane in planner.lanes.values():
        in_flight = (step for step in planner.in_flight.values() if step.lane is lane)
        assert lane.posted_prefill_tokens == sum(step.prefill_tokens for step in in_flight)
