"""What runs next: turns between instances, memory for running sequences, admission.

No load starves anybody. Of the running sequences the best in rank is never preempted for another's
sake, and alone it fits (longer ones are refused or cut to the budget), so it ends; then the next
one is the best. A waiting request at the head of its queue is overtaken by nobody of its instance,
and by other instances no longer than it takes them to run dry (`_starved`).
"""

from __future__ import annotations

from typing import Protocol

from blitzgw.core.step import BLOCK_TOKENS, Step
from blitzgw.scheduler.batch import Batch, Decoding, rows_of
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import Effect, RunStep
from blitzgw.scheduler.fairness import INPUT_WEIGHT
from blitzgw.scheduler.lane import ASIDE, Lane, PostedStep
from blitzgw.scheduler.sequence import Phase, Sequence, in_turn
from blitzgw.scheduler.slots import Allocation, blocks_for


class Layered(Protocol):
    """What decides for lanes whose steps may be of some layers only (live/)."""

    def compose(self, lane: Lane) -> Batch:
        """Put the next step of such a lane together; an empty one if there is nothing to do."""

    def evicted(self, seq: Sequence) -> bool:
        """Note that a sequence with a role is preempted; tell whether it does not queue here."""


class Planner:
    """Composes steps from the lanes of a worker, as long as fewer than `max_in_flight` run.

    Steps without rows only tell the worker what it may free. They cost nothing, are not waited for
    and do not count as in flight.
    """

    def __init__(self, budget: KvBudget, max_in_flight: int, last_step: int = 0) -> None:
        self.lanes: dict[str, Lane] = {}
        self.in_flight: dict[int, PostedStep] = {}
        self.asides: dict[int, PostedStep] = {}
        """Steps without rows that send: until they have been carried out."""
        self.layered: Layered | None = None
        self.max_in_flight = max_in_flight
        self._budget = budget
        self._turns: list[Lane] = []
        self._begun: Decoding | None = None
        self._starved: Lane | None = None
        self._last_step = last_step
        self._last_number = 0
        self.now = 0.0

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
        for step in [step for step in self.asides.values() if step.lane is lane]:
            del self.asides[step.id]
        if self._starved is lane:
            self._starved = None
        lane.allocator.close()

    def fill(self, now: float) -> list[Effect]:
        """Post steps at time `now` until enough are in flight or nothing is left to run."""
        self.now = now
        effects: list[Effect] = []
        for lane in self._turns:
            if lane.sends:
                self._post_news(lane, effects)  # before rows that would only make it wait
        while len(self.in_flight) < self.max_in_flight:
            if not self._post_next(effects):
                for lane in self._turns:
                    if lane.has_news:
                        self._post_news(lane, effects)
                break
        return effects

    @property
    def has_begun(self) -> bool:
        """Whether rows have been handed out that have not been posted: never between events."""
        return self._begun is not None

    def follow(self, posted: PostedStep) -> Decoding | None:
        """Begin the step that `fill` posts next, while the result of an earlier one is taken.

        None where it is not certain that everybody who decodes has a row of it: where other
        instances, other layers or too little memory have a say.
        """
        lane = posted.lane
        if len(self._turns) > 1 or lane.is_layered or lane.sends or self.is_held(lane):
            return None
        if self.lacks_blocks(lane):
            return None
        self._begun = Decoding()
        return self._begun

    def lacks_blocks(self, lane: Lane) -> bool:
        """Tell whether there may not be a block for everybody, which is the most that they need."""
        need = len(lane.decoding) * lane.instance.kv.block_bytes
        return self._budget.available_bytes < need

    def repeat(self, last: PostedStep, begun: Decoding) -> RunStep | None:
        """Post a step that has the rows of the `last` one, each a position further.

        None where not everybody has one, or the worker is to be told of more: then `fill` posts it.
        """
        lane = last.lane
        if not last.is_followed_by(begun.samplers) or lane.has_news:
            self._begun = begun
            return None
        self._last_step = number = self._last_step + 1
        n_rows, layers = len(begun.samplers), lane.instance.n_layers
        posted = PostedStep(number, lane, begun.samplers, [], 0, n_rows, [], 0, layers)
        self.in_flight[number] = posted
        grown = tuple(rows_of(begun.grown))
        return RunStep(Step(number, lane.instance.id, lane.span, grown, after=last.id))

    def hold(self, lane: Lane) -> None:
        """Post nothing more for an instance until what is in flight now has been reported.

        A failed step's sequences stand in the steps posted after it, which must fail as well and
        take others with them. Those would stand in the next ones, and it would never end.
        """
        ids = [step.id for step in self.in_flight.values() if step.lane is lane]
        lane.held_until = max(ids, default=0)

    def is_held(self, lane: Lane) -> bool:
        """Tell whether an instance waits for what was in flight when a step failed."""
        return bool(lane.held_until) and any(
            step.lane is lane and step.id <= lane.held_until for step in self.in_flight.values()
        )

    def renumber(self, count: int) -> None:
        """Let the steps in flight be the last of `count` more, each of which was like them."""
        last, self._last_step = self._last_step, self._last_step + count
        ids = [*self.in_flight, *range(last + 1, self._last_step + 1)]
        steps = [*self.in_flight.values()]
        self.in_flight.clear()
        for number, step in zip(ids[-len(steps) :], steps, strict=True):
            step.id = number
            self.in_flight[number] = step

    def requeue(self, seq: Sequence) -> None:
        """Let a preempted sequence, all of whose tokens are known, wait in front."""
        seq.move(Phase.WAITING)
        seq.due_s = seq.arrived_s
        self.lanes[seq.instance].queue.push(seq)

    def evict(self, seq: Sequence) -> None:
        """Take the memory of a running sequence; it waits in front, with all its tokens."""
        self.lanes[seq.instance].take_back(seq)
        seq.move(Phase.PREEMPTED)
        if seq.role is not None and self.layered is not None and self.layered.evicted(seq):
            return
        if not seq.samples_in_flight:
            self.requeue(seq)

    def steps_of(self, lane: Lane) -> list[PostedStep]:
        """Return an instance's steps in flight."""
        return [step for step in self.in_flight.values() if step.lane is lane]

    def is_starved(self, lane: Lane) -> bool:
        """Tell whether an instance waits for memory, which others leave to it."""
        return self._starved is lane

    def is_content(self, lane: Lane) -> None:
        """Note that an instance does not wait for memory any more, or has to find out again."""
        if self._starved is lane:
            self._starved = None

    def must_wait(self, lane: Lane) -> bool:
        """Tell whether another instance waits for memory."""
        starved = self._starved
        if starved is not None and not (starved.queue or starved.hosting):
            starved = self._starved = None
        return starved not in (None, lane)

    def allocate(
        self, lane: Lane, seq: Sequence, *, reuse: bool = True
    ) -> tuple[int, Allocation] | None:
        """Reserve memory for a sequence that runs next; return its number with it.

        None without memory: then others leave it to this lane. Without `reuse` nothing that is
        there is built upon.
        """
        number = self._last_number + 1
        allocation = self._allocate(lane, seq, number, reuse=reuse)
        if allocation is None:
            if not lane.loading:
                self._starved = lane
            return None
        self._last_number = number
        if self._starved is lane:
            self._starved = None
        return number, allocation

    def _post_next(self, effects: list[Effect]) -> bool:
        """Post a step for the next instance that has something to run."""
        for lane in self._turns:
            if self.is_held(lane):
                continue
            if lane.is_idle:
                self._begun = None  # which has no rows
                lane.turnover.observe(0, 0, self.now)
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

    def _post_news(self, lane: Lane, effects: list[Effect]) -> None:
        self._last_step += 1
        batch = Batch(lane)
        batch.sends += lane.sends
        lane.sends.clear()
        step, posted = batch.post(self._last_step)
        for send in step.sends:
            self.asides[step.id] = posted
            relay = lane.relays.get(send.seq)
            if relay is not None:
                posted.relays.append((relay, ASIDE))
                continue
            seq = lane.sending.get(send.seq) or lane.decoding[send.seq]
            posted.chunks.append((seq, send.seq, 0))
        effects.append(RunStep(step))

    def _compose(self, lane: Lane) -> Batch:
        """Put a step together: everybody decodes, then prefill, then newcomers.

        Memory is taken from running sequences before anything is handed out: what a row or a copy
        of this step needs is not evicted any more.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            self._grow(lane)
        waiting = len(lane.queue)
        if lane.is_layered and self.layered is not None:
            batch = self.layered.compose(lane)
            admits = not (lane.is_shared or lane.loading) and batch.span == lane.span
        else:
            batch, admits = Batch(lane, begun=begun), True
            batch.decode()
            if lane.prefilling:
                self._prefill(lane, batch)
        if admits and (waiting or lane.turnover.is_timing):
            if lane.queue:
                self._admit(lane, batch)
            lane.turnover.observe(waiting - len(lane.queue), len(lane.queue), self.now)
        return batch

    def _grow(self, lane: Lane) -> None:
        """Give a block to each decoding sequence that needs one, the best in rank first."""
        needy = [
            seq
            for seq in lane.decoding.values()
            if seq.scheduled >= seq.capacity and seq.scheduled + 1 < seq.limit
        ]
        if len(needy) > 1:
            needy.sort(key=lambda seq: seq.rank)
        for seq in needy:
            while seq.phase is Phase.RUNNING and not lane.grow(seq):
                self._preempt()

    def _preempt(self) -> None:
        """Take the memory of the running sequence that is the worst in rank, of any instance."""
        worst = max(
            (seq for lane in self._turns for seq in lane.running()), key=lambda seq: seq.rank
        )
        self.lanes[worst.instance].preemptions += 1
        self.evict(worst)

    def _prefill(self, lane: Lane, batch: Batch) -> None:
        """Go on with what has been begun, and first with what waits and is due before it."""
        for seq in in_turn(lane.prefilling.values()):
            if lane.queue:
                self._admit(lane, batch, before=seq)
            batch.go_on(seq)

    def _admit(self, lane: Lane, batch: Batch, before: Sequence | None = None) -> None:
        """Admit waiting sequences in order while tokens, places and memory last.

        With `before` only those whose turn comes before that one's.
        """
        if self.must_wait(lane):
            return  # somebody waits for memory that this instance would take
        while batch.room and lane.n_running < lane.max_running:
            seq = lane.queue.peek()
            if seq is None or lane.awaits(seq):
                break
            if before is not None and before.turn < seq.turn:
                return
            admitted = self.allocate(lane, seq)
            if admitted is None:
                return
            number, allocation = admitted
            lane.queue.remove(seq)
            self.begin(lane, seq, number, allocation)
            lane.prefilling[number] = seq
            batch.admit(seq, allocation)
        self._starved = None

    def _allocate(
        self, lane: Lane, seq: Sequence, number: int, *, reuse: bool
    ) -> Allocation | None:
        """Reserve memory for all known tokens, unless too little is left for those that run.

        What is left free is a block for every running sequence: each needs one within the next
        BLOCK_TOKENS steps, and preempting costs more than waiting. With nothing running, nothing
        is kept.
        """
        if not self._has_room(lane.admission_bytes(seq)):
            return None
        return lane.allocator.begin(
            number,
            seq.tokens if reuse and not seq.is_scored else (),
            seq.account.name,
            lane.admission_tokens(seq),
        )

    def _has_room(self, size_bytes: int) -> bool:
        headroom = sum(other.n_running * other.instance.kv.block_bytes for other in self._turns)
        return size_bytes + headroom <= self._budget.available_bytes

    def reserve(
        self, lane: Lane, n_tokens: int, account: str = ""
    ) -> tuple[int, tuple[int, ...]] | None:
        """Give memory to what comes from elsewhere; return its number and its blocks.

        None without memory, and where somebody waits for it. What is computed in it may be reused
        by the same `account`.
        """
        if self.must_wait(lane) or self._starved is lane:
            return None
        if not self._has_room(blocks_for(n_tokens) * lane.instance.kv.block_bytes):
            return None
        number = self._last_number + 1
        allocation = lane.allocator.begin(number, (), account, n_tokens)
        if allocation is None:
            return None
        self._last_number = number
        return number, allocation.blocks

    def begin(self, lane: Lane, seq: Sequence, number: int, allocation: Allocation) -> None:
        """Let a sequence run in the memory that it has been given."""
        seq.move(Phase.RUNNING)
        seq.number = number
        seq.scheduled = allocation.cached_tokens
        seq.capacity = len(allocation.blocks) * BLOCK_TOKENS
        seq.new_blocks = allocation.blocks
        self.account_for(lane, seq, allocation.cached_tokens)

    def account_for(self, lane: Lane, seq: Sequence, cached_tokens: int) -> None:
        """Charge a sequence that is worked on from now on, the first time that it is.

        Who has been preempted or lent neither pays nor counts again.
        """
        if not seq.admitted:
            seq.admitted = True
            seq.first_step_s = self.now
            seq.cached_tokens = min(cached_tokens, seq.request.prompt_length)
            seq.account.charged += INPUT_WEIGHT * len(seq.tokens)
            lane.prefix_queries += len(seq.tokens)
            lane.prefix_hits += cached_tokens
