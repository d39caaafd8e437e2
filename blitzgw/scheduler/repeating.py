"""Steps that only repeat the last one: taken in one go, with the same result as one by one.

While nobody comes, waits for a place that may get free, or is done, each step gives everybody who
runs one more token, and the step that follows it is the same again. Whoever has carried out several
of them, a worker that samples more than once before it reports or a simulator, tells of them as one
event, `StepsRepeated`; then the cost is one pass over the sequences, not one for every step.
"""

from __future__ import annotations

from blitzgw.core.request import TokenEvent
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import StepsRepeated
from blitzgw.scheduler.fairness import OUTPUT_WEIGHT
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.live import Live
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase
from blitzgw.scheduler.slots import blocks_for


def repeats(planner: Planner, live: Live, budget: KvBudget) -> int:
    """Return how many of the next results may come together; 0: the next one comes alone.

    That is as long as none of their tokens ends a sequence, which only the worker knows.
    """
    lane = _only_lane(planner)
    if lane is None or not live.is_aside or not _is_uniform(planner, lane):
        return 0
    if any(seq.first_step_s is not None for seq in lane.decoding.values()):
        return 0
    most = min(seq.limit - seq.scheduled - 1 for seq in lane.decoding.values())
    free = (budget.total_bytes - budget.used_bytes) // lane.instance.kv.block_bytes
    room = free // len(lane.decoding) * BLOCK_TOKENS  # a block each lasts so long at least
    if most > room:
        headroom = min(seq.capacity - seq.scheduled for seq in lane.decoding.values())
        most = min(most, room + headroom)
    return max(0, most)


def is_steady(planner: Planner, live: Live) -> bool:
    """Tell whether the next step repeats the last one, unless somebody comes or is done."""
    lane = _only_lane(planner)
    if lane is None or lane.queue or lane.hosting or live.is_busy or not live.is_aside:
        return False
    return _is_uniform(planner, lane)


def _only_lane(planner: Planner) -> Lane | None:
    """Return the instance of the worker if there is one, and it does nothing but decode."""
    if len(planner.lanes) != 1 or planner.asides:
        return None
    (lane,) = planner.lanes.values()
    busy = lane.prefilling or lane.loading or lane.courses or lane.relays or lane.sending
    if busy or lane.has_news or not lane.decoding or planner.is_held(lane):
        return None
    if lane.hosting and (lane.queue or planner.is_starved(lane)):
        return None
    if lane.turnover.is_timing != bool(lane.queue):
        return None  # the next step is where it is seen that somebody waits, or nobody any more
    blocked = lane.n_running >= lane.max_running or planner.is_starved(lane)
    return None if lane.queue and not blocked else lane


def _is_uniform(planner: Planner, lane: Lane) -> bool:
    """Tell whether all steps in flight give a token to all who run, and had none but these."""
    if len(planner.in_flight) != planner.max_in_flight:
        return False
    running = [*lane.decoding.values()]
    for posted in planner.in_flight.values():
        if posted.chunks or posted.imported or posted.relays or posted.samplers != running:
            return False
    return True


def take_repeated(planner: Planner, event: StepsRepeated) -> list[TokenEvent]:
    """Take the results of so many steps; return the tokens of each sequence as one event.

    Raises ValueError for more than `repeats` allows, as far as that shows.
    """
    (lane,) = planner.lanes.values()
    count = len(event.durations_s)
    running = [*lane.decoding.values()]
    if len(event.tokens) != len(running) or any(len(run) != count for run in event.tokens):
        raise ValueError(f"{count} steps of {len(running)} sequences do not look like this")
    planner.renumber(count)
    lane.pace.observe_decoding(event.durations_s)
    events: list[TokenEvent] = []
    named: list[tuple[int, int]] = []
    for place, (seq, run) in enumerate(zip(running, event.tokens, strict=True)):
        if seq.scheduled + count >= seq.limit or seq.phase is not Phase.RUNNING:
            raise ValueError(f"{count} steps go beyond the end of {seq.id}")
        first = len(seq.tokens)
        seq.tokens.extend(run)
        seq.scheduled += count
        seq.account.charged += OUTPUT_WEIGHT * count
        need = blocks_for(seq.scheduled)
        if need * BLOCK_TOKENS > seq.capacity:
            added = lane.allocator.extend(seq.number, seq.scheduled)
            assert added is not None, f"no memory for {seq.id}"
            seq.capacity += len(added) * BLOCK_TOKENS
        if lane.instance.prefix_caching:
            whole = range(blocks_for(first) * BLOCK_TOKENS, first + count, BLOCK_TOKENS)
            named += [(computed - first, place) for computed in whole]
        events.append(TokenEvent(seq.id, seq.attempt, list(run)))
    for step, place in sorted(named):  # who has a block first is found first
        seq = running[place]
        lane.allocator.commit(seq.number, seq.tokens, len(seq.tokens) - count + step)
    return events
