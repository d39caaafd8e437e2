"""A worker in virtual time: it carries out steps in the order posted, and takes the time they cost.

A sequence ends where its request's seed says, as on the testbed's paced device with `seed_ends`
(core/instance.py, PacedCost): its scheduler does not know.

Steps that repeat one another pass as one event. While a scheduler says that it would only post the
same again (`Scheduler.repeats`), the worker puts its next event to where the first of its sequences
ends, and what lies before is settled when somebody asks: the steps that are over by then are told
as one `StepsRepeated`, the one in progress ends when it would have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from blitzgw.core.parcels import DropParcels
from blitzgw.core.step import Send, Step, StepResult
from blitzgw.scheduler.events import StepsRepeated
from blitzgw.sim.cluster.costs import StepCost, ends_of
from blitzgw.sim.cluster.profiles import EOS
from blitzgw.sim.heap import EventHeap

WORD = 1
"""Any token that does not end a sequence."""

MAX_REPEATS = 4096
"""Steps that pass as one event: half a minute of decoding; each costs a few numbers."""


class Reader(Protocol):
    """Who is told of steps that are over: a scheduler, joined to its ingress."""

    @property
    def repeats(self) -> int:
        """How many of the next results may come as one."""

    def completed(self, result: StepResult) -> None:
        """Take a step's result."""

    def repeated(self, steps: StepsRepeated, at_s: float) -> None:
        """Take the results of several, the last of which came at `at_s`."""


@dataclass(slots=True)
class Posted:
    """A step on its way. `samplers` are the sequences that sample in it, with their positions."""

    step: Step
    id: int
    tokens: int
    context: int
    samplers: list[tuple[int, int]]
    layers: int
    costs: bool
    """Whether it computes anything; else it only tells the worker something."""

    def onward(self, step: Step) -> Posted:
        """Return the step that goes on from this one; AssertionError where it is another one's."""
        assert step.after == self.id, f"step {step.id} goes on from {step.after}, not {self.id}"
        found = Posted(step, step.id, self.tokens, self.context, self.samplers, self.layers, True)
        found.shift(1)
        return found

    def shift(self, count: int) -> None:
        """Become the step that comes `count` later in a series of equal ones."""
        self.context += count * len(self.samplers)
        self.samplers = [(seq, at + count) for seq, at in self.samplers]


def _posted(step: Step) -> Posted:
    tokens = context = 0
    samplers = []
    for seq, start, count, sample, _ in step.rows:
        stop = start + count
        tokens += count
        context += stop
        if sample:
            samplers.append((seq, stop))
    span = step.span
    return Posted(step, step.id, tokens, context, samplers, span.stop - span.start, tokens > 0)


@dataclass(slots=True)
class Company:
    """How many workers compute at this moment, of all that there are."""

    computing: int = 0


