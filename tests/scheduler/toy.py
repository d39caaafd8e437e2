"""A worker that is all bookkeeping: it carries steps out in order and checks what they rely on.

The KV of a position is the hash of all tokens up to it, marked with the tenant whose tokens they
are. Before a row samples, every position of its sequence must hold just that, read through the
block table, so that memory which is stale, lost, misplaced, copied wrongly, given away too early
or taken from another tenant is noticed at once. Bytes touched and not released are counted
against the budget.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from blitzgw.core.messages import StepFailed
from blitzgw.core.request import FinishReason, GenerationRequest, Logprobs, SamplingParams
from blitzgw.core.step import (
    BLOCK_TOKENS,
    NO_TOKEN,
    LastRows,
    NewSequence,
    PromptLogprobs,
    Row,
    Step,
    StepResult,
)
from blitzgw.scheduler.events import ServedInstance

VOCAB = 97
EOS = 0
GARBAGE = (-1, "garbage")


def extend_chain(chain: list[int], tokens: list[int]) -> None:
    """Hash the tokens beyond the chain's end, each with everything before it."""
    for i in range(len(chain), len(tokens)):
        chain.append(hash((chain[-1] if chain else 17, tokens[i], i)))


def next_token(last: int, n_outputs: int, sampling: SamplingParams) -> int:
    """Return what the toy model says after a position, with EOS masked below min_tokens."""
    token = hash((last, sampling.seed)) % VOCAB
    if token == EOS and n_outputs < sampling.min_tokens:
        token = 1
    return token


def scores(tokens: list[int]) -> tuple[Logprobs, ...]:
    """Return what the toy model gives the tokens of a prompt from the second on."""
    chain: list[int] = []
    extend_chain(chain, tokens)
    return tuple(Logprobs(-float(link % 1009)) for link in chain[1:])


def alone(request: GenerationRequest, context: int) -> tuple[list[int], FinishReason]:
    """Return what a request is answered with when it has the model for itself."""
    sampling = request.sampling
    tokens, chain, outputs = list(request.tokens[: request.prompt_length]), [], []
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
    while True:
        extend_chain(chain, tokens)
        token = next_token(chain[-1], len(outputs), sampling)
        tokens.append(token)
        outputs.append(token)
        if token == NO_TOKEN:
            return outputs, FinishReason.ERROR
        if token in stops and len(outputs) >= sampling.min_tokens:
            return outputs, FinishReason.STOP
        if len(outputs) >= sampling.max_tokens or len(tokens) >= context:
            return outputs, FinishReason.LENGTH


@dataclass
class ToySequence:
    tokens: list[int]
    prompt_length: int
    sampling: SamplingParams
    tenant: str
    table: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)


