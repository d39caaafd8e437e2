"""What is published of a model's scaling: coarse, and not too often, because it is gossiped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from blitzgw.core.view import ScaleFacts

TELL_S = 0.25
"""Between two tellings: who waits for an instance wants to know its time, not each of its bytes."""

TELL_FIGURES_S = 1.0
"""Between two, where only the pressure is different: gossip's slowest round."""

READY_SLACK_S = 0.25
"""By which an expected time may move untold, or by a tenth of what is left."""

MAX_PRESSURE = 1000.0
"""What is told at most: beyond, nothing is different."""

MAX_REASON = 240
"""Characters of a reason: it is a sentence."""


STEPS = ((1.0, 0.25), (2.0, 0.1), (10.0, 0.5), (math.inf, 5.0))
"""Up to which pressure it is told in steps of what: around 1, its bound, it is looked at for."""


def coarse(pressure: float, told: float | None = None) -> float:
    """Return a pressure in steps that gossip need not follow closely.

    What has been `told` stays while it is less than a step away, and on the right side of 1.
    """
    if not pressure > 0:  # nonsense too
        return 0.0
    pressure = min(pressure, MAX_PRESSURE)
    step = next(step for top, step in STEPS if pressure <= top)
    if told is not None and abs(pressure - told) < step and (pressure > 1) == (told > 1):
        return told
    rounded = round(round(pressure / step) * step, 2)
    return 1.1 if pressure > 1 >= rounded else rounded


@dataclass(slots=True)
class Bulletin:
    """What has been told of one model, and what is to be told."""

    told: ScaleFacts | None = None
    told_s: float = 0.0
    due: ScaleFacts | None = None
    pause_s: float = 0.0
    """How long after the last telling that is to be."""

    def note(self, facts: ScaleFacts, unix_s: float) -> None:
        """Take what there is to tell now."""
        told = self.told
        if told is None:
            self.due = replace(facts, pressure=coarse(facts.pressure), reason=_short(facts))
            return
        ready_s = told.ready_s if _near(facts.ready_s, told.ready_s, unix_s) else facts.ready_s
        pressure, reason = coarse(facts.pressure, told.pressure), _short(facts)
        same = (facts.model, facts.mode, facts.present, facts.wanted, ready_s, reason) == (
            told.model, told.mode, told.present, told.wanted, told.ready_s, told.reason,
        ) and facts.since_s == told.since_s  # fmt: skip
        if same and pressure == told.pressure:
            self.due = None
            return
        self.pause_s = TELL_FIGURES_S if same else TELL_S
        self.due = replace(facts, pressure=pressure, ready_s=ready_s, reason=reason)

    def deadline(self) -> float | None:
        """Return when it is to be told; None: there is nothing to tell."""
        return self.told_s + self.pause_s if self.due is not None else None

    def tell(self, now: float) -> ScaleFacts | None:
        """Return what is to be told now, if anything is."""
        if self.due is None or now < self.told_s + self.pause_s:
            return None
        self.told, self.told_s, self.due = self.due, now, None
        return self.told


def _short(facts: ScaleFacts) -> str:
    return facts.reason[:MAX_REASON]


def _near(ready_s: float, told_s: float, unix_s: float) -> bool:
    """Whether a time is so near to what has been told that nobody needs to know."""
    if not ready_s or not told_s:
        return ready_s == told_s
    if max(ready_s, told_s) <= unix_s + READY_SLACK_S:
        return True  # overdue: any moment
    return abs(ready_s - told_s) <= max(READY_SLACK_S, 0.1 * (ready_s - unix_s))