class StepWorker:
    """Implements `core.ports.StepPort`. `send` takes what steps send, `drop` what is dropped."""

    def __init__(
        self,
        heap: EventHeap,
        cost: StepCost,
        layers: int,
        send: Callable[[Send], None],
        drop: Callable[[DropParcels], None],
        company: Company,
    ) -> None:
        self._heap, self._cost, self._layers = heap, cost, layers
        self._send, self._drop, self._company = send, drop, company
        self._others = 0
        """Who computed as well when the present step began."""
        self._queue: deque[Posted] = deque()
        self._latest: Posted | None = None
        """The last step posted that computes something."""
        self._ends: dict[int, int] = {}
        self._due: list[float] = []
        """When the step that runs ends and, of a series, those after it."""
        self._begun_s = 0.0
        self._life = 0
        self._last_step = 0
        self.carried_out = 0
        """Steps so far that have computed something."""

    def join(self, reader: Reader) -> None:
        """Have results told; comes before anything else."""
        self._reader = reader

    # The scheduler's side.

    def post(self, step: Step) -> None:
        """Carry out a step after all that have been posted before."""
        for number in step.drop:
            self._ends.pop(number, None)
        for new in step.new:
            self._ends[new.seq] = new.sampling.seed
        self._last_step = step.id
        if step.after:
            assert self._latest is not None, f"step {step.id} goes on from none"
            posted = self._latest.onward(step)
        else:
            posted = _posted(step)
        if posted.costs:
            self._latest = posted
        self._queue.append(posted)

    def send(self, command: DropParcels) -> None:
        """Forget parcels."""
        self._drop(command)

    # Time.

    def settle(self) -> None:
        """Tell what is over of a series, before anything else is told."""
        due = self._due
        if len(due) > 1:
            count = bisect_right(due, self._heap.now, 0, len(due) - 1)
            if count:
                self._pass(count)

    def go_on(self) -> None:
        """Begin what was posted to a worker without work, and look how far the present one goes."""
        queue = self._queue
        if not self._due:
            self._tell_asides()
            if not queue:
                return
            self._begin(self._heap.now)
        elif len(self._due) > 1:
            del self._due[1:]
        else:
            return  # nothing was known beyond the step that runs, or it has just begun
        self._foresee()

    def stop(self) -> None:
        """Carry out nothing more."""
        self._life += 1
        self._company.computing -= bool(self._due)
        self._queue.clear()
        self._due = []

    def _begin(self, now: float) -> None:
        first, cost = self._queue[0], self._cost
        self._begun_s, self._others = now, self._company.computing
        self._company.computing += 1
        besides_s = cost.besides_s(self._others, prompt=first.tokens > len(first.samplers))
        self._due = [now + (besides_s + cost.step_s(first.layers, first.tokens, first.context))]

    def _foresee(self) -> None:
        """Put the next event to the end of the step that runs, or of the last one like it."""
        first, most = self._queue[0], 0
        rows = len(first.samplers)
        if first.tokens == rows:  # else there is a prompt in it, and the next one is another
            most = min(self._reader.repeats, MAX_REPEATS)
        if most:
            ends = self._ends
            most = min(most, *[ends[seq] - at for seq, at in first.samplers])
        if most > 0:
            context = first.context + rows
            besides_s = self._cost.besides_s(self._others, prompt=False)
            more = self._cost.decoding_s(self._layers, rows, context, most)
            self._due += ends_of(self._due[0], [besides_s + step_s for step_s in more])
        self._life += 1
        self._heap.at(self._due[-1], self._end, self._life)

    def _end(self, life: int) -> None:
        """Tell the result of the step that is over; those of a series before it come first."""
        if life != self._life:
            return
        if len(self._due) > 1:
            self._pass(len(self._due) - 1)
        over = self._queue.popleft()
        duration_s, self._due = self._heap.now - self._begun_s, []
        self._company.computing -= 1
        self._tell_asides()
        if self._queue:
            self._begin(self._heap.now)
        self.carried_out += 1
        self._told(over, duration_s)
        if not self._due:
            self.go_on()
        elif life == self._life:  # else somebody has called in and it is foreseen
            self._foresee()

    def _pass(self, count: int) -> None:
        """Tell of the first `count` steps of a series."""
        due = self._due
        begun, self._begun_s = self._begun_s, due[count - 1]
        durations = [stop - start for start, stop in zip((begun, *due), due[:count], strict=False)]
        del due[:count]
        self._renumber(count)
        self.carried_out += count
        rows = len(self._queue[0].samplers)
        words = (WORD,) * count
        repeated = StepsRepeated(self._queue[0].step.instance, (words,) * rows, tuple(durations))
        self._reader.repeated(repeated, self._begun_s)

    def _renumber(self, count: int) -> None:
        """Let the steps posted be the last of `count` more, as their scheduler does."""
        steps = [posted for posted in self._queue if posted.costs]
        last, self._last_step = self._last_step, self._last_step + count
        ids = [*(posted.id for posted in steps), *range(last + 1, self._last_step + 1)]
        for posted, number in zip(steps, ids[-len(steps) :], strict=True):
            posted.id = number
            posted.shift(count)

    def _tell_asides(self) -> None:
        """Carry out what costs nothing and is next."""
        queue = self._queue
        while queue and not queue[0].costs:
            self._told(queue.popleft(), 0.0)

    def _told(self, over: Posted, duration_s: float) -> None:
        ends, step = self._ends, over.step
        tokens = [EOS if at >= ends.get(seq, at) else WORD for seq, at in over.samplers]
        for send in step.sends:
            self._send(send)
        if over.costs or step.sends or step.imports:
            self._reader.completed(StepResult(over.id, step.instance, tuple(tokens), duration_s))
