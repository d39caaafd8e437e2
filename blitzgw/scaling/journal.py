"""The decisions of an owner: numbered, the last ones of each model, and how they have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from blitzgw.core.scale import DecisionFacts

MAX_PAST = 64
"""Decisions remembered of a model: a burst's growth, the steps down after it, and their reasons."""

MAX_MODELS_PAST = 1024
"""Models of which decisions are remembered; the one decided longest ago is forgotten first."""

ADVICE_S = 1.0
"""Between two pieces of advice for a model: a figure between two bounds must not fill the log."""

MAX_OUTCOMES = 8192
"""Counters of outcomes: MAX_MODELS_PAST by the actions and outcomes that are common."""

DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
"""How operations end."""

PARTIAL, REFUSED, ADVISED = "partial", "refused", "advised"
"""How decisions end besides: some of what was wanted; no operation was begun; nothing was done."""


class Journal:
    """Numbers decisions and keeps them, the newest last."""

    def __init__(self) -> None:
        self._number = 0
        self._past: dict[str, deque[tuple[int, DecisionFacts]]] = {}
        self._advice: dict[str, tuple[str, int, float]] = {}
        self.outcomes: dict[tuple[str, str, str], int] = {}
        """By (model, action, outcome)."""

    def add(self, decision: DecisionFacts) -> int:
        """Keep a decision and return its number."""
        self._number += 1
        past = self._past.pop(decision.model, None) or deque(maxlen=MAX_PAST)
        past.append((self._number, decision))
        self._past[decision.model] = past
        while len(self._past) > MAX_MODELS_PAST:
            self._past.pop(next(iter(self._past)))
        return self._number

    def advise(self, decision: DecisionFacts, now: float) -> int | None:
        """Keep a piece of advice and return its number; None: it has been told already."""
        told = self._advice.get(decision.model)
        key = decision.action, decision.wanted
        if told is not None and (told[:2] == key or now < told[2] + ADVICE_S):
            return None
        self._advice.pop(decision.model, None)
        self._advice[decision.model] = *key, now
        while len(self._advice) > MAX_MODELS_PAST:
            self._advice.pop(next(iter(self._advice)))
        self._count(decision, ADVISED)
        return self.add(decision)

    def content(self, model: str, now: float) -> None:
        """Note that there is nothing to advise: the same advice is told again the next time."""
        told = self._advice.get(model)
        if told is not None and now >= told[2] + ADVICE_S:
            del self._advice[model]

    def carried_out(self, model: str, number: int, operation: str) -> None:
        """Note which operation carries a decision out."""
        past = self._past.get(model, ())
        for i, (known, decision) in enumerate(past):
            if known == number and isinstance(past, deque):
                past[i] = known, replace(decision, operation=operation)

    def ended(self, model: str, numbers: Iterable[int], outcome: str) -> None:
        """Count how decisions have ended."""
        wanted = {*numbers}
        for number, decision in self._past.get(model, ()):
            if number in wanted:
                self._count(decision, outcome)

    def of(self, model: str) -> tuple[DecisionFacts, ...]:
        """Return the last decisions of a model, the newest first."""
        return tuple(decision for _, decision in reversed(self._past.get(model, ())))

    def all(self) -> list[DecisionFacts]:
        """Return all that are remembered, the oldest first."""
        entries = [entry for past in self._past.values() for entry in past]
        return [decision for _, decision in sorted(entries, key=lambda entry: entry[0])]

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self._past) <= MAX_MODELS_PAST
        for model, past in self._past.items():
            numbers = [number for number, _ in past]
            assert numbers == sorted(set(numbers)), "numbers out of order"
            assert all(decision.model == model for _, decision in past)
            assert not numbers or numbers[-1] <= self._number

    def _count(self, decision: DecisionFacts, outcome: str) -> None:
        key = decision.model, decision.action, outcome
        if key in self.outcomes or len(self.outcomes) < MAX_OUTCOMES:
            self.outcomes[key] = self.outcomes.get(key, 0) + 1
