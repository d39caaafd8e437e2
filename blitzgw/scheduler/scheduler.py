"""The scheduler of one worker: continuous batching over the instances on it. A pure decider.

Steps are posted ahead, so that the next one is ready when the present one ends. Everything handed
to a later step (tokens still being sampled, memory still being read) relies on the worker's
executing steps in the order posted (core/step.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from blitzgw.core.messages import StepFailed
from blitzgw.core.peer import Loss
from blitzgw.core.ports import Outlook
from blitzgw.core.request import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
)
from blitzgw.core.step import StepResult
from blitzgw.core.view import LoadFacts
from blitzgw.errors import Outdated, Overloaded
from blitzgw.scheduler.batch import Decoding
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    Event,
    InstanceOpened,
    InstanceReady,
    InstanceRemoved,
    Lose,
    Refuse,
    RequestAborted,
    RequestArrived,
    ServedInstance,
    StepCompleted,
    StepsRepeated,
)
from blitzgw.scheduler.fairness import due_s
from blitzgw.scheduler.integrity import check_books
from blitzgw.scheduler.lane import InstanceStatistics, Lane, PostedStep
from blitzgw.scheduler.lengths import committed_tokens
from blitzgw.scheduler.live.integrity import check_live
from blitzgw.scheduler.live.live import HOME_LAYERS, IN_FLIGHT, PATIENCE, Live
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.refusals import objection_to
from blitzgw.scheduler.repeating import is_steady, repeats, take_repeated
from blitzgw.scheduler.sampled import take_sampled
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.telling import take_scores

MAX_IN_FLIGHT = 2
"""One step runs, one is ready: more would only make newcomers wait longer for their first step."""

MAX_QUEUE = 1024
"""Requests waiting at an instance: seconds of prefill at any rate; more had better go elsewhere."""

_RESULTS = StepCompleted, StepsRepeated
"""What ends steps. A union would be made anew for each of them."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Figures of the worker as a whole and of each instance by id."""

    steps_in_flight: int
    kv_total_bytes: int
    kv_used_bytes: int
    kv_active_bytes: int
    instances: dict[str, InstanceStatistics]


