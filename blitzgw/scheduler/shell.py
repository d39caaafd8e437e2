"""Performs what the scheduler decides: steps to the worker, tokens and losses to the router."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blitzgw.core.clock import Clock
from blitzgw.core.messages import StepFailed
from blitzgw.core.parcels import DropParcels
from blitzgw.core.ports import Ingress, Outlook, PairingPort, StepPort
from blitzgw.core.request import GenerationRequest
from blitzgw.core.step import Step, StepResult
from blitzgw.core.view import LoadFacts
from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    EndPairing,
    Event,
    InstanceReady,
    InstanceRemoved,
    Lose,
    Refuse,
    RequestAborted,
    RequestArrived,
    RunStep,
    Say,
    ServedInstance,
    StepCompleted,
    Ticked,
)
from blitzgw.scheduler.scheduler import Scheduler, SchedulerStatistics


class SchedulerShell:
    """A scheduler with its worker and its ingress attached. Call it from the event loop only.

    Every method returns at once. Steps are posted before anybody is told anything, so a listener
    may call back in. Those without rows come last, as nobody waits for them, and a worker that
    wakes up may take the processor from who does; but before all that are decided later.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        steps: StepPort,
        ingress: Ingress,
        pairs: PairingPort,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._steps = steps
        self._ingress, self._pairs = ingress, pairs
        self._news: list[Step] = []
        self._performers: dict[type, Callable[[Any], None]] = {
            RunStep: self._run_step,
            EmitTokens: self._emit_tokens,
            Lose: self._lose,
            Refuse: self._refuse,
            Say: self._say,
            EndPairing: self._end_pairing,
            DropParcels: self._steps.send,
        }

    def add_instance(self, instance: ServedInstance) -> LocalInstance:
        """Take a loaded instance into service and return the router's way to it.

        Raises ValueError for an id that is here already.
        """
        self._tell(InstanceReady(instance))
        return self.port(instance)

    def port(self, instance: ServedInstance) -> LocalInstance:
        """Return a way to an instance that is known here, complete or not."""
        return LocalInstance(self, instance)

    def remove_instance(self, instance: str) -> None:
        """Stop an instance; what it had is reported lost. Post its UnloadModel before."""
        self._tell(InstanceRemoved(instance))

    def submit(self, instance: str, request: GenerationRequest) -> None:
        """Queue a request; raises the RequestError of a refusal.

        A resubmission that has nothing left to generate is told its finish before this returns.
        """
        self._tell(RequestArrived(instance, request))

    def abort(self, request_id: str, attempt: int) -> None:
        """Stop an attempt; unknown ids and other attempts are ignored."""
        self._tell(RequestAborted(request_id, attempt))

    def on_result(self, result: StepResult) -> None:
        """Take what the worker reports of a step."""
        self._tell(StepCompleted(result))

    def on_step_failed(self, failed: StepFailed) -> None:
        """Take the worker's report that a step raised."""
        self._tell(failed)

    def tell(self, event: Event) -> None:
        """Take what concerns pairings and instances that are loading (scheduler/events.py)."""
        self._tell(event)

    def tick(self) -> None:
        """Let time pass; called once a second."""
        if self._scheduler.expects_ticks:
            self._tell(Ticked())

    def outlook(self, instance: str) -> Outlook:
        """Return how busy an instance is; one that is gone is not open."""
        return self._scheduler.outlook(instance)

    def loads(self) -> list[LoadFacts]:
        """Return how busy the instances are: asked for at every look at the demand."""
        return self._scheduler.loads()

    def statistics(self) -> SchedulerStatistics:
        """Return the scheduler's figures."""
        return self._scheduler.statistics()

    def _tell(self, event: Event) -> None:
        effects: list[Effect] = self._scheduler.handle(event, self._clock.now())
        if self._news:
            self._post_news()  # a listener has called back in
        try:
            for effect in effects:
                self._performers[type(effect)](effect)
        finally:
            if self._news:
                self._post_news()

    def _post_news(self) -> None:
        steps, self._news = self._news, []
        for step in steps:
            self._steps.post(step)

    def _run_step(self, effect: RunStep) -> None:
        step = effect.step
        if step.rows or step.after or step.imports or step.sends:
            if self._news:
                self._post_news()
            self._steps.post(step)
        else:
            self._news.append(step)

    def _emit_tokens(self, effect: EmitTokens) -> None:
        self._ingress.on_tokens(effect.events)

    def _lose(self, effect: Lose) -> None:
        self._ingress.on_lost(effect.losses, effect.reason, planned=effect.planned)

    def _say(self, effect: Say) -> None:
        self._pairs.say(effect.message)

    def _end_pairing(self, effect: EndPairing) -> None:
        self._pairs.end(effect.pairing, effect.reason)

    def _refuse(self, effect: Refuse) -> None:
        raise effect.error


class LocalInstance:
    """A `core.ports.InstancePort` for an instance of this node."""

    def __init__(self, shell: SchedulerShell, served: ServedInstance) -> None:
        self.open = True
        """Whether it takes new requests gladly; False while its node drains: then only those of
        this node that no other instance takes."""
        self._shell = shell
        self._served = served

    @property
    def instance(self) -> str:
        """The instance's id."""
        return self._served.id

    @property
    def model(self) -> str:
        """The name of the model that it serves."""
        return self._served.model

    def outlook(self) -> Outlook:
        """Return how busy it is: as of now, and at no distance."""
        outlook = self._shell.outlook(self._served.id)
        return outlook if self.open else replace(outlook, reluctant=True)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; raises the RequestError of a refusal."""
        self._shell.submit(self._served.id, request)

    def abort(self, request_id: str, attempt: int) -> None:
        """Stop an attempt and free what it holds; unknown ids and other attempts are ignored."""
        self._shell.abort(request_id, attempt)
