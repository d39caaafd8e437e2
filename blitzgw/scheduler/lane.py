"""The books of one instance: who waits, who runs, what its worker has yet to be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, Send
from blitzgw.core.view import LoadFacts
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import ServedInstance
from blitzgw.scheduler.fairness import FairQueue
from blitzgw.scheduler.lengths import OutputLengths
from blitzgw.scheduler.live.records import Course, Loan, Passage, Task
from blitzgw.scheduler.live.relays import Relay
from blitzgw.scheduler.rates import Pace, Turnover
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.slots import SlotAllocator, SlotStatistics, blocks_for

ASIDE, TAKEN_IN = -2, -3
"""In place of where a relay's token is: its KV is sent by this step, or taken in; it has no row."""


@dataclass(slots=True)
class PostedStep:
    """A step in flight: whom its tokens belong to, and which prefill it completes.

    `samplers` are in the order of the step's tokens. `chunks` holds (sequence, its number in that
    step, tokens computed after it by all layers) for each prefill row; a row that stops below the
    last layer, and an import, count none. `imported` are the loans of which it takes parcels in,
    with the sequence's number, and how many of its tokens earlier steps have computed where these
    are the last parcels, else -1. `work` is its prefill in tokens × layers, and it has so many
    `layers`.
    """

    id: int
    lane: Lane
    samplers: list[Sequence]
    chunks: list[tuple[Sequence, int, int]]
    prefill_tokens: int
    decode_rows: int
    imported: list[tuple[Loan | Passage, int, int]] = field(default_factory=list)
    work: int = 0
    layers: int = 0
    relays: list[tuple[Relay, int]] = field(default_factory=list)
    """Of a stage's step: whose rows there are, and where the token is that it samples, or -1.

    ASIDE and TAKEN_IN: it has no row of that one."""

    def is_followed_by(self, samplers: list[Sequence]) -> bool:
        """Tell whether a step of these samplers, and all who decode, has just the same rows.

        Each a position further.
        """
        only = not (self.chunks or self.imported or self.relays)
        whole = self.layers == self.lane.instance.n_layers
        everybody = len(samplers) == len(self.lane.decoding)
        return only and whole and everybody and self.samplers == samplers != []

    def members(self) -> list[Sequence]:
        """Return the sequences that still depend on this step, each once."""
        current = [seq for seq, number, _ in self.chunks if seq.number == number]
        return list(
            dict.fromkeys(seq for seq in self.samplers + current if seq.phase is not Phase.ENDED)
        )


@dataclass(frozen=True, slots=True)
class LiveStatistics:
    """What an instance does for others, or they for it (core/live.py).

    `resident` layers of `layers` may run; it is `helping` instances, or `helped` by them. At its
    home a request is `lent`, then `recalled` until its hidden states are here. At its helper it is
    in `tasks`, then `sending`; `kept` ones wait for their ingress. The rest are counts since the
    instance is here: of requests lent, handed back to it at a layer above 0, and given away.
    It is ready to run the span `stage` of a pipeline, one of `stages` with those behind it, and has
    `staged` requests there, `staged_total` since it is here.
    """

    resident: int = 0
    layers: int = 0
    loading: bool = False
    helping: tuple[str, ...] = ()
    helped: tuple[str, ...] = ()
    lent: int = 0
    recalled: int = 0
    tasks: int = 0
    sending: int = 0
    kept: int = 0
    lent_total: int = 0
    split_total: int = 0
    dealt_total: int = 0
    stage: Span | None = None
    stages: int = 0
    staged: int = 0
    staged_total: int = 0


