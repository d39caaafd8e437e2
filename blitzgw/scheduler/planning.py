"""What runs next: turns between instances, memory for running sequences, admission.

No load starves anybody. Of the running sequences the best in rank is never preempted for another's
sake, and alone it fits (longer ones are refused or cut to the budget), so it ends; then the next
one is the best. A waiting request at the head of its queue is overtaken by nobody of its instance,
and by other instances no longer than it takes them to run dry (`_starved`).
"""

from __future__ import annotations

from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import Effect, RunStep
from blitzgw.scheduler.fairness import INPUT_WEIGHT
from blitzgw.scheduler.lane import Lane, PostedStep
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.slots import Allocation


class Planner:
    """Composes steps from the lanes of a worker, as long as fewer than `max_in_flight` run.

    Steps without rows only tell the worker what it may free. They cost nothing, are not waited for
    and do not count as in flight.
    """

    def __init__(self, budget: KvBudget, max_in_flight: int) -> None:
        self.lanes: dict[str, Lane] = {}
        self.in_flight: dict[int, PostedStep] = {}
        self._budget = budget
        self._max_in_flight = max_in_flight
        self._turns: list[Lane] = []
        self._starved: Lane | None = None
        self._last_step = 0
        self._last_number = 0
        self._now = 0.0

    def add(self, lane: Lane) -> None:
        """Take an instance in."""
        self.lanes[lane.instance.id] = lane
        self._turns.append(lane)

    def remove(self, lane: Lane) -> None:
        """Forget an instance and its steps in flight."""
        del self.lanes[lane.instance.id]
        self._turns.remove(lane)
        for step in [step for step in self.in_flight.values() if step.lane is lane]:
            del self.in_flight[step.id]
        if self._starved is lane:
            self._starved = None
        lane.allocator.close()

    def fill(self, now: float) -> list[Effect]:
        """Post steps at time `now` until enough are in flight or nothing is left to run."""
        self._now = now
        effects: list[Effect] = []
        while len(self.in_flight) < self._max_in_flight:
            if not self._post_next(effects):
                for lane in self._turns:
                    if lane.has_news:
                        self._post_news(lane, effects)
                break
        return effects

    def hold(self, lane: Lane) -> None:
        """Post nothing more for an instance until what is in flight now has been reported.

        A failed step's sequences stand in the steps posted after it, which must fail as well and
        take others with them. Those would stand in the next ones, and it would never end.
        """
        ids = [step.id for step in self.in_flight.values() if step.lane is lane]
        lane.held_until = max(ids, default=0)

    def requeue(self, seq: Sequence) -> None:
        """Let a preempted sequence, all of whose tokens are known, wait in front."""
        seq.move(Phase.WAITING)
        self.lanes[seq.instance].queue.push(seq, front=True)

    def _post_next(self, effects: list[Effect]) -> bool:
        """Post a step for the next instance that has something to run."""
        for lane in self._turns:
            if lane.held_until and self._is_held(lane):
                continue
            batch = self._compose(lane)
            if not batch:
                continue
            for other in self._turns:
                if other is not lane and other.allocator.has_releases:
                    self._post_news(other, effects)  # this step may use their memory
            self._last_step += 1
            step, posted = batch.post(self._last_step)
            self.in_flight[step.id] = posted
            effects.append(RunStep(step))
            self._turns.remove(lane)
            self._turns.append(lane)
            return True
        return False

    def _is_held(self, lane: Lane) -> bool:
        return any(
            step.lane is lane and step.id <= lane.held_until for step in self.in_flight.values()
        )

    def _post_news(self, lane: Lane, effects: list[Effect]) -> None:
        self._last_step += 1
        step, _ = Batch(lane).post(self._last_step)
        effects.append(RunStep(step))

    def _compose(self, lane: Lane) -> Batch:
        """Put a step together: everybody decodes, then prefill, then newcomers.

        Memory is taken from running sequences before anything is handed out: what a row or a copy
        of this step needs is not evicted any more.
        """
        self._grow(lane)
        batch = Batch(lane)
        batch.decode()
        batch.prefill()
        if lane.queue:
            self._admit(lane, batch)
        return batch

    def _grow(self, lane: Lane) -> None:
        """Give a block to each decoding sequence that needs one, the best in rank first."""
        needy = [
            seq
            for seq in lane.decoding.values()
            if seq.scheduled >= seq.capacity and seq.scheduled + 1 < seq.limit
        ]
        needy.sort(key=lambda seq: seq.rank)
        for seq in needy:
            while seq.phase is Phase.RUNNING:
                blocks = lane.allocator.extend(seq.number, seq.scheduled + 1)
                if blocks is not None:
                    seq.new_blocks += blocks
                    seq.capacity += len(blocks) * BLOCK_TOKENS
                    break
                self._preempt()

    def _preempt(self) -> None:
        """Take the memory of the running sequence that is the worst in rank, of any instance."""
        worst = max(
            (seq for lane in self._turns for seq in lane.running()), key=lambda seq: seq.rank
        )
        lane = self.lanes[worst.instance]
        lane.take_back(worst)
        lane.preemptions += 1
        worst.move(Phase.PREEMPTED)
        if not worst.samples_in_flight:
            self.requeue(worst)

    def _admit(self, lane: Lane, batch: Batch) -> None:
        """Admit waiting sequences in order while tokens, places and memory last."""
        if self._starved is not None and not self._starved.queue:
            self._starved = None
        if self._starved not in (None, lane):
            return  # somebody waits for memory that this instance would take
        while batch.room and lane.n_running < lane.max_running:
            seq = lane.queue.peek()
            if seq is None:
                break
            number = self._last_number + 1
            allocation = self._allocate(lane, seq, number)
            if allocation is None:
                self._starved = lane
                return
            self._last_number = number
            self._start(lane, seq, number, allocation)
            batch.admit(seq, allocation)
        self._starved = None

    def _allocate(self, lane: Lane, seq: Sequence, number: int) -> Allocation | None:
        """Reserve memory for all known tokens, unless too little is left for those that run.

        What is left free is a block for every running sequence: each needs one within the next
        BLOCK_TOKENS steps, and preempting costs more than waiting. With nothing running, nothing
        is kept.
        """
        headroom = sum(other.n_running * other.instance.kv.block_bytes for other in self._turns)
        if lane.admission_bytes(seq) + headroom > self._budget.available_bytes:
            return None
        return lane.allocator.begin(
            number, seq.tokens, seq.account.name, lane.admission_tokens(seq)
        )

    def _start(self, lane: Lane, seq: Sequence, number: int, allocation: Allocation) -> None:
        lane.queue.remove(seq)
        seq.move(Phase.RUNNING)
        seq.number = number
        seq.scheduled = allocation.cached_tokens
        seq.capacity = len(allocation.blocks) * BLOCK_TOKENS
        seq.new_blocks = allocation.blocks
        lane.prefilling[number] = seq
        if not seq.admitted:  # who has been preempted neither pays nor counts again
            seq.admitted = True
            seq.first_step_s = self._now
            seq.cached_tokens = min(allocation.cached_tokens, seq.request.prompt_length)
            seq.account.charged += INPUT_WEIGHT * len(seq.tokens)
            lane.prefix_queries += len(seq.tokens)
            lane.prefix_hits += allocation.cached_tokens
