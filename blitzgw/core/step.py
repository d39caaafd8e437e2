"""What a scheduler tells its worker, and what comes back.

A worker executes steps strictly in the order in which they were posted. Everything below relies on
it: a row may read a token that an earlier, still unfinished step will sample, and a block may be
given away as soon as the step that last uses it has been posted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from blitzgw.core.record import record
from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span

BLOCK_TOKENS = 16
"""Tokens in a KV block: small enough to share short prefixes, large enough to keep tables short."""

RUN_TOKENS = 128
"""Positions whose KV kernels may read in one go, while that of the next lies elsewhere (kv.py)."""


@record(frozen=True, slots=True)
class NewSequence:
    """A sequence that the worker has not seen, with all tokens known so far.

    `seq` names it in later steps; the worker appends what it samples to `tokens`.
    `prompt_length` separates the original prompt from generated tokens (penalties, min_tokens).
    """

    seq: int
    tokens: tuple[int, ...]
    prompt_length: int
    choice: int
    sampling: SamplingParams


class Row(NamedTuple):
    """Compute positions `[start, start + count)` of a sequence.

    `blocks` are appended to the sequence's block table first. With `sample`, the token after the
    last position is sampled, appended to the sequence, and reported.

    There is one for every token: a tuple is made in a third of a dataclass's time, and travels
    without the names of its fields.
    """

    seq: int
    start: int
    count: int  # type: ignore[assignment]  # a tuple's method, of which a row has no use
    sample: bool
    blocks: tuple[int, ...] = ()


@record(frozen=True, slots=True)
class Import:
    """Take in, for a sequence, all parcels that have arrived by a ticket of a road.

    `blocks` are appended to its block table first. KV goes there, hidden states to its frontier.
    """

    edge: str
    ticket: int
    seq: int
    blocks: tuple[int, ...] = ()


@record(frozen=True, slots=True)
class Send:
    """Send parcels of a sequence's positions `[start, stop)` on a road, by a ticket of its far end.

    First, where `hidden`, the hidden states of them at its frontier, which are forgotten; then the
    KV of the layers of `span`. They are read when their turn comes, so the memory must stay until
    `ParcelsSent`.
    """

    edge: str
    ticket: int
    seq: int
    span: Span
    start: int
    stop: int
    hidden: bool = False


@record(frozen=True, slots=True)
class Step:
    """One call of a worker, for one instance and one span of its layers.

    Carried out in this order: forget `drop`, give the memory of `release` (ranges of whole slots,
    as `(first block, number of blocks)`) back, learn `new`, copy the KV of `copies` (source block,
    target block), import, append `known`, compute `rows`, sample, queue `sends`. The order of
    `rows` is the order of hidden states.

    A step that stops below the last layer leaves the hidden states of its rows with their
    sequences: their *frontier*. A span that starts above 0 takes its rows' hidden states from
    there; they must be at `span.start`, by a step or a parcel, and are forgotten with their use.

    With `after`, which is the id of the instance's last step with rows, this one has the rows of
    that one, each a position further, and `rows` are those of them that bring blocks (`LastRows`).
    Most steps are like this, and rows that nobody makes, writes or reads cost nothing.
    """

    id: int
    instance: str
    span: Span
    rows: tuple[Row, ...]
    new: tuple[NewSequence, ...] = ()
    drop: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    release: tuple[tuple[int, int], ...] = ()
    known: tuple[tuple[int, int], ...] = ()
    """Tokens that another worker has sampled, as (sequence, token): appended before the rows."""
    imports: tuple[Import, ...] = ()
    sends: tuple[Send, ...] = ()
    after: int = 0


class LastRows:
    """What the rows of an instance's next step may go on from: those of its last one with rows.

    Whoever carries out steps has one for each instance, and shows it every step in order.
    """

    __slots__ = ("_rows", "_step")

    def __init__(self) -> None:
        self._step = 0
        self._rows: tuple[Row, ...] = ()

    def in_full(self, step: Step) -> Step:
        """Return a step with all its rows; raises ValueError where they cannot be known."""
        if step.after:
            rows = self._onward(step)
            step = replace(step, rows=rows, after=0)
        if step.rows:
            self._step, self._rows = step.id, step.rows
        return step

    def _onward(self, step: Step) -> tuple[Row, ...]:
        if step.after != self._step:
            raise ValueError(f"step {step.id} goes on from {step.after}, the last is {self._step}")
        told, rows = {row.seq: row for row in step.rows}, list[Row]()
        for seq, start, count, sample, _ in self._rows:
            if count != 1 or not sample:
                raise ValueError(f"step {step.id} goes on from {step.after}, which has a prompt")
            row = Row(seq, start + 1, 1, sample=True)
            rows.append(told.pop(seq, row) if told else row)
            if rows[-1][:4] != row[:4]:
                raise ValueError(f"step {step.id} does not go on at {start} of sequence {seq}")
        if told:
            raise ValueError(f"step {step.id} has rows of {[*told]}, step {step.after} has not")
        return tuple(rows)


NO_TOKEN = (1 << 32) - 1
"""Instead of a sampled token: the sequence's grammar could not be followed. Ends the sequence."""


@record(frozen=True, slots=True)
class PromptLogprobs:
    """What a step's row gives prompt tokens of a sequence: those at `start` and following it."""

    seq: int
    start: int
    logprobs: tuple[Logprobs, ...]


@record(frozen=True, slots=True)
class StepResult:
    """The tokens of the rows that sample, in row order, and the seconds that the step took.

    One may be NO_TOKEN.
    `logprobs` is aligned with `tokens`, and None where nobody in the step asked for any.
    `prompt_logprobs` has an entry for each row that ends in the last layer and whose sequence asks
    for those of its prompt.
    """

    step: int
    instance: str
    tokens: tuple[int, ...]
    duration_s: float
    logprobs: tuple[Logprobs | None, ...] | None = None
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """How an instance's KV is cut: block id = slot × blocks_per_slot + index in the slot.

    A sequence lives in one slot, its block table is a run of consecutive ids, so a kernel without
    block tables can address it as one contiguous range.

    `huge_pages`: memory may be taken by huge pages, in which a sequence leaves some idle.
    """

    slots: int
    blocks_per_slot: int
    block_bytes: int
    huge_pages: bool = False

    @property
    def slot_tokens(self) -> int:
        """Positions in one slot."""
        return self.blocks_per_slot * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class SequenceKv:
    """KV of positions `[start, stop)` of one sequence for the layers of `span`, as raw bytes.

    Layers in order; in each K then V, `[kv_heads, stop − start, head_dim]` row major in the model's
    dtype (the paced device packs its own entries instead).
    """

    span: Span
    start: int
    stop: int
    data: bytes | memoryview = field(repr=False)
