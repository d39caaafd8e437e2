"""A worker that is all bookkeeping, over layers: steps of spans, frontiers, parcels.

The KV entry of (layer, position) is a hash of the hidden state that comes in; what goes out of a
layer folds all entries up to the position, read through the block table. So a layer that is left
out or run twice, and KV or hidden states that are lost, stale or another's, give a wrong token.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import lru_cache

from blitzgw.core.messages import StepFailed
from blitzgw.core.parcels import DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.request import FinishReason, GenerationRequest
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, Import, LastRows, Row, Send, Step, StepResult
from blitzgw.scheduler.events import ServedInstance

VOCAB = 97
EOS = 0
GARBAGE = -1


def embedded(token: int, position: int) -> int:
    return hash((token, position, 1))


def entry(hidden: int, layer: int) -> int:
    return hash((hidden, layer, 2))


def fold(so_far: int, one: int) -> int:
    return hash((so_far, one))


def out_of(folded: int, hidden: int) -> int:
    return hash((folded, hidden, 3))


def token_of(hidden: int, seed: int) -> int:
    return hash((hidden, seed)) % VOCAB


@lru_cache(maxsize=512)
def alone(
    request: GenerationRequest, n_layers: int, context: int
) -> tuple[list[int], FinishReason]:
    """Return what a request is answered with when it has one complete instance for itself."""
    sampling = request.sampling
    tokens, outputs = list(request.tokens[: request.prompt_length]), []
    folds = [17] * n_layers
    hidden = done = 0
    while True:
        for p in range(done, len(tokens)):
            hidden = embedded(tokens[p], p)
            for layer in range(n_layers):
                folds[layer] = fold(folds[layer], entry(hidden, layer))
                hidden = out_of(folds[layer], hidden)
        done = len(tokens)
        token = token_of(hidden, sampling.seed)
        tokens.append(token)
        outputs.append(token)
        if token == EOS and not sampling.ignore_eos:
            return outputs, FinishReason.STOP
        if len(outputs) >= sampling.max_tokens or len(tokens) >= context:
            return outputs, FinishReason.LENGTH


LAYER_S, TOKEN_S = 0.0001, 0.0001
"""What a layer takes, and a token in it."""

CUT = 1 << 20
"""Positions in a parcel: workers cut them anywhere, and tests may set it."""


def cut(send: Send, span: Span) -> list[Parcel]:
    return [
        Parcel(send.ticket, span, start, min(start + CUT, send.stop))
        for start in range(send.start, send.stop, CUT)
    ]


@dataclass
class ToySequence:
    tokens: list[int]
    seed: int
    table: list[int] = field(default_factory=list)
    frontier: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Outgoing:
    """Parcels still to be read: the hidden states are captured, KV is read in its turn."""

    send: Send
    table: tuple[int, ...]
    hidden: dict[int, tuple[int, int]]
    instance: str
    parcels: deque[Parcel] = field(default_factory=deque)


class LayerToy:
    """The worker of one instance, or of several that share nothing but its clock."""

    def __init__(self, served: ServedInstance) -> None:
        self.served = served
        self.resident = 0
        self.posted: deque[Step] = deque()
        self.sequences: dict[int, ToySequence] = {}
        self.memory: dict[int, dict[int, list[int]]] = {}
        self.inbox: dict[tuple[str, int], list[tuple[Parcel, list[int]]]] = {}
        self.dropped: set[tuple[str, int]] = set()
        self.outgoing: dict[str, deque[Outgoing]] = {}
        self.ran: list[Step] = []
        self._last_rows: defaultdict[str, LastRows] = defaultdict(LastRows)

    def post(self, step: Step) -> None:
        self.posted.append(self._last_rows[step.instance].in_full(step))

    def drop(self, command: DropParcels) -> None:
        for ticket in command.tickets:
            self.inbox.pop((command.edge, ticket), None)
            self.dropped.add((command.edge, ticket))
        queue = self.outgoing.get(command.edge, deque())
        left = deque(out for out in queue if out.send.ticket not in command.tickets)
        self.outgoing[command.edge] = left

    def run_next(self, *, fail: bool = False) -> StepResult | StepFailed:
        step = self.posted.popleft()
        self.ran.append(step)
        for number in step.drop:
            self.sequences.pop(number, None)
        for first, count in step.release:
            for block in range(first, first + count):
                self.memory.pop(block, None)
        for new in step.new:
            assert new.seq not in self.sequences
            self.sequences[new.seq] = ToySequence(list(new.tokens), new.sampling.seed)
        for source, target in step.copies:
            self.memory[target] = {layer: list(of) for layer, of in self.memory[source].items()}
        users = [row.seq for row in step.rows] + [send.seq for send in step.sends]
        users += [one.seq for one in step.imports]
        if fail or any(number not in self.sequences for number in users):
            return self._fail(step, users)
        for one in step.imports:
            self._import(one)
        tokens = [t for row in step.rows if (t := self._compute(step.span, row)) is not None]
        for send in step.sends:
            self._send(step.instance, send)
        n_tokens = sum(row.count for row in step.rows)
        assert n_tokens <= self.served.max_batched_tokens
        assert len(step.rows) <= self.served.max_num_seqs
        duration_s = len(step.span) * (LAYER_S + TOKEN_S * n_tokens)
        return StepResult(step.id, step.instance, tuple(tokens), duration_s)

    def _fail(self, step: Step, users: list[int]) -> StepFailed:
        for one in step.imports:
            if one.seq in self.sequences:
                self.sequences[one.seq].table += one.blocks
        for row in step.rows:
            sequence = self.sequences.get(row.seq)
            if sequence is not None:
                sequence.table += row.blocks
                for p in range(row.start, row.start + row.count):
                    for layer in step.span.layers():
                        self._cells(sequence, layer, p)[p % BLOCK_TOKENS] = GARBAGE
        for number in users:
            self.sequences.pop(number, None)
        return StepFailed(step.id, step.instance, "made to fail")

    def _cells(self, sequence: ToySequence, layer: int, p: int) -> list[int]:
        block = self.memory.setdefault(sequence.table[p // BLOCK_TOKENS], {})
        return block.setdefault(layer, [GARBAGE] * BLOCK_TOKENS)

    def _compute(self, span: Span, row: Row) -> int | None:
        sequence = self.sequences[row.seq]
        sequence.table += row.blocks
        stop, n_layers = row.start + row.count, self.served.n_layers
        assert span.stop <= self.resident, "a layer that is not there"
        assert stop <= len(sequence.tokens)
        assert stop <= len(sequence.table) * BLOCK_TOKENS
        assert not row.sample or (stop == len(sequence.tokens) and span.stop == n_layers)
        hidden = []
        for p in range(row.start, stop):
            if span.start == 0:
                hidden.append(embedded(sequence.tokens[p], p))
            else:
                layer, state = sequence.frontier.pop(p)
                assert layer == span.start, f"hidden states at {layer}, not {span.start}"
                hidden.append(state)
        for layer in span.layers():
            folded = 17
            for p in range(stop):
                if p >= row.start:
                    own = entry(hidden[p - row.start], layer)
                    self._cells(sequence, layer, p)[p % BLOCK_TOKENS] = own
                folded = fold(folded, self._cells(sequence, layer, p)[p % BLOCK_TOKENS])
                if p >= row.start:
                    hidden[p - row.start] = out_of(folded, hidden[p - row.start])
        if span.stop < n_layers:
            for i, state in enumerate(hidden):
                sequence.frontier[row.start + i] = (span.stop, state)
        if not row.sample:
            return None
        token = token_of(hidden[-1], sequence.seed)
        sequence.tokens.append(token)
        return token

    def _import(self, one: Import) -> None:
        sequence = self.sequences[one.seq]
        sequence.table += one.blocks
        for parcel, data in self.inbox.pop((one.edge, one.ticket), []):
            if parcel.is_hidden:
                for p, state in zip(range(parcel.start, parcel.stop), data, strict=True):
                    sequence.frontier[p] = (parcel.span.start, state)
                continue
            values = iter(data)
            for layer in parcel.span.layers():
                for p in range(parcel.start, parcel.stop):
                    self._cells(sequence, layer, p)[p % BLOCK_TOKENS] = next(values)

    def _send(self, instance: str, send: Send) -> None:
        sequence = self.sequences[send.seq]
        if (send.edge, send.ticket) in self.dropped:
            return
        out = Outgoing(send, tuple(sequence.table), dict(sequence.frontier), instance)
        if send.hidden:
            k = send.span.stop
            assert {p: layer for p, (layer, _) in sequence.frontier.items()} == dict.fromkeys(
                range(send.start, send.stop), k
            ), "one frontier"
            out.parcels += cut(send, Span(k, k))
            sequence.frontier.clear()
        for layer in send.span.layers():
            out.parcels += cut(send, Span(layer, layer + 1))
        self.outgoing.setdefault(send.edge, deque()).append(out)

    def read_next(self, edge: str) -> tuple[Parcel, list[int]] | ParcelsSent | None:
        """Read the next parcel of a road from memory; with the last one gone, say so."""
        queue = self.outgoing.get(edge)
        if not queue:
            return None
        out = queue[0]
        if not out.parcels:
            queue.popleft()
            return ParcelsSent(edge, out.send.ticket, 1, 0.001)
        parcel = out.parcels.popleft()
        positions = range(parcel.start, parcel.stop)
        if parcel.is_hidden:
            return parcel, [out.hidden[p][1] for p in positions]
        reader = ToySequence([], 0, list(out.table))
        return parcel, [
            self._cells(reader, layer, p)[p % BLOCK_TOKENS]
            for layer in parcel.span.layers()
            for p in positions
        ]

    def receive(self, edge: str, parcel: Parcel, data: list[int]) -> ParcelArrived | None:
        if (edge, parcel.ticket) in self.dropped:
            return None
        self.inbox.setdefault((edge, parcel.ticket), []).append((parcel, data))
        return ParcelArrived(edge, parcel)

    def close(self, edge: str) -> None:
        """The road is gone: nothing more is read; what has arrived whole is still here."""
        self.outgoing.pop(edge, None)
