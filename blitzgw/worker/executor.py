"""Carries out steps of an instance, whatever the device. Keeps its sequences; decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from blitzgw.core.parcels import Parcel
from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import (
    Import,
    LastRows,
    NewSequence,
    PromptLogprobs,
    Row,
    Send,
    SequenceKv,
    Step,
)
from blitzgw.engine.base import (
    PENDING,
    LaunchingEngine,
    RowInput,
    Sampled,
    SequenceState,
    SpanEngine,
)
from blitzgw.engine.grammar import Grammars
from blitzgw.transport.parcel import Outgoing
from blitzgw.worker.frontier import Frontier, Piece
from blitzgw.worker.outcome import Awaited, Known, Outcome
from blitzgw.worker.outgoing import parcels_of

Engine = SpanEngine[Any, Any]

SCORED_AT_ONCE = 64
"""Positions of a prompt of which logits are computed together: 33 MB of a vocabulary of 128k."""

WARM_UP_SAMPLING = SamplingParams(max_tokens=2, temperature=0.0)


class StepRefused(ValueError):
    """A step that cannot be meant here: the parent's mistake, or the wake of a failed step."""


class ParcelPort(Protocol):
    """Where parcels come from and go to (worker/parcels.py). Nothing here waits."""

    def take(self, edge: str, ticket: int) -> list[tuple[Parcel, memoryview]]:
        """Take out all that has arrived by a ticket."""

    def send(self, send: Send, outgoing: Sequence[Outgoing]) -> None:
        """Queue parcels on a road."""


class NoParcels:
    """No roads: nothing ever arrives, and nothing can be sent."""

    def take(self, edge: str, ticket: int) -> list[tuple[Parcel, memoryview]]:  # noqa: ARG002
        """Return nothing."""
        return []

    def send(self, send: Send, outgoing: Sequence[Outgoing]) -> None:  # noqa: ARG002
        """Refuse: raises StepRefused."""
        raise StepRefused(f"there is no road {send.edge}")


