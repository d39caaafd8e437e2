"""What every device can do: run a span of layers for a batch, sample, move KV.

A batch is a list of rows; a row is a run of consecutive positions of one sequence. Hidden states
of a batch are `[T, hidden]` with T = Σ count, in row order. The worker keeps the sequences, the
engine keeps weights and KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import SequenceKv

Hidden = TypeVar("Hidden")
Logits = TypeVar("Logits")


@dataclass(slots=True)
class SequenceState:
    """A sequence on this worker: its tokens so far, how to go on, and where its KV lies.

    `table[i]` is the KV block of positions `[i × BLOCK_TOKENS, (i + 1) × BLOCK_TOKENS)`.
    """

    tokens: list[int]
    prompt_length: int
    choice: int
    sampling: SamplingParams
    table: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RowInput:
    """Positions `[start, start + count)` of a sequence; `sample` asks for the token after them."""

    sequence: SequenceState
    start: int
    count: int
    sample: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a row sampled, and its log-probabilities where they were asked for."""

    token: int
    logprobs: Logprobs | None = None


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
        span returns its input (embedded when it starts at 0). Raises ValueError when a layer of
        the span, or the embedding where it is needed, is not resident.
        """

    def logits(self, rows: Sequence[RowInput], hidden: Hidden) -> Logits:
        """Return the fp32 logits, one line for each row that samples, in row order."""

    def sample(self, rows: Sequence[RowInput], logits: Logits) -> list[Sampled]:
        """Choose one token for each row that samples, in row order."""

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
