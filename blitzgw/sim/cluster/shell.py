"""A scheduler's production shell over a worker in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blitzgw.core.step import StepResult
from blitzgw.scheduler.events import EmitTokens, Event, Lose, StepCompleted, StepsRepeated
from blitzgw.scheduler.shell import SchedulerShell
from blitzgw.sim.cluster.steps import StepWorker

if TYPE_CHECKING:
    from blitzgw.sim.cluster.runner import Runner


class VirtualShell(SchedulerShell):
    """A scheduler's shell whose worker passes over steps that repeat one another.

    What has been passed over is settled before the scheduler is told anything else.
    """

    worker: StepWorker
    runner: Runner

    @property
    def repeats(self) -> int:
        """How many of the next results may come as one."""
        return self._scheduler.repeats

    def completed(self, result: StepResult) -> None:
        """Take a step's result."""
        super()._tell(StepCompleted(result))
        self.runner.note()

    def repeated(self, steps: StepsRepeated, at_s: float) -> None:
        """Take the results of several, the last of which came at `at_s`."""
        for effect in self._scheduler.handle(steps, at_s):
            assert isinstance(effect, EmitTokens), "nothing else follows"
            self.runner.outbox.put(effect.events, at_s)

    def _emit_tokens(self, effect: EmitTokens) -> None:
        self.runner.emit(list(effect.events), self._clock.now())

    def _lose(self, effect: Lose) -> None:
        self.runner.outbox.flush()
        super()._lose(effect)

    def _tell(self, event: Event) -> None:
        self.worker.settle()
        try:
            super()._tell(event)
        finally:
            self.worker.go_on()
            self.runner.note()
