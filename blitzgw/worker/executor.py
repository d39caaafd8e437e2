"""Carries out steps on an engine, whatever the device. Keeps the sequences; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import NewSequence, Row, Step, StepResult
from blitzgw.engine.base import RowInput, Sampled, SequenceState, SpanEngine

Engine = SpanEngine[Any, Any]

WARM_UP_SAMPLING = SamplingParams(max_tokens=2, temperature=0.0)


class StepRefused(ValueError):
    """A step that cannot be meant here: the parent's mistake, or the wake of a failed step."""


class InstanceExecutor:
    """One instance: an engine and the sequences that the scheduler has told it of."""

    def __init__(self, engine: Engine, n_layers: int) -> None:
        self.engine = engine
        self.sequences: dict[int, SequenceState] = {}
        self._whole = Span(0, n_layers)

    def execute(self, step: Step) -> list[Sampled]:
        """Carry out a step in the order that `core/step.py` lays down.

        Raises StepRefused for a row that cannot be meant, and whatever the engine raises. What
        came before the rows stays done; `forget` the step's sequences then.
        """
        for seq in step.drop:
            self.sequences.pop(seq, None)  # a sequence of a failed step is gone already
        if step.release:
            self.engine.release(step.release)
        for new in step.new:
            self._learn(new)
        if step.copies:
            self.engine.copy_blocks(step.copies)
        return self._compute([self._row(row) for row in step.rows], step.span)

    def forget(self, step: Step) -> None:
        """Drop every sequence that a step names: after a failure nobody knows their state."""
        for seq in (*(new.seq for new in step.new), *(row.seq for row in step.rows)):
            self.sequences.pop(seq, None)

    def warm_up(self) -> None:
        """Run a small prefill and one decode, so that the first request meets no lazy start.

        Writes to the first KV block: does nothing once a sequence exists.
        """
        if self.sequences:
            return
        scratch = NewSequence(-1, (0, 1, 2, 3), 4, 0, WARM_UP_SAMPLING)
        rows = (Row(-1, 0, 4, sample=True, blocks=(0,)), Row(-1, 4, 1, sample=True))
        try:
            for i, row in enumerate(rows):
                new = () if i else (scratch,)
                self.execute(Step(0, "", self._whole, (row,), new=new))
        finally:
            self.sequences.clear()

    def _learn(self, new: NewSequence) -> None:
        if new.seq in self.sequences:
            raise StepRefused(f"sequence {new.seq} is already here")
        self.sequences[new.seq] = SequenceState(
            list(new.tokens), new.prompt_length, new.choice, new.sampling
        )

    def _row(self, row: Row) -> RowInput:
        sequence = self.sequences.get(row.seq)
        if sequence is None:
            raise StepRefused(f"unknown sequence {row.seq}")
        if row.count < 1 or not 0 <= row.start <= len(sequence.tokens) - row.count:
            raise StepRefused(
                f"positions [{row.start}, {row.start + row.count}) of sequence {row.seq}, "
                f"which has {len(sequence.tokens)} tokens"
            )
        sequence.table += row.blocks
        return RowInput(sequence, row.start, row.count, row.sample)

    def _compute(self, rows: Sequence[RowInput], span: Span) -> list[Sampled]:
        if not rows:
            return []
        samples = any(row.sample for row in rows)
        if samples and span != self._whole:
            raise StepRefused(f"layers {span} cannot sample; the model has {self._whole}")
        hidden = self.engine.forward(rows, span, None)
        if not samples:
            return []
        sampled = self.engine.sample(rows, self.engine.logits(rows, hidden))
        sampling = (row for row in rows if row.sample)
        for row, one in zip(sampling, sampled, strict=True):
            row.sequence.tokens.append(one.token)
        return sampled


class Executor:
    """All instances of a worker. `now` gives seconds for the durations that are reported."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.instances: dict[str, InstanceExecutor] = {}
        self._now = now

    def execute(self, step: Step) -> StepResult:
        """Carry out a step and time it. Raises StepRefused, and what the engine raises.

        When it raises, the sequences that the step names are forgotten.
        """
        started = self._now()
        instance = self.instances.get(step.instance)
        if instance is None:
            raise StepRefused(f"unknown instance {step.instance}")
        try:
            sampled = instance.execute(step)
        except BaseException:
            instance.forget(step)
            raise
        logprobs = tuple(one.logprobs for one in sampled)
        return StepResult(
            step=step.id,
            instance=step.instance,
            tokens=tuple(one.token for one in sampled),
            duration_s=self._now() - started,
            logprobs=logprobs if any(one is not None for one in logprobs) else None,
        )