class Scheduler:
    """`handle` takes an event and returns what to do, in order.

    `kv_bytes` is the KV memory of the worker, shared by its instances. A smaller `max_queue` or
    `max_wait_s` (None: no bound) refuses earlier, a larger one lets clients wait longer. A home
    where nobody decodes posts `home_layers` layers at a time: fewer let those who are recalled wait
    less, more cost less overhead. Those who decode there let prefill go on for `patience` times
    their own step: more of it makes them slower and the queue shorter (live/sweep.py has the
    bound). A helper asks for `in_flight` batches (None: for all there are): more of them let every
    layer find work as it comes, fewer come home sooner. Steps are numbered from `last_step` on.
    """

    def __init__(
        self,
        kv_bytes: int,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        last_step: int = 0,
        max_queue: int = MAX_QUEUE,
        max_wait_s: float | None = None,
        home_layers: int = HOME_LAYERS,
        patience: float = PATIENCE,
        in_flight: int | None = IN_FLIGHT,
    ) -> None:
        self._budget = KvBudget(kv_bytes)
        self._planner = Planner(self._budget, max_in_flight, last_step)
        self._max_queue, self._max_wait_s = max_queue, max_wait_s
        self._requests: dict[str, Sequence] = {}
        self._arrivals = 0
        self._steady = False
        """Whether each step repeats the last one, as long as nothing but results comes."""
        self._live = Live(
            self._planner,
            self._requests,
            self._borrowed,
            home_layers=home_layers,
            patience=patience,
            in_flight=in_flight,
            end=self._end,
        )
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            RequestArrived: self._on_arrived,
            RequestAborted: self._on_aborted,
            StepCompleted: self._on_completed,
            StepsRepeated: self._on_repeated,
            StepFailed: self._on_failed,
            InstanceOpened: self._on_opened,
            InstanceReady: self._on_ready,
            InstanceRemoved: self._on_removed,
            **self._live.handlers,
        }

    @property
    def expects_ticks(self) -> bool:
        """Whether time decides anything: then `Ticked` is to be told once a second."""
        return self._live.expects_ticks

    @property
    def repeats(self) -> int:
        """How many of the next results may be told as one `StepsRepeated`; 0: none.

        As long as none of the tokens ends a sequence, and nothing else happens before.
        """
        return repeats(self._planner, self._live, self._budget)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event at time `now` in seconds; return steps first, then what clients are told.

        Raises ValueError for an instance that is here already.
        """
        self._planner.now = now
        if self._steady:
            self._steady = False
            if isinstance(event, StepCompleted) and (effects := self._repeat(event.result)):
                return effects
        told = self._handlers[type(event)](event, now)
        self._live.pump(now)
        steps = self._planner.fill(now)
        if self._live.is_busy:
            told += self._live.conclude()
        if isinstance(event, _RESULTS):
            self._steady = is_steady(self._planner, self._live)
        return steps + told if steps else told

    def outlook(self, instance: str) -> Outlook:
        """Return how busy an instance is; one that is gone is not open."""
        lane = self._planner.lanes.get(instance)
        if lane is None:
            return Outlook(0, open=False)
        if lane.loading:
            return Outlook(0, open=self._live.pipelines.lead.is_open(lane), reluctant=True)
        return Outlook(lane.queued_tokens(), lane.pace.prefill_tokens_per_s)

    def ahead(self, instance: str) -> tuple[int, float | None]:
        """Return an outlook's queued tokens and prefill rate, without all else of it."""
        lane = self._planner.lanes.get(instance)
        if lane is None or lane.loading:
            return 0, None
        return lane.queued_tokens(), lane.pace.prefill_tokens_per_s

    def load(self, instance: str) -> LoadFacts | None:
        """Return how busy an instance is, without all else of its `statistics`; None: not here."""
        lane = self._planner.lanes.get(instance)
        if lane is None:
            return None
        held: Iterable[Sequence] = self._requests.values()
        if len(self._planner.lanes) > 1:
            held = [seq for seq in held if seq.instance == instance]
        return lane.load(committed_tokens(held, lane.outputs))

    def loads(self) -> list[LoadFacts]:
        """Return how busy the instances are."""
        return [load for name in self._planner.lanes if (load := self.load(name)) is not None]

    def statistics(self) -> SchedulerStatistics:
        """Return the present figures."""
        return SchedulerStatistics(
            steps_in_flight=len(self._planner.in_flight),
            kv_total_bytes=self._budget.total_bytes,
            kv_used_bytes=self._budget.used_bytes,
            kv_active_bytes=self._budget.active_bytes,
            instances={
                name: self._live.statistics(lane) for name, lane in self._planner.lanes.items()
            },
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        check_books(self._budget, self._planner, self._requests)
        check_live(self._live, self._requests)

    # Requests.

    def _on_arrived(self, event: RequestArrived, now: float) -> list[Effect]:
        request = event.request
        lane = self._planner.lanes.get(event.instance)
        adopted, events = self._live.adopt(event.instance, request, now)
        if adopted:
            return [EmitTokens(events)] if events else []
        if lane is None or (lane.loading and not self._is_open(lane, request)):
            where = "not here" if lane is None else "still loading"
            error = Outdated(f"instance {event.instance} is {where}", retry_after_s=1.0)
            return [Refuse(request.id, error)]
        former = self._requests.get(request.id)
        objection = objection_to(request, lane, former, self._max_queue, self._max_wait_s)
        if objection is not None:
            return [Refuse(request.id, objection)]
        return self._accept(lane, request, now)

    def _is_open(self, lane: Lane, request: GenerationRequest) -> bool:
        """Tell whether an instance that is loading takes a request; stages score no prompts."""
        return not request.sampling.scores and self._live.pipelines.lead.is_open(lane)

    def _sequence(self, lane: Lane, request: GenerationRequest, now: float) -> Sequence:
        self._arrivals += 1
        pace = None if request.attempt else lane.pace.prefill_tokens_per_s  # it has waited before
        return Sequence(
            request,
            lane.instance.id,
            account=lane.queue.account(request.tenant),
            arrival=self._arrivals,
            arrived_s=now,
            due_s=due_s(now, len(request.tokens), pace),
            context=lane.context,
            eos_ids=lane.instance.eos_ids,
        )

    def _borrowed(self, lane: Lane, request: GenerationRequest, now: float) -> Sequence | None:
        """Make a sequence of a request that a home lends; None where it cannot run here."""
        seq = self._sequence(lane, request, now)
        seq.due_s = now  # it has waited before
        return seq if len(seq.tokens) < seq.limit else None

    def _accept(self, lane: Lane, request: GenerationRequest, now: float) -> list[Effect]:
        seq = self._sequence(lane, request, now)
        if len(seq.tokens) >= seq.limit:
            # a resubmission that lacked nothing but the news of its end
            done = TokenEvent(request.id, request.attempt, [], finish=FinishReason.LENGTH)
            return [EmitTokens([done])]
        if lane.loading:
            if self._live.pipelines.lead.accept(seq):
                return []
            error = Overloaded("the stages have no memory", retry_after_s=1.0)
            return [Refuse(request.id, error)]
        self._requests[request.id] = seq
        lane.queue.push(seq)
        if lane.turnover.per_s is None:  # else who only waits for a step to end would count
            lane.turnover.observe(0, len(lane.queue), now)
        return []

    def _on_aborted(self, event: RequestAborted, _now: float) -> list[Effect]:
        seq = self._requests.get(event.request_id)
        if seq is not None and seq.attempt == event.attempt and seq.id not in self._live.kept:
            self._end(seq)
        self._live.aborted(event.request_id, event.attempt)
        return []

    def _end(self, seq: Sequence) -> None:
        """Let go of a sequence in whatever phase it is; its results in flight will be ignored."""
        if seq.role is not None and self._live.let_go(seq):
            return
        lane = self._planner.lanes[seq.instance]
        if seq.phase is Phase.RUNNING:
            lane.take_back(seq)
        elif seq.phase is Phase.WAITING:
            lane.queue.remove(seq)
        elif seq.phase is Phase.STAGED:
            self._live.pipelines.lead.let_go(seq)
        seq.move(Phase.ENDED)
        del self._requests[seq.id]

    # Steps.

    def _repeat(self, result: StepResult) -> list[Effect]:
        """Take the result of a step among steps that repeat each other, and post another one.

        The same as `_on_completed` and `fill` in much fewer steps of Python: what has run last ten
        milliseconds ago has to come from memory. Nothing where that may not do.
        """
        planner = self._planner
        posted = planner.in_flight.get(result.step)
        if posted is None or planner.lacks_blocks(posted.lane):
            return []
        last = next(reversed(planner.in_flight.values()))
        del planner.in_flight[result.step]
        posted.lane.pace.observe_decoding((result.duration_s,))
        begun = Decoding()
        tokens = take_sampled(posted, result, planner, begun, self._end)
        step = planner.repeat(last, begun)
        self._steady = step is not None
        steps: list[Effect] = planner.fill(planner.now) if step is None else [step]
        return [*steps, EmitTokens(tokens)]

    def _on_completed(self, event: StepCompleted, _now: float) -> list[Effect]:
        posted = self._planner.in_flight.pop(event.result.step, None)
        if posted is None:  # one without rows, or of an instance that is gone
            self._planner.asides.pop(event.result.step, None)
            return []
        lane = posted.lane
        lane.posted_prefill_tokens -= posted.prefill_tokens
        if posted.relays:
            self._live.pipelines.stages.carried_out(posted, event.result)
            self._observe_stage(posted, event.result.duration_s)
            return []
        lane.pace.observe(posted.prefill_tokens, posted.decode_rows, event.result.duration_s)
        if posted.imported:
            self._live.completed(posted)
        for seq, number, end in posted.chunks:
            if seq.number == number:
                lane.allocator.commit(number, seq.tokens, end)
        if event.result.prompt_logprobs:
            take_scores(posted, event.result.prompt_logprobs)
        begun = self._planner.follow(posted) if self._live.is_still else None
        tokens = take_sampled(posted, event.result, self._planner, begun, self._end)
        if not (tokens.plain or tokens.events):
            return []
        if not self._live.kept:
            return [EmitTokens(tokens)]
        events = self._live.kept.hold(tokens)
        return [EmitTokens(events)] if events else []

    def _on_repeated(self, event: StepsRepeated, _now: float) -> list[Effect]:
        return [EmitTokens(take_repeated(self._planner, event))]

    def _observe_stage(self, posted: PostedStep, duration_s: float) -> None:
        """Take the duration of a step over a span; through all layers it would have been longer."""
        lane, layers = posted.lane, posted.layers
        if posted.work or posted.decode_rows:
            whole_s = duration_s * lane.instance.n_layers / layers
            lane.pace.observe(posted.work // layers, posted.decode_rows, whole_s)

    def _on_failed(self, event: StepFailed, _now: float) -> list[Effect]:
        aside = self._planner.asides.pop(event.step, None)
        posted = self._planner.in_flight.pop(event.step, aside)
        if posted is None:
            return []
        posted.lane.posted_prefill_tokens -= posted.prefill_tokens
        self._planner.hold(posted.lane)
        self._live.completed(posted, failed=True)
        lost = [seq for seq in posted.members() if not self._live.failed(seq)]
        return self._lose(lost, event.message)

    def _lose(self, sequences: list[Sequence], reason: str) -> list[Effect]:
        for seq in sequences:
            self._end(seq)
        losses = tuple(Loss(seq.id, seq.attempt) for seq in sequences)
        return [Lose(losses, reason)] if losses else []

    # Instances.

    def _on_ready(self, event: InstanceReady, now: float) -> list[Effect]:
        lane = self._planner.lanes.get(event.instance.id)
        if lane is not None and lane.loading:
            self._live.ready(lane, now)
        else:
            self._add(event.instance)
        return []

    def _on_opened(self, event: InstanceOpened, _now: float) -> list[Effect]:
        lane = self._add(event.instance)
        lane.loading, lane.resident = True, 0
        return []

    def _add(self, instance: ServedInstance) -> Lane:
        if instance.id in self._planner.lanes:
            raise ValueError(f"instance {instance.id} is here already")
        lane = Lane(instance, self._budget)
        self._planner.add(lane)
        return lane

    def _on_removed(self, event: InstanceRemoved, _now: float) -> list[Effect]:
        lane = self._planner.lanes.get(event.instance)
        if lane is None:
            return []
        self._live.removed(lane)
        held = [seq for seq in self._requests.values() if seq.instance == event.instance]
        lost = self._lose(held, f"instance {event.instance} was removed")
        self._planner.remove(lane)
        return lost