@dataclass(frozen=True, slots=True)
class InstanceStatistics:
    """What the router, the scaling policy and the metrics want to know of an instance.

    `kv_usage` is the share of the worker's KV budget in use by running sequences, 0 to 1.
    `queued_tokens` is the prefill ahead: tokens that wait, or are admitted or posted and not yet
    computed; those of a request that a helper works on count once, at its home. `prefix_queries`
    and `prefix_hits` count prompt tokens looked up and found. `oldest_arrival_s` is when the
    request arrived that has waited longest, None if none waits. Rates are None until measured.
    """

    running: int
    waiting: int
    kv_usage: float
    queued_tokens: int
    oldest_arrival_s: float | None
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    prefill_tokens_per_s: float | None
    decode_step_s: float | None
    slots: SlotStatistics
    live: LiveStatistics = LiveStatistics()
    kv_tokens: int = 0
    """What the instance's KV can hold, in tokens, with the whole budget to itself."""
    kv_committed_tokens: int = 0
    """What the requests that run or wait here may come to need of it (lengths.py)."""


class Lane:
    """One instance. `context` is the longest sequence that fits its model, a slot and the budget.

    `decoding` and `prefilling` map worker numbers to sequences; the latter have prompt tokens left
    to post. `courses` go through the layers in groups, `sending` are another instance's again and
    keep their slot until they have been sent, `relays` are a pipeline's. While `loading` only the
    first `resident` layers may run. `hosting`: helpers take from the queue.
    """

    def __init__(self, instance: ServedInstance, budget: KvBudget) -> None:
        kv = instance.kv
        self.instance = instance
        self.span = Span(0, instance.n_layers)
        self.budget = budget
        in_budget = budget.total_bytes // kv.block_bytes * BLOCK_TOKENS
        self.context = min(instance.max_model_len, kv.slot_tokens, in_budget)
        self.kv_tokens = min(kv.slots * kv.slot_tokens, in_budget)
        """What its KV can hold while no other instance uses the budget."""
        # a token of every step for every sequence, so that nobody is left out of a step
        self.max_running = min(instance.max_num_seqs, instance.max_batched_tokens, kv.slots)
        self.allocator = SlotAllocator(kv, budget, prefix_caching=instance.prefix_caching)
        self.queue: FairQueue[Sequence] = FairQueue()
        self.decoding: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.courses: dict[int, Course] = {}
        self.sending: dict[int, Sequence] = {}
        self.relays: dict[int, Relay] = {}
        self.relayed_last = False
        """Whether the last step was a pipeline's."""
        self.staged_total = 0
        self.drops: list[int] = []
        self.sends: list[Send] = []
        self.copies: list[tuple[int, int]] = []
        self.loading = False
        self.resident = instance.n_layers
        self.hosting = False
        self.since_decode = 0
        """Prefill in groups that has been posted since the last step that decodes, as `work`."""
        self.lent_tokens = 0
        self.lent_total = self.split_total = self.dealt_total = 0
        self.pace = Pace()
        self.turnover = Turnover()
        self.outputs = OutputLengths()
        self.posted_prefill_tokens = 0
        self.held_until = 0  # see Planner.hold
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def n_running(self) -> int:
        """Return the number of sequences that have a slot."""
        return len(self.decoding) + len(self.prefilling) + len(self.courses)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing that a step could be made of."""
        return not (self.decoding or self.prefilling or self.queue or self.is_layered)

    @property
    def is_layered(self) -> bool:
        """Whether its steps may be of some layers only."""
        return self.hosting or self.loading or bool(self.courses or self.relays)

    @property
    def is_shared(self) -> bool:
        """Whether helpers take from its queue, or there is prefill that goes in groups of layers.

        Then live/lending.py decides what is begun.
        """
        return self.hosting or any(not course.done for course in self.courses.values())

    @property
    def has_news(self) -> bool:
        """Whether the worker could free something that it does not know of yet."""
        return bool(self.drops or self.copies or self.sends) or self.allocator.has_releases

    def running(self) -> list[Sequence]:
        """Return the sequences that have a slot."""
        layered = [course.seq for course in self.courses.values()]
        return [*self.decoding.values(), *self.prefilling.values(), *layered]

    def awaits(self, seq: Sequence) -> bool:
        """Tell whether a sequence had better wait until others have computed its prompt.

        Choices of one request come together: begun beside each other, each would compute all of it.
        What one has computed the others copy, a step later. That pays where to compute it takes
        longer than such a step.
        """
        rate, prompt = self.pace.prefill_tokens_per_s, seq.request.tokens
        if rate is None or not self.allocator.prefix_caching or seq.is_scored:
            return False
        step_tokens = rate * (self.pace.decode_step_s or 0.0)
        shared = (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        return shared > step_tokens and any(
            len(other.tokens) == len(prompt)
            and other.request.tokens == prompt
            and other.account.name == seq.account.name
            and shared - self.allocator.named_tokens(other.number) > step_tokens
            for other in (*self.decoding.values(), *self.prefilling.values())
        )

    def admission_bytes(self, seq: Sequence) -> int:
        """Return the KV bytes that a sequence is admitted with."""
        return blocks_for(self.admission_tokens(seq)) * self.instance.kv.block_bytes

    def admission_tokens(self, seq: Sequence) -> int:
        """Return the positions to reserve: all known tokens and the next, if it has a successor."""
        return min(len(seq.tokens) + 1, seq.limit - 1)

    def grow(self, seq: Sequence) -> bool:
        """Give a decoding sequence the block of which its next row is; False without memory."""
        blocks = self.allocator.extend(seq.number, seq.scheduled + 1)
        if blocks is None:
            return False
        seq.new_blocks += blocks
        seq.capacity += len(blocks) * BLOCK_TOKENS
        return True

    def take_back(self, seq: Sequence) -> None:
        """Free the slot of a running sequence; the worker is told with the next step."""
        self.allocator.free(seq.number)
        course = self.courses.pop(seq.number, None)
        if course is None or course.introduced:
            self.drops.append(seq.number)
        self.sending.pop(seq.number, None)
        self.decoding.pop(seq.number, None)
        self.prefilling.pop(seq.number, None)
        seq.forget_kv()

    def queued_tokens(self) -> int:
        """Return the prefill ahead: tokens that wait, are posted, or are admitted and are neither.

        A helper's tasks count at their home. What a pipeline serves counts at its lead, as a whole
        until it has its first token: nobody there knows how far the other stages are.
        """
        n_layers = self.instance.n_layers
        unposted = 0
        for seq in self.prefilling.values():
            unposted += len(seq.tokens) - seq.scheduled
        for course in self.courses.values():
            if not isinstance(course.seq.role, Task):
                unposted += course.work_left(n_layers) // n_layers
        posted = 0 if self.loading else self.posted_prefill_tokens
        staged = sum(relay.prefill_left for relay in self.relays.values()) if self.relays else 0
        return self.queue.tokens + self.lent_tokens + unposted + posted + staged

    def load(self, committed_tokens: int) -> LoadFacts:
        """Return how busy the instance is."""
        active_bytes = self.allocator.active_blocks * self.instance.kv.block_bytes
        return LoadFacts(
            instance=self.instance.id,
            running=self.n_running,
            waiting=len(self.queue),
            queued_tokens=self.queued_tokens(),
            kv_usage=active_bytes / max(1, self.budget.total_bytes),
            prefill_tokens_per_s=self.pace.prefill_tokens_per_s,
            decode_step_s=self.pace.decode_step_s,
            kv_tokens=self.kv_tokens,
            kv_committed_tokens=committed_tokens,
        )

    def statistics(
        self, live: LiveStatistics | None = None, committed_tokens: int = 0
    ) -> InstanceStatistics:
        """Return the instance's figures."""
        slots = self.allocator.statistics()
        active_bytes = slots.active_blocks * self.instance.kv.block_bytes
        return InstanceStatistics(
            running=self.n_running,
            waiting=len(self.queue),
            kv_usage=active_bytes / max(1, self.budget.total_bytes),
            queued_tokens=self.queued_tokens(),
            oldest_arrival_s=min((seq.arrived_s for seq in self.queue.items()), default=None),
            preemptions=self.preemptions,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
            prefill_tokens_per_s=self.pace.prefill_tokens_per_s,
            decode_step_s=self.pace.decode_step_s,
            slots=slots,
            live=live or LiveStatistics(),
            kv_tokens=self.kv_tokens,
            kv_committed_tokens=committed_tokens,
        )