class ToyInstance:
    def __init__(self, served: ServedInstance, tenants: dict[int, str]) -> None:
        self.served = served
        self.sequences: dict[int, ToySequence] = {}
        self.memory: dict[int, list[tuple[int, str]]] = {}
        self.touched: dict[int, int] = {}
        self._tenants = tenants
        self._numbers: set[int] = set()

    def touched_bytes(self) -> int:
        return sum(self.touched.values()) * self.served.kv.block_bytes

    def prepare(self, step: Step) -> None:
        """Everything before the rows."""
        for number in step.drop:
            self.sequences.pop(number, None)
        for first, count in step.release:
            self._release(first, count)
        for new in step.new:
            self._learn(new)
        targets = {target for _, target in step.copies}
        assert not targets & {source for source, _ in step.copies}, "a copy of a copy"
        assert len(targets) == len(step.copies)
        for source, target in step.copies:
            self._touch(target)
            self.memory[target] = list(self.memory[source])

    def compute(self, row: Row) -> int | None:
        sequence = self.sequences[row.seq]
        self._append(sequence, row.blocks)
        stop = row.start + row.count
        assert row.count >= 1
        assert stop <= len(sequence.tokens), "a token that nobody knows"
        assert row.sample == (stop == len(sequence.tokens))
        assert stop <= len(sequence.table) * BLOCK_TOKENS
        extend_chain(sequence.chain, sequence.tokens)
        for p in range(row.start, stop):
            self._cell(sequence, p)[p % BLOCK_TOKENS] = (sequence.chain[p], sequence.tenant)
        for p in range(stop):
            held = self._cell(sequence, p)[p % BLOCK_TOKENS]
            assert held == (sequence.chain[p], sequence.tenant), f"position {p} of {row.seq}"
        if not row.sample:
            return None
        n_outputs = len(sequence.tokens) - sequence.prompt_length
        return next_token(sequence.chain[stop - 1], n_outputs, sequence.sampling)

    def score(self, row: Row) -> Iterator[PromptLogprobs]:
        sequence = self.sequences[row.seq]
        stop = min(row.start + row.count, sequence.prompt_length - 1)
        if sequence.sampling.prompt_logprobs is not None and row.start < stop:
            yield PromptLogprobs(
                row.seq, row.start + 1, scores(sequence.tokens[: stop + 1])[row.start :]
            )

    def fail(self, step: Step) -> None:
        """Leave rubbish wherever the step would have written, and forget its sequences."""
        for _, target in step.copies:
            self.memory[target] = [GARBAGE] * BLOCK_TOKENS
        for row in step.rows:
            sequence = self.sequences.get(row.seq)
            if sequence is not None:
                self._append(sequence, row.blocks)
                for p in range(row.start, row.start + row.count):
                    self._cell(sequence, p)[p % BLOCK_TOKENS] = GARBAGE
        for number in [row.seq for row in step.rows]:
            self.sequences.pop(number, None)

    def _learn(self, new: NewSequence) -> None:
        assert new.seq not in self._numbers, "a number used twice"
        self._numbers.add(new.seq)
        tenant = self._tenants[new.sampling.seed]
        self.sequences[new.seq] = ToySequence(
            list(new.tokens), new.prompt_length, new.sampling, tenant
        )

    def _append(self, sequence: ToySequence, blocks: tuple[int, ...]) -> None:
        per_slot = self.served.kv.blocks_per_slot
        sequence.table += blocks
        for block in blocks:
            self._touch(block)
        if sequence.table:
            assert sequence.table[0] % per_slot == 0
            assert all(b == a + 1 for a, b in pairwise(sequence.table))
            assert len(sequence.table) <= per_slot
            slots = [other.table[0] for other in self.sequences.values() if other.table]
            assert len(slots) == len(set(slots)), "two sequences in one slot"

    def _cell(self, sequence: ToySequence, position: int) -> list[tuple[int, str]]:
        return self.memory[sequence.table[position // BLOCK_TOKENS]]

    def _touch(self, block: int) -> None:
        slot, index = divmod(block, self.served.kv.blocks_per_slot)
        assert slot < self.served.kv.slots
        for earlier in range(index + 1):
            at = slot * self.served.kv.blocks_per_slot + earlier
            self.memory.setdefault(at, [GARBAGE] * BLOCK_TOKENS)
        self.touched[slot] = max(self.touched.get(slot, 0), index + 1)

    def _release(self, first: int, count: int) -> None:
        slot, rest = divmod(first, self.served.kv.blocks_per_slot)
        assert (rest, count) == (0, self.served.kv.blocks_per_slot)
        assert all(first not in sequence.table for sequence in self.sequences.values())
        del self.touched[slot]
        for block in range(first, first + count):
            self.memory.pop(block, None)


class ToyWorker:
    """`tenants` says whose a request is, by its seed. Steps wait until `run_next`."""

    def __init__(self, kv_bytes: int, tenants: dict[int, str]) -> None:
        self.kv_bytes = kv_bytes
        self.posted: deque[Step | str] = deque()
        self.told: list[Step] = []
        self.instances: dict[str, ToyInstance] = {}
        self._tenants = tenants
        self._last_step = 0
        self._last_rows: defaultdict[str, LastRows] = defaultdict(LastRows)

    def load(self, served: ServedInstance) -> None:
        self.instances[served.id] = ToyInstance(served, self._tenants)

    def unload(self, instance: str) -> None:
        """Forget an instance once everything posted before has been carried out."""
        self.posted.append(instance)

    def post(self, step: Step) -> None:
        assert step.id > self._last_step
        self._last_step = step.id
        step = self._last_rows[step.instance].in_full(step)
        assert step.rows or step.drop or step.release, "an idle step"
        self.posted.append(step)
        self.told.append(step)

    def run_next(self, *, fail: bool = False) -> StepResult | StepFailed | None:
        """Carry out the next step and return the report; None if an instance was unloaded."""
        step = self.posted.popleft()
        if isinstance(step, str):
            del self.instances[step]
            return None
        instance = self.instances[step.instance]
        assert len(step.rows) <= instance.served.max_num_seqs
        assert sum(row.count for row in step.rows) <= instance.served.max_batched_tokens
        instance.prepare(step)
        if fail or any(row.seq not in instance.sequences for row in step.rows):
            instance.fail(step)
            self._check_budget()
            return StepFailed(step.id, step.instance, "made to fail")
        tokens = []
        for row in step.rows:
            token = instance.compute(row)
            if token is not None:
                instance.sequences[row.seq].tokens.append(token)
                tokens.append(token)
        self._check_budget()
        scores = tuple(scored for row in step.rows for scored in instance.score(row))
        duration_s = 0.001 * (1 + len(step.rows))
        return StepResult(step.id, step.instance, tuple(tokens), duration_s, prompt_logprobs=scores)

    def _check_budget(self) -> None:
        touched = sum(instance.touched_bytes() for instance in self.instances.values())
        assert touched <= self.kv_bytes, "more KV than there is"
