"""What a strategy is: a pure function from a task on its ground to a plan, or why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.core.plan import Plan
from blitzgw.scaling.planner.ground import Ground


class PlanError(Exception):
    """A task that cannot be planned; the message says what lacks."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """A strategy does not apply to a task, for a reason that is told to whoever asks."""

    reason: str


Strategy = Callable[[Ground], Plan | Unfit]
"""Makes a plan that completes the task. Raises PlanError where no plan can."""
