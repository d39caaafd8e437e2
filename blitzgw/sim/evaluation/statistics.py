"""Quantiles of one run, and intervals over several that were paired by their seeds.

interval     percentile bootstrap: seeds are drawn with replacement, all systems of a seed
             together, and the statistic is computed anew (Efron, Tibshirani 1993, § 13)
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

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of all samples, and the ends of its interval; nan where they cannot be told."""

    middle: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval, not the statistic alone."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile, linear between neighbours; nan where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(values: Iterable[float]) -> float:
    """Return the median; nan where there are no values."""
    return quantile(values, 0.5)


def bootstrap(
    samples: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int = 0
) -> Interval:
    """Return a statistic and its interval; with fewer than two samples there is none.

    Draws for which the statistic is not finite are left out, unless they are more than the
    interval leaves out by itself: then there is none.
    """
    if not samples:
        return Interval(math.nan)
    middle = statistic(samples)
    if len(samples) < 2:
        return Interval(middle)
    dice = random.Random(f"bootstrap {seed}")  # noqa: S311  figures are to repeat
    found = (statistic(dice.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    finite = sorted(value for value in found if math.isfinite(value))
    if len(finite) < LEVEL * RESAMPLES:
        return Interval(middle)
    tail = (1 - LEVEL) / 2
    return Interval(middle, quantile(finite, tail), quantile(finite, 1 - tail))
