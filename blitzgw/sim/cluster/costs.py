"""What a step takes: the cost model of the paced device, and what a real one adds to it.

    step_s = overhead_s + beside_s · others
           + 10⁻⁶ · layers · (fixed_us + token_us · Σ tokens + context_us · Σ context)

The second line is core/instance.py's PacedCost, which engine/paced.py keeps. The first is measured:
a step's way to the worker and back that is not hidden behind the step before, and what is more of
it where `others` compute at the same time on the same processors, as on a testbed in one machine.
Steps with a prompt's tokens, which are longer and hide more, have figures of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain

from blitzgw.core.instance import PacedCost


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost model of a device that runs one model, and what each step costs besides."""

    pace: PacedCost
    overhead_s: float = 0.0
    beside_s: float = 0.0
    prompt_overhead_s: float = 0.0
    prompt_beside_s: float = 0.0

    def besides_s(self, others: int, *, prompt: bool) -> float:
        """Return what a step takes that is not computing, beside so many others that compute."""
        if prompt:
            return self.prompt_overhead_s + self.prompt_beside_s * others
        return self.overhead_s + self.beside_s * others

    def step_s(self, layers: int, tokens: int, context: int) -> float:
        """Return what so many tokens take through so many layers, in seconds.

        `context` is the sum over the step's rows of the positions up to their ends.
        """
        pace = self.pace
        layer_us = pace.fixed_us + pace.token_us * tokens + pace.context_us * context
        return layers * layer_us * 1e-6

    def decoding_s(self, layers: int, rows: int, context: int, steps: int) -> list[float]:
        """Return what each of several steps takes that decode the same rows, one after another."""
        if not self.pace.context_us:
            return [self.step_s(layers, rows, context)] * steps
        return [self.step_s(layers, rows, context + rows * step) for step in range(steps)]


def ends_of(begun_s: float, durations_s: list[float]) -> list[float]:
    """Return when each of several steps ends that follow one another."""
    ends = accumulate(chain((begun_s,), durations_s))
    next(ends)
    return [*ends]
