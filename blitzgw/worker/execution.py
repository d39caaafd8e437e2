"""The steps of all instances of a worker: begun in the order posted, and finished in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blitzgw.core.step import Step, StepResult
from blitzgw.engine.base import LaunchingEngine
from blitzgw.worker.executor import InstanceExecutor, StepRefused
from blitzgw.worker.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that an instance has begun, when, and what comes of it."""

    step: Step
    instance: InstanceExecutor
    started: float
    outcome: Outcome

    def is_ready(self) -> bool:
        """Say whether it can be finished without waiting."""
        return self.outcome.is_ready()


class Executor:
    """All instances of a worker. `now` gives seconds for the durations that are reported."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.instances: dict[str, InstanceExecutor] = {}
        self._now = now
        self._finished = float("-inf")

    def execute(self, step: Step) -> StepResult:
        """Carry out a step and time it; raises as `begin` and `finish` do."""
        return self.finish(self.begin(step))

    def begin(self, step: Step) -> Begun:
        """Begin a step. Raises StepRefused, and what the engine raises.

        When it raises, the sequences that the step names are forgotten. One step that is not
        finished may go before.
        """
        started = self._now()
        instance = self.instances.get(step.instance)
        if instance is None:
            raise StepRefused(f"unknown instance {step.instance}")
        try:
            step = _in_full(step, instance)
            return Begun(step, instance, started, instance.begin(step))
        except BaseException:
            instance.forget(step)
            raise

    def finish(self, begun: Begun) -> StepResult:
        """Wait for what a step has sampled; steps are finished in the order they were begun in.

        Its duration begins when it was begun and the one before it was finished. When it raises
        what has gone wrong on the device, the sequences that the step names are forgotten.
        """
        try:
            sampled = begun.outcome.settle()
        except BaseException:
            begun.instance.forget(begun.step)
            raise
        started, self._finished = max(begun.started, self._finished), self._now()
        logprobs = tuple(one.logprobs for one in sampled)
        return StepResult(
            step=begun.step.id,
            instance=begun.step.instance,
            tokens=tuple(one.told for one in sampled),
            duration_s=self._finished - started,
            logprobs=logprobs if any(one is not None for one in logprobs) else None,
            prompt_logprobs=begun.outcome.prompt_logprobs,
        )

    def moment_s(self) -> float | None:
        """Return in how many seconds an engine has a use for a moment; None: none has."""
        due = [engine.moment_s() for engine in self._launching()]
        return min((each for each in due if each is not None), default=None)

    def use_moment(self) -> None:
        """Let one engine that is due prepare something."""
        for engine in self._launching():
            if engine.moment_s() == 0:
                engine.use_moment()
                return

    def _launching(self) -> Iterator[LaunchingEngine[Any, Any]]:
        return (each.launching for each in self.instances.values() if each.launching is not None)


def _in_full(step: Step, instance: InstanceExecutor) -> Step:
    """Return a step with all its rows; raises StepRefused where they cannot be known."""
    try:
        return instance.last_rows.in_full(step)
    except ValueError as error:
        raise StepRefused(str(error)) from error
