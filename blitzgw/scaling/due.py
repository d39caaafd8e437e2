"""When the blobs that are on their way to a worker are there: as predicted, at the pace so far.

    predicted   ── a ──── b ──── c ──── d ──►        a and b have come, at half of the pace:
    what came   ── A ──────── B ──── ┆ ──── C        the time from b to c takes twice as long
                                    now

Nobody has to believe it: a plan that takes blobs from a worker that is still getting them itself
(core/plan.py, `Holder.due_s`) sends each when it is there, whenever that may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PACE = 4.0
"""By this factor at most what comes is taken to be slower or quicker than predicted: the first
blobs come in bursts, from which nothing follows for the rest."""

LEAST_S = 1e-3
"""What is overdue is due now, but it is not there."""


def due_s(
    predicted: Sequence[float], arrived: Mapping[int, float], since_s: float
) -> tuple[float, ...]:
    """Return in how many seconds each blob is there; 0 for those that have arrived.

    `predicted` and `arrived` are seconds from the start of what brings them, `since_s` is the time
    since then. What was there before the plan is predicted for its beginning.
    """
    begun_s = min(predicted)
    came = sorted((predicted[blob], at_s) for blob, at_s in arrived.items())
    came = [pair for pair in came if pair[0] > begun_s]
    planned_s, there_s, pace = 0.0, 0.0, 1.0
    if came:
        first, (planned_s, there_s) = came[0], came[-1]
        if planned_s > first[0]:
            pace = min(PACE, max(1 / PACE, (there_s - first[1]) / (planned_s - first[0])))
    expected = {
        blob: there_s + pace * (at_s - planned_s) - since_s
        for blob, at_s in enumerate(predicted)
        if blob not in arrived
    }
    late_s = max(0.0, -min(expected.values(), default=0.0))
    return tuple(
        max(LEAST_S, expected[blob] + late_s) if blob in expected else 0.0
        for blob in range(len(predicted))
    )
