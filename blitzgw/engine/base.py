"""What every device can do: run a span of layers for a batch, sample, move KV.

A batch is a list of rows; a row is a run of consecutive positions of one sequence. Hidden states
of a batch are `[T, hidden]` with T = Σ count, in row order. The worker keeps the sequences, the
engine keeps weights and KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import NO_TOKEN, SequenceKv
from blitzgw.engine.grammar import Constraint

Hidden = TypeVar("Hidden")
Logits = TypeVar("Logits")

PENDING = -1
"""Among a sequence's tokens: one that is sampled, and not known on the host yet."""


@dataclass(slots=True)
class SequenceState:
    """A sequence on this worker: its tokens so far, how to go on, and where its KV lies.

    `table[i]` is the KV block of positions `[i × BLOCK_TOKENS, (i + 1) × BLOCK_TOKENS)`.
    `constraint` is what its grammar leaves; None where it has none.
    """

    tokens: list[int]
    prompt_length: int
    choice: int
    sampling: SamplingParams
    table: list[int] = field(default_factory=list)
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class RowInput:
    """Positions `[start, start + count)` of a sequence; `sample` asks for the token after them."""

    sequence: SequenceState
    start: int
    count: int
    sample: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a row sampled, and its log-probabilities where they were asked for.

    `told` is the token as the scheduler hears of it.
    """

    token: int
    logprobs: Logprobs | None = None
    broken: bool = False
    """The token ends the sequence only because its grammar could not be followed."""

    @property
    def told(self) -> int:
        """What the scheduler hears."""
        return NO_TOKEN if self.broken else self.token


class SpanEngine(Protocol[Hidden, Logits]):
    """One instance's weights and KV on one device.

    One thread calls it, but for `blob_buffer`, `blob_arrived` and the two exports, which any thread
    may call meanwhile. Hidden states are sliced as `hidden[start:stop]`, which may share memory;
    nothing here writes to hidden states that it was given or has returned.
    """

    def blob_buffer(self, index: int) -> memoryview:
        """Return the writable bytes where blob `index` belongs (layout: `core/layout.py`).

        Once it has arrived these are its bytes, for peers to be served from; not to be written any
        more. May be called on any thread.
        """

    def blob_arrived(self, index: int) -> None:
        """Make the blob's tensors usable; its bytes are complete and do not change any more.

        May be called on any thread: a step that begins after it has returned finds them.
        """

    def forward(self, rows: Sequence[RowInput], span: Span, hidden: Hidden | None) -> Hidden:
        """Run the layers of `span`, writing and reading KV through the rows' block tables.

        A span from 0 embeds the rows' own tokens (`hidden` is None then) unless hidden states are
        given, which are the embedded tokens; any other span takes what left `span.start`. An empty
        span returns its input (embedded when it starts at 0). What leaves the whole model at once
        need have a meaning only where a row samples, unless one's sampling `scores`. Raises
        ValueError when a layer of the span, or the embedding where it is needed, is not resident.
        """

    def logits(self, rows: Sequence[RowInput], hidden: Hidden) -> Logits:
        """Return the fp32 logits, one line for each row that samples, in row order."""

    def sample(self, rows: Sequence[RowInput], logits: Logits) -> list[Sampled]:
        """Choose one token for each row that samples, in row order."""

    def score(self, rows: Sequence[RowInput], logits: Logits) -> list[Logprobs]:
        """Return what logits, a line for each row, give the known token that follows the row."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the KV of all layers from block to block, `(source, target)`."""

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Return the memory of whole slots, `(first block, number of blocks)`; contents vanish."""

    def export_kv(self, table: Sequence[int], start: int, stop: int, span: Span) -> SequenceKv:
        """Return the KV of positions `[start, stop)` for the layers of `span`, in its own buffer.

        Any thread may call it while others' positions are computed: what it reads must have been
        computed by a step that is over, and its blocks must not be given away before it returns.
        Raises ValueError for positions that the table does not have.
        """

    def import_kv(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write KV that another engine exported into this one's blocks.

        Raises ValueError, and writes nothing, where it does not fit.
        """

    def export_hidden(self, hidden: Hidden) -> memoryview:
        """Return hidden states as raw bytes, row major, in the model's dtype.

        They may be the memory of `hidden`. Any thread may call it.
        """

    def import_hidden(self, data: bytes | memoryview) -> Hidden:
        """Return the hidden states that another engine exported, which may be the memory of `data`.

        Raises ValueError for bytes that are not whole hidden states.
        """

    def join_hidden(self, parts: Sequence[Hidden]) -> Hidden:
        """Return hidden states one after another; one part or more."""


class Sampling(Protocol):
    """The tokens that a device is sampling."""

    def is_ready(self) -> bool:
        """Say whether `wait` would return at once."""

    def wait(self) -> list[Sampled]:
        """Return the tokens once they are there; raises what has gone wrong on the device."""


@runtime_checkable
class LaunchingEngine(SpanEngine[Hidden, Logits], Protocol[Hidden, Logits]):
    """An engine that returns from a step before it is computed: the next one is launched meanwhile.

    The token that a sequence has sampled last may be PENDING in its tokens when a later step reads
    it: the device has it. No more than one step's tokens may be PENDING then.
    """

    def can_follow(self, rows: Sequence[RowInput]) -> bool:
        """Tell whether a step of these rows needs no PENDING token's value on the host."""

    def launch(self, rows: Sequence[RowInput], logits: Logits | None) -> Sampling:
        """Begin to choose one token for each row that samples, in row order.

        Where none does, there are no logits, and nothing but the step's end to wait for.
        """

    def moment_s(self) -> float | None:
        """Return in how many seconds to call `use_moment`, 0 or more; None: nothing is to do."""

    def use_moment(self) -> None:
        """Prepare something that makes later steps faster: tens of milliseconds at most."""
