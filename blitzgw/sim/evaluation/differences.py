"""How far a prediction may be from what was measured, and what several runs say of that.

                      −most        most
    accepted, surely    │  ├──┼──┤  │           the difference within its limit, its interval too
    accepted            │   ├──┼────┼──┤        within it, the interval not
    open                │       ├───┼─┼──┤     beyond it, by no more than runs differ
    off                 │           │  ├──┼──┤  beyond it, whichever runs are drawn

The interval is a bootstrap over pairs (statistics.py); it loosens nothing: what is open is not
accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from blitzgw.sim.evaluation.statistics import Interval

MAX_LOAD = 0.85
"""Beyond it the slowest answers depend on how long it lasts, and their quantile is not judged."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a figure may be off; `relative`: to what was measured."""

    figure: str
    most: float
    relative: bool = True
    only_below: float = math.inf
    """Load up to which it is judged."""

    def difference(self, measured: float, predicted: float) -> float:
        """Return by how much it is off; nan where it cannot be told."""
        if not self.relative:
            return predicted - measured
        return predicted / measured - 1.0 if measured else math.nan


LIMITS = (
    Limit("ttft_mean", 0.05),
    Limit("ttft_p50", 0.05),
    Limit("ttft_p99", 0.10, only_below=MAX_LOAD),
    Limit("attainment", 0.02, relative=False),
    Limit("instance_seconds", 0.03),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of a cell, in medians over its runs."""

    figure: str
    measured: float
    predicted: float
    off: Interval
    most: float
    judged: bool

    @property
    def accepted(self) -> bool:
        """Whether it is within its limit, or not judged."""
        return not self.judged or abs(self.off.middle) <= self.most

    @property
    def sure(self) -> bool:
        """Whether its whole interval is."""
        return not self.judged or max(-self.off.low, self.off.high) <= self.most

    @property
    def open(self) -> bool:
        """Whether it is beyond its limit, but its interval reaches within it."""
        reaches = self.off.low <= self.most and -self.most <= self.off.high
        return not self.accepted and reaches
