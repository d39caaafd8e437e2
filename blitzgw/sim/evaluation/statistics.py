"""Quantiles of one run, and intervals over several that were paired by their seeds.

interval     percentile bootstrap: seeds are drawn with replacement, all systems of a seed
             together, and the statistic is computed anew (Efron, Tibshirani 1993, § 13)
range        of the statistic of each seed alone, where there are too few for an interval
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

RESAMPLES = 2000
"""Of a bootstrap: beyond some thousands the ends of an interval move by less than they tell."""

LEVEL = 0.95

MIN_RUNS = 5
"""Of an interval: draws from fewer are nearly those runs themselves, whatever LEVEL says."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of all samples, and the ends of its interval; nan where they cannot be told.

    With fewer than MIN_RUNS `runs` the ends are those of a range. They may be infinite.
    """

    middle: float
    low: float = math.nan
    high: float = math.nan
    runs: int = 0

    @property
    def known(self) -> bool:
        """Whether there are ends, not the statistic alone."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def is_range(self) -> bool:
        """Whether the ends are those of the runs, too few for an interval."""
        return self.runs < MIN_RUNS


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile, linear between neighbours; nan where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    if place == below or ordered[above] == ordered[below]:
        return ordered[below]  # which may be infinite
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(values: Iterable[float]) -> float:
    """Return the median; nan where there are no values."""
    return quantile(values, 0.5)


def bootstrap(
    samples: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int = 0
) -> Interval:
    """Return a statistic and its interval, or its range; with fewer than two samples neither.

    No draw is left out: an infinite one moves an end, and with one that is nan there are no ends.
    """
    count = len(samples)
    if not samples:
        return Interval(math.nan)
    middle = statistic(samples)
    if count < 2:
        return Interval(middle, runs=count)
    if count < MIN_RUNS:
        found, tail = [statistic([one]) for one in samples], 0.0
    else:
        dice = random.Random(f"bootstrap {seed}")  # noqa: S311  figures are to repeat
        draws = (dice.choices(samples, k=count) for _ in range(RESAMPLES))
        found, tail = [statistic(drawn) for drawn in draws], (1 - LEVEL) / 2
    if any(map(math.isnan, found)):
        return Interval(middle, runs=count)
    return Interval(middle, quantile(found, tail), quantile(found, 1 - tail), count)
