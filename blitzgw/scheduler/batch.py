"""A step while it is put together: decoding rows first, then prefill, oldest admission first."""

from __future__ import annotations

from blitzgw.core.request import GenerationRequest
from blitzgw.core.step import NewSequence, Row, Step
from blitzgw.scheduler.lane import Lane, PostedStep
from blitzgw.scheduler.sequence import Sequence
from blitzgw.scheduler.slots import Allocation


class Batch:
    """The next step of a lane. `room` is the number of tokens that it can still take."""

    __slots__ = (
        "_chunks",
        "_copies",
        "_decode_rows",
        "_lane",
        "_new",
        "_prefill_tokens",
        "_rows",
        "_samplers",
        "room",
    )

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._rows: list[Row] = []
        self._samplers: list[Sequence] = []
        self._chunks: list[tuple[Sequence, int, int]] = []
        self._new: list[NewSequence] = []
        self._copies: list[tuple[int, int]] = []
        self._prefill_tokens = 0
        self._decode_rows = 0
        self.room = lane.instance.max_batched_tokens

    def __bool__(self) -> bool:
        return bool(self._rows)

    def decode(self) -> None:
        """Add a row for every decoding sequence that may have another token.

        Its input token may still be in flight: the worker appends what it samples.
        """
        add_row = self._rows.append
        add_sampler = self._samplers.append
        for number, seq in self._lane.decoding.items():
            start = seq.scheduled
            if start + 1 >= seq.limit:
                continue  # its last token is in flight
            if seq.new_blocks:
                add_row(Row(number, start, 1, True, seq.new_blocks))
                seq.new_blocks = ()
            else:
                add_row(Row(number, start, 1, True))
            seq.scheduled = start + 1
            seq.samples_in_flight += 1
            add_sampler(seq)
        self._decode_rows = len(self._rows)
        self.room -= self._decode_rows

    def prefill(self) -> None:
        """Add chunks of the sequences that are admitted already."""
        for seq in list(self._lane.prefilling.values()):
            if not self.room:
                return
            self._add_chunk(seq)

    def admit(self, seq: Sequence, allocation: Allocation) -> None:
        """Introduce a sequence to the worker and add its first chunk."""
        request: GenerationRequest = seq.request
        self._new.append(
            NewSequence(
                seq.number,
                tuple(seq.tokens),
                request.prompt_length,
                request.choice,
                request.sampling,
            )
        )
        self._copies += allocation.copies
        self._add_chunk(seq)

    def post(self, step_id: int) -> tuple[Step, PostedStep]:
        """Return the step, with all that its worker has yet to be told, and the record of it."""
        lane = self._lane
        step = Step(
            id=step_id,
            instance=lane.instance.id,
            span=lane.span,
            rows=tuple(self._rows),
            new=tuple(self._new),
            drop=tuple(lane.drops),
            copies=tuple(self._copies),
            release=lane.allocator.flush(),
        )
        lane.drops.clear()
        lane.posted_prefill_tokens += self._prefill_tokens
        posted = PostedStep(
            step_id, lane, self._samplers, self._chunks, self._prefill_tokens, self._decode_rows
        )
        return step, posted

    def _add_chunk(self, seq: Sequence) -> None:
        number, start = seq.number, seq.scheduled
        count = min(self.room, len(seq.tokens) - start)
        end = start + count
        complete = end == len(seq.tokens)
        self._rows.append(Row(number, start, count, complete, seq.new_blocks))
        self._chunks.append((seq, number, end))
        seq.new_blocks = ()
        seq.scheduled = end
        self.room -= count
        self._prefill_tokens += count
        if complete:
            seq.samples_in_flight += 1
            self._samplers.append(seq)
            del self._lane.prefilling[number]
            self._lane.decoding[number] = seq