class InstanceExecutor:
    """One instance: an engine and the sequences that the scheduler has told it of."""

    def __init__(
        self,
        engine: Engine,
        n_layers: int,
        parcels: ParcelPort | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.engine = engine
        self.sequences: dict[int, SequenceState] = {}
        self.frontiers: dict[int, Frontier] = {}
        """Of sequences that are in here; a frontier without hidden states is none."""
        self._parcels = parcels or NoParcels()
        self._grammars = grammars
        self._n_layers = n_layers
        self._used = False
        self.launching: LaunchingEngine[Any, Any] | None = None
        """The engine, where it returns from a step before the step is computed."""
        if isinstance(engine, LaunchingEngine):
            self.launching = engine
        self._latest: Outcome = Known([])
        self.last_rows = LastRows()

    def execute(self, step: Step) -> list[Sampled]:
        """Carry out a step, and wait for its tokens; see `begin`."""
        return self.begin(step).settle()

    def begin(self, step: Step) -> Outcome:
        """Carry out a step, told with all its rows, in the order that `core/step.py` lays down.

        What it samples may still be on its way; of the steps begun before, one's may be, too.
        Raises StepRefused for what cannot be meant, and whatever the engine raises. What came
        before it stays done; `forget` the step's sequences then.
        """
        self._used = True
        for seq in step.drop:
            self._drop(seq)  # a sequence of a failed step is gone already
        if step.release:
            self.engine.release(step.release)
        for new in step.new:
            self._learn(new)
        if step.copies:
            self.engine.copy_blocks(step.copies)
        for each in step.imports:
            self._import(each)
        for seq, token in step.known:
            self._sequence(seq).tokens.append(token)
        outcome = self._compute(step.rows, step.span) if step.rows else Known([])
        for send in step.sends:
            self._send(send)
        return outcome

    def forget(self, step: Step) -> None:
        """Drop every sequence that a step names: after a failure nobody knows their state."""
        named: Iterator[NewSequence | Row | Import | Send] = chain(
            step.new, step.rows, step.imports, step.sends
        )
        for each in named:
            self._drop(each.seq)
        for seq, _ in step.known:
            self._drop(seq)

    def warm_up(self) -> None:
        """Run a small prefill and one decode, so that the first request meets no lazy start.

        Writes to the first KV block: does nothing once a step has been here, which may have left
        something there.
        """
        if self._used:
            return
        scratch = NewSequence(-1, (0, 1, 2, 3), 4, 0, WARM_UP_SAMPLING)
        rows = (Row(-1, 0, 4, sample=True, blocks=(0,)), Row(-1, 4, 1, sample=True))
        try:
            for i, row in enumerate(rows):
                new = () if i else (scratch,)
                self.execute(Step(0, "", Span(0, self._n_layers), (row,), new=new))
        finally:
            self.sequences.clear()
            self._used = False

    def _drop(self, seq: int) -> None:
        self.sequences.pop(seq, None)
        self.frontiers.pop(seq, None)

    def _learn(self, new: NewSequence) -> None:
        if new.seq in self.sequences:
            raise StepRefused(f"sequence {new.seq} is already here")
        self.sequences[new.seq] = sequence = SequenceState(
            list(new.tokens), new.prompt_length, new.choice, new.sampling
        )
        if new.sampling.grammar:
            if self._grammars is None:
                raise StepRefused(f"sequence {new.seq} has a grammar, for which nothing is here")
            sequence.constraint = self._grammars.constrain(new.sampling.grammar)

    def _sequence(self, seq: int) -> SequenceState:
        sequence = self.sequences.get(seq)
        if sequence is None:
            raise StepRefused(f"unknown sequence {seq}")
        return sequence

    def _import(self, order: Import) -> None:
        """Give a sequence what has arrived for it."""
        sequence = self._sequence(order.seq)
        sequence.table += order.blocks
        for parcel, data in self._parcels.take(order.edge, order.ticket):
            start, stop, layer = parcel.start, parcel.stop, parcel.span.start
            if not parcel.is_hidden:
                kv = SequenceKv(parcel.span, start, stop, data)
                self.engine.import_kv(sequence.table, kv)
                continue
            hidden = self.engine.import_hidden(data)
            if len(hidden) != stop - start or not 1 <= layer <= self._n_layers:
                raise StepRefused(
                    f"{len(hidden)} hidden states at layer {layer} for [{start}, {stop})"
                )
            self._put(order.seq, Piece(layer, start, stop, hidden))

    def _row(self, row: Row) -> RowInput:
        sequence = self._sequence(row.seq)
        if row.count < 1 or not 0 <= row.start <= len(sequence.tokens) - row.count:
            raise StepRefused(
                f"positions [{row.start}, {row.start + row.count}) of sequence {row.seq}, "
                f"which has {len(sequence.tokens)} tokens"
            )
        sequence.table += row.blocks
        return RowInput(sequence, row.start, row.count, row.sample)

    def _compute(self, rows: Sequence[Row], span: Span) -> Outcome:
        inputs = [self._row(row) for row in rows]
        self._check(rows, span)
        if self.launching is not None and not self.launching.can_follow(inputs):
            self._latest.settle()
        hidden = self.engine.forward(inputs, span, self._frontier_of(rows, span))
        self._leave(rows, span, hidden)
        self._latest = self._sample(inputs, hidden)
        if span.stop == self._n_layers and any(one.sequence.sampling.scores for one in inputs):
            self._latest.prompt_logprobs = tuple(self._score(rows, inputs, hidden))
        for row in rows:
            if row.sample and row.seq in self.frontiers:
                self.frontiers[row.seq].forget_top()
        return self._latest

    def _sample(self, inputs: Sequence[RowInput], hidden: Any) -> Outcome:
        sequences = [row.sequence for row in inputs if row.sample]
        if self.launching is None and not sequences:
            return Known([])
        logits = self.engine.logits(inputs, hidden) if sequences else None
        if self.launching is not None:
            outcome = Awaited(self.launching.launch(inputs, logits), sequences)
            for sequence in sequences:
                sequence.tokens.append(PENDING)
            return outcome
        sampled = self.engine.sample(inputs, logits)
        for sequence, one in zip(sequences, sampled, strict=True):
            sequence.tokens.append(one.token)
        return Known(sampled)

    def _score(
        self, rows: Sequence[Row], inputs: Sequence[RowInput], hidden: Any
    ) -> Iterator[PromptLogprobs]:
        """Yield the log-probabilities of prompts for those rows that want them."""
        offset = 0
        for row, wish in zip(rows, inputs, strict=True):
            sequence, start = wish.sequence, wish.start
            at, offset = offset - start, offset + wish.count
            if not sequence.sampling.scores:
                continue
            stop = min(start + wish.count, sequence.prompt_length - 1)
            if stop <= start:
                continue
            found: list[Logprobs] = []
            for first in range(start, stop, SCORED_AT_ONCE):
                last = min(first + SCORED_AT_ONCE, stop)
                each = [RowInput(sequence, p, 1, sample=True) for p in range(first, last)]
                logits = self.engine.logits(each, hidden[at + first : at + last])
                found += self.engine.score(each, logits)
            yield PromptLogprobs(row.seq, start + 1, tuple(found))

    def _check(self, rows: Sequence[Row], span: Span) -> None:
        n_layers = self._n_layers
        if span.stop > n_layers or not (len(span) or span.start == n_layers):
            raise StepRefused(f"layers {span} of a model that has {n_layers}")
        if span.stop < n_layers and any(row.sample for row in rows):
            raise StepRefused(f"layers {span} cannot sample; the model has {n_layers}")

    def _frontier_of(self, rows: Sequence[Row], span: Span) -> Any:
        """Return the hidden states that rows have come with, in row order; None at the start."""
        if span.start == 0:
            return None
        join, parts = self.engine.join_hidden, []
        for row in rows:
            frontier = self.frontiers.get(row.seq) or Frontier(self._n_layers)
            try:
                parts.append(frontier.take(span.start, row.start, row.start + row.count, join))
            except ValueError as error:
                raise StepRefused(f"sequence {row.seq}: {error}") from error
        return join(parts)

    def _leave(self, rows: Sequence[Row], span: Span, hidden: Any) -> None:
        """Leave the rows' hidden states with their sequences, where layers or the head remain.

        Not those of the whole model at once: it has not been cut, and nobody asks for them. But a
        model of one layer is run at once wherever it is cut.
        """
        if span.start == 0 and span.stop == self._n_layers > 1:
            return
        offset = 0
        for row in rows:
            start, offset = offset, offset + row.count
            if not row.sample:
                piece = Piece(span.stop, row.start, row.start + row.count, hidden[start:offset])
                self._put(row.seq, piece)

    def _put(self, seq: int, piece: Piece) -> None:
        frontier = self.frontiers.setdefault(seq, Frontier(self._n_layers))
        try:
            frontier.put(piece)
        except ValueError as error:
            raise StepRefused(f"sequence {seq}: {error}") from error

    def _send(self, send: Send) -> None:
        """Queue what a `Send` names: hidden states and block table as they are now."""
        sequence = self._sequence(send.seq)
        frontier = self.frontiers.get(send.seq) or Frontier(self._n_layers)
        if send.span.stop > self._n_layers:
            raise StepRefused(f"layers {send.span} of a model that has {self._n_layers}")
        try:
            pieces = frontier.give_away(send.start, send.stop) if send.hidden else []
            outgoing = parcels_of(send, pieces, sequence.table, self.engine)
        except ValueError as error:
            raise StepRefused(f"sequence {send.seq}: {error}") from error
        self._parcels.send(send, outgoing)
