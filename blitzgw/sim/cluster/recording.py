"""What a simulation leaves behind: answers, looks at the instances, operations, decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from blitzgw.api.operations import whole
from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import OperationFacts
from blitzgw.core.scale import DecisionFacts
from blitzgw.sim.evaluation.record import Answer, Look

MAX_OPERATIONS = 5_000
"""That are told in full: a few kB each. The first ones, of a large cluster over hours."""

MAX_DECISIONS = 50_000
"""That are told: some hundred bytes each."""


class Recorder:
    """Notes what happens. `now_s` returns seconds since the window's start, `unix_s` Unix time.

    `offered` says how many requests each model will have.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        unix_s: Callable[[], float],
        offered: Mapping[str, int],
    ) -> None:
        self._now_s, self._unix_s = now_s, unix_s
        self.n_answers = 0
        self.answers: dict[str, list[Answer | None]] = {
            model: [None] * count for model, count in offered.items()
        }
        """By the number of their requests: of millions a dictionary would weigh as much again."""
        self.looks: list[Look] = []
        self.operations: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.n_operations: Counter[str] = Counter()
        self.n_decisions: Counter[str] = Counter()
        self._states: Counter[InstanceState] = Counter()

    # Instances.

    def move(self, former: InstanceState | None, state: InstanceState | None) -> None:
        """Note that an instance goes from a state to a state; None: it is not there."""
        if former is not None:
            self._states[former] -= 1
        if state is not None:
            self._states[state] += 1
        now = self._now_s()
        look = Look(now, {one.value: count for one, count in self._states.items() if count})
        if self.looks and self.looks[-1].at_s == now:
            self.looks.pop()
        self.looks.append(look)

    # Requests.

    def answered(self, model: str, number: int, answer: Answer) -> None:
        """Note what has become of a request; each is answered once."""
        known = self.answers[model]
        assert known[number] is None, f"request {number} of {model} is answered twice"
        known[number] = answer
        self.n_answers += 1

    # Scaling.

    def decided(self, decision: DecisionFacts) -> None:
        """Note a decision."""
        self.n_decisions[decision.action] += 1
        if len(self.decisions) < MAX_DECISIONS:
            self.decisions.append({**asdict(decision), "at_s": self._since(decision.at_s)})

    def operation(self, facts: OperationFacts) -> None:
        """Note an operation that has ended, or that runs when all is over."""
        self.n_operations[facts.state] += 1
        if len(self.operations) < MAX_OPERATIONS:
            self.operations.append({**whole(facts), "at_s": self._since(facts.started_s)})

    def _since(self, unix_s: float) -> float:
        """Return a moment of Unix time in seconds since the window's start."""
        return self._now_s() - (self._unix_s() - unix_s)
