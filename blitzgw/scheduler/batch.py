"""A step while it is put together: decoding rows first, then prefill, what is due first first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from blitzgw.core.request import GenerationRequest
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send, Step
from blitzgw.scheduler.lane import Lane, PostedStep
from blitzgw.scheduler.live.records import Course, Loan, Passage
from blitzgw.scheduler.sequence import Sequence
from blitzgw.scheduler.slots import Allocation

make_row: Callable[[tuple[int, int, int, bool, tuple[int, ...]]], Row]
make_row = partial(tuple.__new__, Row)
"""Makes a row of its fields in a third of the time that `Row(...)` takes."""


class Decoding:
    """Who has a row of the step that comes next, and who of them has been given a block for it.

    The rows themselves are made by `rows_of`, once, where somebody has to be told of them.
    """

    __slots__ = ("grown", "samplers")

    def __init__(self) -> None:
        self.samplers: list[Sequence] = []
        self.grown: list[Sequence] = []


def rows_of(samplers: Iterable[Sequence]) -> list[Row]:
    """Make the rows of sequences for which the position before `scheduled` comes next."""
    rows: list[Row] = []
    for seq in samplers:
        rows.append(make_row((seq.number, seq.scheduled - 1, 1, True, seq.new_blocks)))
        seq.new_blocks = ()
    return rows


class Batch:
    """The next step of a lane, over all layers or a span of them.

    `room` is the number of tokens that it can still take, `work` its prefill in tokens × layers.
    `sends` go when its rows have been computed, `samplers` are whose rows sample. Rows that decode
    may be there before `decode`, which adds the others.
    """

    __slots__ = (
        "_chunks",
        "_copies",
        "_decode_rows",
        "_imported",
        "_imports",
        "_lane",
        "_layers",
        "_new",
        "_prefill_tokens",
        "room",
        "rows",
        "samplers",
        "sends",
        "span",
        "work",
    )

    def __init__(self, lane: Lane, span: Span | None = None, begun: Decoding | None = None) -> None:
        self._lane = lane
        self.span = span or lane.span
        self._layers = self.span.stop - self.span.start
        self.rows: list[Row] = [] if begun is None else rows_of(begun.samplers)
        self.samplers: list[Sequence] = [] if begun is None else begun.samplers
        self._chunks: list[tuple[Sequence, int, int]] = []
        self._new: list[NewSequence] = []
        self._copies: list[tuple[int, int]] = []
        self._prefill_tokens = 0
        self.work = 0
        self._decode_rows = 0
        self._imports: list[Import] = []
        self._imported: list[tuple[Loan | Passage, int, int]] = []
        self.sends: list[Send] = []
        self.room = lane.instance.max_batched_tokens

    def __bool__(self) -> bool:
        return bool(self.rows or self._imports)

    def decode(self) -> None:
        """Add a row for every decoding sequence that may have another token and has none yet.

        Its input token may still be in flight: the worker appends what it samples.
        """
        lane, rows = self._lane, self.rows
        if len(rows) < len(lane.decoding):
            have_one = {row.seq for row in rows}
            for number, seq in lane.decoding.items():
                start = seq.scheduled
                if start + 1 >= seq.limit or number in have_one:
                    continue  # its last token is in flight
                if start >= seq.capacity:
                    lane.grow(seq)
                rows.append(make_row((number, start, 1, True, seq.new_blocks)))
                self.samplers.append(seq)
                seq.new_blocks, seq.scheduled = (), start + 1
                seq.samples_in_flight += 1
        self._decode_rows = len(rows)
        self.room -= len(rows)

    def go_on(self, seq: Sequence) -> None:
        """Add the next chunk of a sequence, if there is room."""
        if self.room:
            self._add_chunk(seq)

    def admit(self, seq: Sequence, allocation: Allocation) -> None:
        """Introduce a sequence to the worker and add its first chunk."""
        self._introduce(seq)
        self._copies += allocation.copies
        self._add_chunk(seq)

    def advance(self, course: Course) -> None:
        """Add rows that take a prefill through the span, all that are left of them or a chunk."""
        seq = course.seq
        if not course.introduced:
            self._introduce(seq)
            course.introduced = True
        if course.loan is not None and course.loan.fresh:
            self.take_in(course)
        n_tokens, last = len(seq.tokens), self.span.stop == self._lane.instance.n_layers
        start = course.at
        count = min(self.room, n_tokens - start)
        course.at = start + count
        complete = course.at == n_tokens
        sample = complete and last
        self.rows.append(Row(course.number, start, count, sample, seq.new_blocks))
        self._chunks.append((seq, course.number, course.at if last else 0))
        seq.new_blocks = ()
        self.room -= count
        self._prefill_tokens += self._share(count)
        self.work += count * self._layers
        course.stop = self.span.stop
        if complete:
            course.layer, course.at = self.span.stop, course.start
        elif last:
            course.start = course.at  # what is through the last layer is done with
        if sample:
            course.done = True
            seq.scheduled = n_tokens
            seq.samples_in_flight += 1
            self.samplers.append(seq)

    def take_in(self, course: Course) -> None:
        """Import what has arrived of a sequence that the worker knows, or is told of in this step.

        With the last of it the KV is whole: what is computed of the prompt may be named.
        """
        loan, seq = course.loan, course.seq
        assert loan is not None
        self._imports.append(Import(loan.side.id, loan.ticket, course.number, seq.new_blocks))
        seq.new_blocks = ()
        self._chunks.append((seq, course.number, 0))
        loan.fresh = False
        loan.importing += 1
        computed = -1
        if loan.is_whole:
            computed = seq.scheduled if course.done else 0
            course.loan = None
        self._imported.append((loan, course.number, computed))

    def receive(self, course: Course) -> None:
        """Import what has arrived of a sequence that comes from another instance."""
        passage, seq = course.passage, course.seq
        assert passage is not None
        if not course.introduced:
            self._introduce(seq)
            course.introduced = True
        self._imports.append(Import(passage.edge, passage.ticket, course.number, seq.new_blocks))
        seq.new_blocks = ()
        self._chunks.append((seq, course.number, 0))
        passage.fresh = False
        passage.importing += 1
        self._imported.append((passage, course.number, -1))

    def land(self, seq: Sequence) -> None:
        """Introduce a sequence whose KV has been taken in, and add what is left of its tokens."""
        self._introduce(seq)
        self._add_chunk(seq)

    def _share(self, tokens: int) -> int:
        """Return what so many tokens through the span amount to; parts add up to the whole."""
        n_layers = self._lane.instance.n_layers
        return tokens * self.span.stop // n_layers - tokens * self.span.start // n_layers

    def _introduce(self, seq: Sequence) -> None:
        request: GenerationRequest = seq.request
        as_asked = len(seq.tokens) == len(request.tokens)  # a copy has an object for each token
        self._new.append(
            NewSequence(
                seq.number,
                request.tokens if as_asked else tuple(seq.tokens),
                request.prompt_length,
                request.choice,
                request.sampling,
            )
        )

    def post(self, step_id: int) -> tuple[Step, PostedStep]:
        """Return the step, with all that its worker has yet to be told, and the record of it."""
        lane = self._lane
        step = Step(
            id=step_id,
            instance=lane.instance.id,
            span=self.span,
            rows=tuple(self.rows),
            new=tuple(self._new),
            drop=tuple(lane.drops),
            copies=(*lane.copies, *self._copies),
            release=lane.allocator.flush(),
            imports=tuple(self._imports),
            sends=tuple(self.sends),
        )
        lane.drops.clear()
        lane.copies.clear()
        lane.posted_prefill_tokens += self._prefill_tokens
        posted = PostedStep(
            step_id,
            lane,
            self.samplers,
            self._chunks,
            self._prefill_tokens,
            self._decode_rows,
            self._imported,
            self.work,
            self._layers,
        )
        return step, posted

    def _add_chunk(self, seq: Sequence) -> None:
        number, start = seq.number, seq.scheduled
        count = min(self.room, len(seq.tokens) - start)
        end = start + count
        complete = end == len(seq.tokens)
        self.rows.append(Row(number, start, count, complete, seq.new_blocks))
        self._chunks.append((seq, number, end))
        seq.new_blocks = ()
        seq.scheduled = end
        self.room -= count
        self._prefill_tokens += count
        self.work += count * self._layers
        if complete:
            seq.samples_in_flight += 1
            self.samplers.append(seq)
            del self._lane.prefilling[number]
            self._lane.decoding[number] = seq
