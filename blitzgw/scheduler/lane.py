"""The books of one instance: who waits, who runs, what its worker has yet to be told."""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import ServedInstance
from blitzgw.scheduler.fairness import FairQueue
from blitzgw.scheduler.rates import Pace
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.slots import SlotAllocator, SlotStatistics, blocks_for


@dataclass(slots=True)
class PostedStep:
    """A step in flight: whom its tokens belong to, and which prefill it completes.

    `samplers` are in the order of the step's tokens. `chunks` holds (sequence, its number in that
    step, tokens computed after it) for each prefill row.
    """

    id: int
    lane: Lane
    samplers: list[Sequence]
    chunks: list[tuple[Sequence, int, int]]
    prefill_tokens: int
    decode_rows: int

    def members(self) -> list[Sequence]:
        """Return the sequences that still depend on this step, each once."""
        current = [seq for seq, number, _ in self.chunks if seq.number == number]
        return list(
            dict.fromkeys(seq for seq in self.samplers + current if seq.phase is not Phase.ENDED)
        )


@dataclass(frozen=True, slots=True)
class InstanceStatistics:
    """What the router, the scaling policy and the metrics want to know of an instance.

    `kv_usage` is the share of the worker's KV budget in use by running sequences, 0 to 1.
    `queued_tokens` counts tokens waiting, or admitted and not yet computed. `prefix_queries` and
    `prefix_hits` count prompt tokens looked up and found. `oldest_arrival_s` is when the request
    arrived that has waited longest, None if none waits. Rates are None until measured.
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


class Lane:
    """One instance. `context` is the longest sequence that fits its model, a slot and the budget.

    `running` maps worker numbers to sequences, `prefilling` those of them that have prompt tokens
    left to post.
    """

    def __init__(self, instance: ServedInstance, budget: KvBudget) -> None:
        kv = instance.kv
        self.instance = instance
        self.span = Span(0, instance.n_layers)
        self.budget = budget
        self.context = min(
            instance.max_model_len,
            kv.slot_tokens,
            budget.total_bytes // kv.block_bytes * BLOCK_TOKENS,
        )
        # a token of every step for every sequence, so that nobody is left out of a step
        self.max_running = min(instance.max_num_seqs, instance.max_batched_tokens, kv.slots)
        self.allocator = SlotAllocator(kv, budget, prefix_caching=instance.prefix_caching)
        self.queue: FairQueue[Sequence] = FairQueue()
        self.decoding: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.drops: list[int] = []
        self.pace = Pace()
        self.posted_prefill_tokens = 0
        self.held_until = 0  # see Planner.hold
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def n_running(self) -> int:
        """Return the number of sequences that have a slot."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def has_news(self) -> bool:
        """Whether the worker could free something that it does not know of yet."""
        return bool(self.drops) or self.allocator.has_releases

    def running(self) -> list[Sequence]:
        """Return the sequences that have a slot."""
        return [*self.decoding.values(), *self.prefilling.values()]

    def admission_bytes(self, seq: Sequence) -> int:
        """Return the KV bytes that a sequence is admitted with."""
        return blocks_for(self.admission_tokens(seq)) * self.instance.kv.block_bytes

    def admission_tokens(self, seq: Sequence) -> int:
        """Return the positions to reserve: all known tokens and the next, if it has a successor."""
        return min(len(seq.tokens) + 1, seq.limit - 1)

    def take_back(self, seq: Sequence) -> None:
        """Free the slot of a running sequence; the worker is told with the next step."""
        self.allocator.free(seq.number)
        self.drops.append(seq.number)
        self.decoding.pop(seq.number, None)
        self.prefilling.pop(seq.number, None)
        seq.forget_kv()

    def queued_tokens(self) -> int:
        """Return the tokens that wait, or are admitted and not yet computed."""
        unposted = sum(len(seq.tokens) - seq.scheduled for seq in self.prefilling.values())
        return self.queue.tokens + unposted + self.posted_prefill_tokens

    def statistics(self) -> InstanceStatistics:
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
        )
