"""A worker without a model, and a road without a network: what they take is time, nothing else.

A layer of one request is one unit of time on any worker. Whatever would be wrong on a real one (a
layer that is not resident, hidden states of another layer) ends the simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from blitzgw.core.parcels import Parcel
from blitzgw.core.span import Span
from blitzgw.core.step import Import, LastRows, Send, Step, StepResult

LAYER_S = 0.001
"""What deciders are told that a unit takes: their own limits in seconds are then far away."""


class Agenda:
    """What is to happen, in units of time: of one moment, first by rank, then as it was put in."""

    def __init__(self) -> None:
        self.now: float = 0
        self._waiting: list[tuple[float, int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, moment: float, rank: int, call: Callable[..., object], *arguments: Any) -> None:
        """Let `call(*arguments)` happen at a moment, which is not past."""
        self._order += 1
        heappush(self._waiting, (moment, rank, self._order, call, arguments))

    def next(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._waiting:
            return False
        self.now, _, _, call, arguments = heappop(self._waiting)
        call(*arguments)
        return True


@dataclass(frozen=True, slots=True)
class Work:
    """A worker has run a span of layers for a request (by its number), from `start` to `stop`."""

    worker: int
    request: int
    span: Span
    start: float
    stop: float


@dataclass(slots=True)
class Held:
    """A sequence at a worker: the request that it stands for, and the layer that it has reached."""

    request: int
    layer: int = 0


@dataclass
class IdealWorker:
    """Carry out steps in the order posted.

    `rank` says whose steps end first at equal moments, `resident` how many layers may run.
    `finished(step, result)` is called at the end of each step.
    """

    number: int
    rank: int
    layers: int
    agenda: Agenda
    finished: Callable[[Step, StepResult], None]
    resident: int = 0
    work: list[Work] = field(default_factory=list)
    _posted: deque[Step] = field(default_factory=deque)
    _last: LastRows = field(default_factory=LastRows)
    _held: dict[int, Held] = field(default_factory=dict)
    _inbox: dict[tuple[str, int], list[Parcel]] = field(default_factory=dict)

    def post(self, step: Step) -> None:
        """Carry out a step after all that have been posted before."""
        self._posted.append(self._last.in_full(step))
        if len(self._posted) == 1:
            self._begin()

    def take_in(self, edge: str, parcel: Parcel) -> None:
        """Keep a parcel until it is imported or dropped."""
        self._inbox.setdefault((edge, parcel.ticket), []).append(parcel)

    def drop_parcels(self, edge: str, tickets: tuple[int, ...]) -> None:
        """Forget what has arrived by these tickets."""
        for ticket in tickets:
            self._inbox.pop((edge, ticket), None)

    def _begin(self) -> None:
        step = self._posted[0]
        for number in step.drop:
            self._held.pop(number, None)
        for new in step.new:
            self._held[new.seq] = Held(new.sampling.seed)
        for incoming in step.imports:
            self._import(incoming)
        start, stop = self.agenda.now, self.agenda.now + len(step.rows) * len(step.span)
        for row in step.rows:
            self._compute(self._held[row.seq], step.span, start, stop)
        self.agenda.at(stop, self.rank, self._end, start)

    def _import(self, incoming: Import) -> None:
        for parcel in self._inbox.pop((incoming.edge, incoming.ticket), ()):
            if parcel.is_hidden:
                self._held[incoming.seq].layer = parcel.span.start

    def _compute(self, held: Held, span: Span, start: float, stop: float) -> None:
        if held.layer % self.layers != span.start or span.stop > self.resident:
            raise AssertionError(
                f"request {held.request} is at layer {held.layer}, of {self.resident} resident "
                f"ones, and {span} is to run"
            )
        held.layer = span.stop
        self.work.append(Work(self.number, held.request, span, start, stop))

    def _end(self, start: float) -> None:
        step = self._posted.popleft()
        tokens = tuple(1 for row in step.rows if row.sample)
        duration_s = (self.agenda.now - start) * LAYER_S
        if self._posted:
            self._begin()
        self.finished(step, StepResult(step.id, step.instance, tokens, duration_s))


class IdealRoad:
    """Carry parcels one after another: `units` of time each, hidden states before KV."""

    def __init__(
        self,
        agenda: Agenda,
        units: float,
        arrived: Callable[[Parcel], None],
        sent: Callable[[int], None],
    ) -> None:
        self._agenda, self._units = agenda, units
        self._arrived, self._sent = arrived, sent
        self._hidden: deque[Parcel] = deque()
        self._kv: deque[Parcel] = deque()
        self._left: dict[int, int] = {}
        self._busy = False

    def send(self, send: Send) -> None:
        """Queue what a step sends."""
        layers = send.span.layers()
        if send.hidden:
            at = Span(send.span.stop, send.span.stop)
            self._hidden.append(Parcel(send.ticket, at, send.start, send.stop))
        for layer in layers:
            span = Span(layer, layer + 1)
            self._kv.append(Parcel(send.ticket, span, send.start, send.stop))
        self._left[send.ticket] = len(layers) + send.hidden
        self._go_on()

    def drop(self, tickets: tuple[int, ...]) -> None:
        """Forget what is still to be sent by these tickets."""
        self._hidden = deque(p for p in self._hidden if p.ticket not in tickets)
        self._kv = deque(p for p in self._kv if p.ticket not in tickets)
        for ticket in tickets:
            self._left.pop(ticket, None)

    def _go_on(self) -> None:
        while not self._busy and (self._hidden or self._kv):
            parcel = self._hidden.popleft() if self._hidden else self._kv.popleft()
            if self._units:
                self._busy = True
                self._agenda.at(self._agenda.now + self._units, 0, self._come, parcel)
            else:
                self._deliver(parcel)

    def _come(self, parcel: Parcel) -> None:
        self._busy = False
        self._deliver(parcel)
        self._go_on()

    def _deliver(self, parcel: Parcel) -> None:
        if parcel.ticket not in self._left:
            return  # dropped on its way
        self._left[parcel.ticket] -= 1
        self._arrived(parcel)
        if not self._left[parcel.ticket]:
            del self._left[parcel.ticket]
            self._sent(parcel.ticket)
