"""The helper: an instance that is loading works on its homes' requests, layer by layer.

At each layer boundary it goes to the earliest request whose next layer is resident, one layer a
step; requests at the same layer share a step. The last layer stays with whoever is complete, since
it ends with a sample. A recalled request is handed over at the boundary that it is at, behind the
steps that are posted.
"""

from __future__ import annotations

from blitzgw.core.live import (
    Finished,
    Handoff,
    Kept,
    Lend,
    LivePolicy,
    Nothing,
    Offer,
    Pull,
    Recall,
    Withdraw,
)
from blitzgw.core.parcels import ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Send
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.kept import KeptSequences
from blitzgw.scheduler.live.lead import Lead
from blitzgw.scheduler.live.records import Course, GuestSide, Task
from blitzgw.scheduler.live.sweep import fill
from blitzgw.scheduler.sequence import Phase, Sequence

UNLIMITED = 2**31 - 1
"""More requests and tokens than any home has."""


class Helper:
    """Decides for the instances that are loading.

    `in_flight` batches are asked for, half of them once ¾ of the layers are resident; None: all
    that there are.
    """

    def __init__(self, books: LiveBooks, kept: KeptSequences, in_flight: int | None) -> None:
        self._books = books
        self._kept = kept
        self._in_flight = in_flight
        self.lead: Lead | None = None

    # Asking.

    def pull(self, side: GuestSide) -> None:
        """Tell a home how much is taken from it, if that has changed."""
        lane = self._books.lane(side)
        if side.finished or not lane.loading or not lane.resident:
            return
        said = (*self._room(lane, side), self._leads(side))
        if said != side.said and (said[0] or side.said[0]):
            side.said = said
            self._books.say(Pull(side.id, *said))

    def _room(self, lane: Lane, side: GuestSide) -> tuple[int, int]:
        """Return the requests and tokens that make the batches to be in flight.

        With requests longer than a step, each of them counts as a batch.
        """
        if side.policy is LivePolicy.STOP:
            return 0, 0
        if self.lead is not None and self.lead.leads(side):
            return self.lead.room(lane)
        batches = self._batches(lane, side)
        if batches is None:
            return UNLIMITED, UNLIMITED
        longest = max((len(task.seq.tokens) for task in side.tasks.values()), default=0)
        tokens = batches * max(lane.instance.max_batched_tokens, longest)
        return max(lane.max_running, batches), tokens

    def _batches(self, lane: Lane, side: GuestSide) -> int | None:
        if side.policy is not LivePolicy.ZIGZAG:
            return self._books.planner.max_in_flight  # none waits here that its home could begin
        if self._in_flight is None:
            return None
        late = 4 * lane.resident >= 3 * lane.instance.n_layers
        return max(1, self._in_flight // 2) if late else self._in_flight

    def _leads(self, side: GuestSide) -> bool:
        return self.lead is not None and self.lead.leads(side)

    # What homes say.

    def lent(self, side: GuestSide, lend: Lend, seq: Sequence | None) -> None:
        """Take a request in; `seq` is None where it cannot run here at all."""
        if seq is None or side.finished:
            self._nothing(side, lend.request.id, lend.request.attempt)
            return
        if self.lead is not None and self.lead.leads(side):
            self.lead.lent(side, lend, seq)
            self.pull(side)
            return
        lane = self._books.lane(side)
        seq.move(Phase.LENT)
        task = Task(seq, side, lend.ticket)
        if side.policy is LivePolicy.PIPELINE:
            task.limit = _half(lane)
        seq.role = side.tasks[seq.id] = task
        self._books.requests[seq.id] = seq
        self.pull(side)

    def recalled(self, side: GuestSide, recall: Recall) -> None:
        """Hand a request over now, or when all of its positions are at the same layer."""
        task = side.tasks.get(recall.request_id)
        if task is None or task.seq.attempt != recall.attempt:
            if not side.finished:  # else it is kept or given back, as its home is about to hear
                self._nothing(side, recall.request_id, recall.attempt)
            return
        task.recalled = True
        if task.course is None or not task.course.is_begun:
            self._books.lane(side).sends += self._hand_over(task)

    def withdrawn(self, side: GuestSide, withdraw: Withdraw) -> None:
        """Forget a request that nobody wants."""
        task = side.tasks.get(withdraw.request_id)
        if task is None:
            sent = [
                task
                for task in side.sending.values()
                if (task.seq.id, task.seq.attempt) == (withdraw.request_id, withdraw.attempt)
            ]
            task = sent[0] if sent else None
        if task is not None and task.seq.attempt == withdraw.attempt:
            self.discard(task)

    # Computing.

    def compose(self, lane: Lane) -> Batch:
        """Put the next step together: a layer of the earliest request that has one to run."""
        tasks = self._runnable(lane)
        begun = [task for task in tasks if task.course is not None and task.course.is_begun]
        first = begun[0] if begun else next((t for t in tasks if self._reserve(lane, t)), None)
        if first is None or first.course is None:
            self._give_up(lane, tasks)
            return Batch(lane)
        layer = first.course.layer
        batch = Batch(lane, Span(layer, layer + 1))
        with_it = [
            task.course
            for task in tasks
            if task is not first and self._is_at(lane, task, layer) and task.course is not None
        ]
        fill(batch, [first.course, *([] if begun else with_it)])
        self._settle(batch, tasks)
        return batch

    def _is_at(self, lane: Lane, task: Task, layer: int) -> bool:
        if task.course is None:
            return not layer and self._reserve(lane, task)
        return task.course.layer == layer

    def _runnable(self, lane: Lane) -> list[Task]:
        """Return the tasks whose next layer may run, the earliest first.

        With all layers here nothing is begun that its home may take: the instance is about to be
        complete, and what it has begun by then it keeps.
        """
        n_layers = min(lane.resident, lane.instance.n_layers - 1)  # the last one samples
        found = []
        whole = lane.resident >= lane.instance.n_layers
        for task in self._tasks(lane):
            limit = n_layers if task.limit is None else min(n_layers, task.limit)
            layer = task.course.layer if task.course is not None else 0
            if layer < limit and (task.is_begun or not whole or not task.is_takeable):
                found.append(task)
        return sorted(found, key=lambda task: task.seq.rank)

    def _reserve(self, lane: Lane, task: Task) -> bool:
        """Give a task memory for all of its tokens; without it, it waits at its first layer."""
        if task.course is not None:
            return True
        planner, seq = self._books.planner, task.seq
        if lane.n_running >= lane.max_running:
            return False
        admitted = planner.allocate(lane, seq, reuse=False)
        if admitted is None:
            return False
        number, allocation = admitted
        planner.begin(lane, seq, number, allocation)
        task.course = lane.courses[number] = Course(seq, number)
        if task.side.policy is LivePolicy.BEST_EFFORT:
            task.limit = _half(lane)
        return True

    def _give_up(self, lane: Lane, tasks: list[Task]) -> None:
        """Give back what there is no memory for, though nothing here holds any; others do.

        What its home may take at any time can as well wait here.
        """
        if not lane.courses and not lane.sending:
            for task in tasks:
                if not task.is_takeable:
                    self.failed(task)

    def _settle(self, batch: Batch, tasks: list[Task]) -> None:
        """Hand over what has been recalled and is at a boundary now; offer what is done."""
        for task in tasks:
            course, seq = task.course, task.seq
            if course is None or course.is_begun:
                continue
            if task.recalled:
                batch.sends += self._hand_over(task)
            elif course.layer == task.limit:
                self._books.say(Offer(task.side.id, seq.id, seq.attempt, course.layer))

    def _hand_over(self, task: Task) -> list[Send]:
        """Give a request back to its home; what it sends keeps its memory until it is sent."""
        seq, side, course = task.seq, task.side, task.course
        layer = course.layer if course is not None else 0
        lane = self._books.lane(side)
        self._books.say(Handoff(side.id, seq.id, seq.attempt, layer))
        if course is None or not layer:
            self._free(task)
            return []
        del side.tasks[seq.id], self._books.requests[seq.id], lane.courses[course.number]
        seq.move(Phase.SENDING)
        side.sending[task.ticket] = task
        lane.sending[course.number] = seq
        lane.split_total += 1
        self.pull(side)
        send = Send(
            side.id, task.ticket, course.number, Span(0, layer), 0, len(seq.tokens), hidden=True
        )
        return [send]

    def sent(self, side: GuestSide, sent: ParcelsSent) -> None:
        """Free the memory of what has been sent; what could not be is its home's to compute."""
        task = side.sending.get(sent.ticket)
        if task is None:
            return
        self._free(task)
        if sent.reason:
            self._nothing(side, task.seq.id, task.seq.attempt)

    # Ends.

    def completed(self, lane: Lane, now: float) -> None:
        """Keep what is in flight: it goes on here as on any instance."""
        for side in self._books.guests_of(lane):
            self.finish(side, now)

    def finish(self, side: GuestSide, now: float) -> None:
        """Tell a home what is kept: what has been begun. The rest is its home's again."""
        tasks = sorted(side.tasks.values(), key=lambda task: task.seq.rank)
        side.finished = True
        for task in tasks:
            if not task.is_begun:
                self._free(task)
        side.tasks.clear()
        begun = [task.seq for task in tasks if task.is_begun]
        for seq in begun:
            self._kept.keep(seq, side.id, now)
        self._books.say(Finished(side.id, tuple(Kept(seq.id, seq.attempt) for seq in begun)))

    def evicted(self, task: Task) -> None:
        """Go back to the first layer: the memory is taken away."""
        task.course = None
        task.seq.move(Phase.LENT)
        if task.recalled:
            self._hand_over(task)

    def discard(self, task: Task) -> None:
        """Forget a task, or what is being sent of one; its home is not told."""
        if task.seq.phase is Phase.SENDING:
            self._books.drop(task.side.id, task.ticket)
        self._free(task)

    def failed(self, task: Task) -> None:
        """Give up a task that its worker has lost."""
        self.discard(task)
        self._nothing(task.side, task.seq.id, task.seq.attempt)

    def closed(self, side: GuestSide) -> None:
        """Forget all that is not kept: its home is gone, or does not want it."""
        self._books.guests.pop(side.id, None)
        for task in [*side.tasks.values(), *side.sending.values()]:
            self.discard(task)

    def _free(self, task: Task) -> None:
        seq, side = task.seq, task.side
        if seq.number:
            self._books.lane(side).take_back(seq)
        if self.lead is not None:
            self.lead.let_go(seq)
        side.sending.pop(task.ticket, None)
        if side.tasks.get(seq.id) is task:
            del side.tasks[seq.id], self._books.requests[seq.id]
        seq.role = None
        seq.move(Phase.ENDED)
        self.pull(side)

    def _nothing(self, side: GuestSide, request_id: str, attempt: int) -> None:
        self._books.say(Nothing(side.id, request_id, attempt))

    def _tasks(self, lane: Lane) -> list[Task]:
        return [task for side in self._books.guests_of(lane) for task in side.tasks.values()]


def _half(lane: Lane) -> int:
    """Return the layers of a request that runs in two parts: what is here, half at most."""
    return max(1, min(lane.resident, lane.instance.n_layers // 2))
