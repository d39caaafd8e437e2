"""The scheduler of one worker: continuous batching over the instances on it. A pure decider.

Steps are posted ahead, so that the next one is ready when the present one ends. Everything handed
to a later step (tokens still being sampled, memory still being read) relies on the worker's
executing steps in the order posted (core/step.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from blitzgw.core.messages import StepFailed
from blitzgw.core.peer import Loss
from blitzgw.core.ports import Outlook
from blitzgw.core.request import FinishReason, GenerationRequest, TokenEvent
from blitzgw.core.step import BLOCK_TOKENS, StepResult
from blitzgw.errors import InvalidRequest, Overloaded, RequestError, Unavailable
from blitzgw.scheduler.budget import KvBudget
from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    Event,
    InstanceReady,
    InstanceRemoved,
    Lose,
    Refuse,
    RequestAborted,
    RequestArrived,
    StepCompleted,
)
from blitzgw.scheduler.fairness import OUTPUT_WEIGHT
from blitzgw.scheduler.integrity import check_books
from blitzgw.scheduler.lane import InstanceStatistics, Lane, PostedStep
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase, Sequence

MAX_IN_FLIGHT = 2
"""One step runs, one is ready: more would only make newcomers wait longer for their first step."""

MAX_QUEUE = 1024
"""Requests waiting at an instance: seconds of prefill at any rate; more had better go elsewhere."""

MAX_TOKEN_ID = 2**31 - 1
"""What prefix names are packed from; an id beyond would fail in the middle of an admission."""

RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 120.0
"""Below, clients come back before anything has changed; above, they have given up."""


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

    `kv_bytes` is the KV memory of the worker, shared by its instances. A smaller `max_queue`
    refuses earlier, a larger one lets clients wait longer.
    """

    def __init__(
        self, kv_bytes: int, *, max_in_flight: int = MAX_IN_FLIGHT, max_queue: int = MAX_QUEUE
    ) -> None:
        self._budget = KvBudget(kv_bytes)
        self._planner = Planner(self._budget, max_in_flight)
        self._max_queue = max_queue
        self._requests: dict[str, Sequence] = {}
        self._arrivals = 0
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            RequestArrived: self._on_arrived,
            RequestAborted: self._on_aborted,
            StepCompleted: self._on_completed,
            StepFailed: self._on_failed,
            InstanceReady: self._on_ready,
            InstanceRemoved: self._on_removed,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event at time `now` in seconds; return steps first, then what clients are told.

        Raises ValueError for an instance that is here already.
        """
        told = self._handlers[type(event)](event, now)
        return self._planner.fill(now) + told

    def outlook(self, instance: str) -> Outlook:
        """Return how busy an instance is; one that is gone is not open."""
        lane = self._planner.lanes.get(instance)
        if lane is None:
            return Outlook(0, open=False)
        return Outlook(lane.queued_tokens(), lane.pace.prefill_tokens_per_s)

    def statistics(self) -> SchedulerStatistics:
        """Return the present figures."""
        return SchedulerStatistics(
            steps_in_flight=len(self._planner.in_flight),
            kv_total_bytes=self._budget.total_bytes,
            kv_used_bytes=self._budget.used_bytes,
            kv_active_bytes=self._budget.active_bytes,
            instances={name: lane.statistics() for name, lane in self._planner.lanes.items()},
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        check_books(self._budget, self._planner, self._requests)

    # Requests.

    def _on_arrived(self, event: RequestArrived, now: float) -> list[Effect]:
        request = event.request
        lane = self._planner.lanes.get(event.instance)
        if lane is None:
            error = Unavailable(f"instance {event.instance} is not here", retry_after_s=1.0)
            return [Refuse(request.id, error)]
        objection = self._objection(lane, request)
        if objection is not None:
            return [Refuse(request.id, objection)]
        return self._accept(lane, request, now)

    def _accept(self, lane: Lane, request: GenerationRequest, now: float) -> list[Effect]:
        self._arrivals += 1
        seq = Sequence(
            request,
            lane.instance.id,
            account=lane.queue.account(request.tenant),
            arrival=self._arrivals,
            arrived_s=now,
            context=lane.context,
            eos_ids=lane.instance.eos_ids,
        )
        if len(seq.tokens) >= seq.limit:
            # a resubmission that lacked nothing but the news of its end
            done = TokenEvent(request.id, request.attempt, [], finish=FinishReason.LENGTH)
            return [EmitTokens([done])]
        self._requests[request.id] = seq
        lane.queue.push(seq)
        return []

    def _objection(self, lane: Lane, request: GenerationRequest) -> RequestError | None:
        """Return why a request cannot be taken, or None."""
        former = self._requests.get(request.id)
        if former is not None:
            return _conflict(former, request)
        if not request.tokens:
            return InvalidRequest("the prompt is empty", param="prompt")
        if min(request.tokens) < 0 or max(request.tokens) > MAX_TOKEN_ID:
            return InvalidRequest(f"token ids are 0 to {MAX_TOKEN_ID}", param="prompt")
        if request.prompt_length >= lane.context:
            return InvalidRequest(
                f"the prompt has {request.prompt_length} tokens; prompt and answer together may "
                f"have {lane.context}",
                param="prompt",
            )
        if len(lane.queue) >= self._max_queue + lane.max_running - lane.n_running:
            return Overloaded(
                f"{len(lane.queue)} requests are waiting", retry_after_s=_retry_after_s(lane)
            )
        return None

    def _on_aborted(self, event: RequestAborted, _now: float) -> list[Effect]:
        seq = self._requests.get(event.request_id)
        if seq is not None and seq.attempt == event.attempt:
            self._end(seq)
        return []

    def _end(self, seq: Sequence) -> None:
        """Let go of a sequence in whatever phase it is; its results in flight will be ignored."""
        lane = self._planner.lanes[seq.instance]
        if seq.phase is Phase.RUNNING:
            lane.take_back(seq)
        elif seq.phase is Phase.WAITING:
            lane.queue.remove(seq)
        seq.move(Phase.ENDED)
        del self._requests[seq.id]

    # Steps.

    def _on_completed(self, event: StepCompleted, _now: float) -> list[Effect]:
        posted = self._planner.in_flight.pop(event.result.step, None)
        if posted is None:
            return []  # one that only freed memory, or of an instance that is gone
        lane = posted.lane
        lane.posted_prefill_tokens -= posted.prefill_tokens
        lane.pace.observe(posted.prefill_tokens, posted.decode_rows, event.result.duration_s)
        for seq, number, end in posted.chunks:
            if seq.number == number:
                lane.allocator.commit(number, seq.tokens, end)
        events = self._collect(posted, event.result)
        return [EmitTokens(events)] if events else []

    def _collect(self, posted: PostedStep, result: StepResult) -> list[TokenEvent]:
        """Append sampled tokens to their sequences, end those that are done.

        This runs for every token: no calls but the necessary ones.
        """
        running, ended = Phase.RUNNING, Phase.ENDED
        events: list[TokenEvent] = []
        for seq, token, logprobs in zip(
            posted.samplers, result.tokens, result.logprobs or repeat(None), strict=False
        ):
            if seq.phase is ended:
                continue
            tokens = seq.tokens
            n_computed = len(tokens)
            tokens.append(token)
            seq.samples_in_flight -= 1
            seq.account.charged += OUTPUT_WEIGHT
            event = TokenEvent(seq.id, seq.attempt, [token])
            if logprobs is not None:
                event.logprobs = [logprobs]
            if seq.first_step_s is not None:
                event.cached_tokens = seq.cached_tokens
                event.queued_s, seq.first_step_s = seq.first_step_s - seq.arrived_s, None
            events.append(event)
            if seq.phase is running and not n_computed % BLOCK_TOKENS:
                posted.lane.allocator.commit(seq.number, tokens, n_computed)
            if token in seq.stop_ids or n_computed + 1 >= seq.limit:
                event.finish = seq.finish_reason()
                if event.finish is not None:
                    self._end(seq)
                    continue
            if seq.phase is not running and not seq.samples_in_flight:
                self._planner.requeue(seq)
        return events

    def _on_failed(self, event: StepFailed, _now: float) -> list[Effect]:
        posted = self._planner.in_flight.pop(event.step, None)
        if posted is None:
            return []
        posted.lane.posted_prefill_tokens -= posted.prefill_tokens
        self._planner.hold(posted.lane)
        return self._lose(posted.members(), event.message)

    def _lose(self, sequences: list[Sequence], reason: str) -> list[Effect]:
        for seq in sequences:
            self._end(seq)
        losses = tuple(Loss(seq.id, seq.attempt) for seq in sequences)
        return [Lose(losses, reason)] if losses else []

    # Instances.

    def _on_ready(self, event: InstanceReady, _now: float) -> list[Effect]:
        if event.instance.id in self._planner.lanes:
            raise ValueError(f"instance {event.instance.id} is here already")
        self._planner.add(Lane(event.instance, self._budget))
        return []

    def _on_removed(self, event: InstanceRemoved, _now: float) -> list[Effect]:
        lane = self._planner.lanes.get(event.instance)
        if lane is None:
            return []
        held = [seq for seq in self._requests.values() if seq.instance == event.instance]
        lost = self._lose(held, f"instance {event.instance} was removed")
        self._planner.remove(lane)
        return lost


def _conflict(former: Sequence, request: GenerationRequest) -> RequestError:
    """Return why a request whose id is here already is not taken.

    Whoever has given an attempt up has aborted it: one that is still here is somebody's, perhaps
    another node's, who would never hear of its end.
    """
    if former.attempt >= request.attempt:
        return InvalidRequest(f"request {request.id} is already being answered")
    text = f"attempt {former.attempt} of request {request.id} is here"
    return Unavailable(text, retry_after_s=RETRY_AFTER_MIN_S)


def _retry_after_s(lane: Lane) -> float:
    """Return when the queue will have been worked off at the measured rate, within bounds."""
    rate = lane.pace.prefill_tokens_per_s
    backlog_s = lane.queue.tokens / rate if rate else 0.0
    return min(max(backlog_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
