"""Verdicts on controls: runs in which what live scaling is good for is not there.

    steady       each system that scales has the tail of `stop+disk`: nobody needs to scale
    one-target   a star and a chain to one target are the same plan, whose weights cross the link
    light        where weights come as fast as they are needed, a tail is no better than ALMOST

A tail is the p99 TTFT, its ratio is paired by seeds. A control passes where the interval of that
reaches what is claimed; with few seeds it is their range; with one there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from blitzgw.sim.evaluation.comparisons import (
    CHAIN,
    DISK,
    P99,
    Row,
    by_system,
    interval,
    ratio,
)
from blitzgw.sim.evaluation.statistics import Interval

STAR = "stop+star"

ALMOST = 0.90
"""Of the tail of a system that waits for all weights: hardly a gain is left above it."""

SAME = 0.02
"""What is the same plan takes the same time but for this: two runs that agree to a thousandth may
both lie on one side of 1."""

MOST = 0.9
"""Of a model's bytes: at least one scale-up of a run has brought them over links. Others may have
brought a kept instance back."""


def control_verdicts(rows: Sequence[Row], control: str) -> str:
    """Return lines that say whether a control shows no gain; empty for what is none."""
    return "\n".join(f"CONTROL {control}: {line}" for line in _JUDGES.get(control, _none)(rows))


def _none(_rows: Sequence[Row]) -> Iterator[str]:
    yield from ()


def _steady(rows: Sequence[Row]) -> Iterator[str]:
    for name, found in by_system(rows).items():
        if name == DISK or all(row["bound_s"] is None for row in found.values()):
            continue  # what does not scale has other instances
        yield _verdict(rows, name, DISK, lambda one: one.high >= 1.0)
    grown = sum(row["growths"] for row in rows)
    yield f"{'PASS' if not grown else 'FAIL'}: {grown} scale-ups"


def _one_target(rows: Sequence[Row]) -> Iterator[str]:
    yield _verdict(rows, STAR, CHAIN, lambda one: one.low <= 1 + SAME and one.high >= 1 - SAME)
    grown = [row for row in rows if row["growths"]]
    short = [row for row in grown if row["weights_sent"] < MOST * (row["model_bytes"] or 0)]
    if not grown:
        yield "NOT JUDGED: nothing has grown, so no weights had to cross the link"
    elif short:
        yield f"FAIL: weights have not crossed the link in {len(short)} of {len(grown)} runs"
    else:
        yield f"PASS: weights have crossed the link in all of {len(grown)} runs"


def _light(rows: Sequence[Row]) -> Iterator[str]:
    for name in by_system(rows):
        if name.startswith(("live", "pipeline")):
            yield _verdict(rows, name, CHAIN, lambda one: one.high >= ALMOST)


def _verdict(
    rows: Sequence[Row], name: str, reference: str, passes: Callable[[Interval], bool]
) -> str:
    found = ratio(rows, name, reference, P99)
    told = f"p99 TTFT of {name} / {reference} = {interval(found)}"
    if not found.known:
        return f"NOT JUDGED, fewer than two pairs: {told}"
    return f"{'PASS' if passes(found) else 'FAIL'}: {told}"


_JUDGES: Mapping[str, Callable[[Sequence[Row]], Iterator[str]]] = {
    "steady": _steady,
    "one-target": _one_target,
    "light": _light,
}
