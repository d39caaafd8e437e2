"""Arrivals from a trace: a window of it, thinned or replicated from a seed, and what is due.

SLO of a request    5 × the time to first token and 5 × the step of an instance that it has alone
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

TIMESTAMP_CHARS = 26
"""Of a timestamp: `datetime` knows six digits of a fraction, the traces have seven."""

JITTER_S = 1.0
"""Replicas of a request come within so much of it, so that they are no burst of their own."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: `at_s` after the window's start, undilated."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_trace(file: Path, window: tuple[float, float]) -> list[Arrival]:
    """Return what arrives in `[start, stop)`, seconds after the first row of the file."""
    with file.open(newline="") as lines:
        rows = [
            (
                datetime.fromisoformat(row["TIMESTAMP"][:TIMESTAMP_CHARS]).timestamp(),
                int(row["ContextTokens"]),
                int(row["GeneratedTokens"]),
            )
            for row in csv.DictReader(lines)
        ]
    start, stop = window
    first = rows[0][0]
    return [
        Arrival(at - first - start, max(1, tokens), max(1, generated))
        for at, tokens, generated in rows
        if start <= at - first < stop
    ]


def scaled(arrivals: Sequence[Arrival], factor: float, seed: int, window_s: float) -> list[Arrival]:
    """Return `factor` times as many: each stays, or goes, or has replicas near to it."""
    dice = random.Random(f"arrivals {seed}")
    made: list[Arrival] = []
    for one in arrivals:
        count = int(factor) + (dice.random() < factor % 1)
        for number in range(count):
            shift = dice.uniform(-JITTER_S, JITTER_S) if number else 0.0
            at_s = min(max(0.0, one.at_s + shift), window_s)
            made.append(Arrival(at_s, one.prompt_tokens, one.output_tokens))
    return sorted(made, key=lambda one: one.at_s)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is due: times that an instance alone takes, and how many times that is allowed."""

    tokens_per_s: float
    step_s: float
    times: float = 5.0

    def ttft_s(self, prompt_tokens: int) -> float:
        """Return within how much the first token is due."""
        return self.times * (prompt_tokens / self.tokens_per_s + self.step_s)

    @property
    def tpot_s(self) -> float:
        """Return within how much each further token is due, on average."""
        return self.times * self.step_s
