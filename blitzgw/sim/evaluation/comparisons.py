"""Systems compared, paired by seeds, with intervals over them (statistics.py).

    difference  x − reference        median over seeds, in seconds
    ratio       x / reference        median over seeds
    excess      median(x − oracle) / median(baseline − oracle)

An excess is told only where the baseline's own lies above nought with its whole interval: a share
of noise is none. A draw in which it does not counts as infinite: against what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blitzgw.sim.evaluation.statistics import Interval, bootstrap, median

Row = Mapping[str, Any]

ORACLE, DISK, CHAIN, FULL = "oracle", "stop+disk", "stop+chain", "static-full"

P99 = "ttft_p99"

Compared = Callable[[Sequence[Row], str], Interval]


def by_system(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Return rows by system and seed, in their order."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["system"], {})[row["seed"]] = row
    return found


def paired(rows: Iterable[Row], systems: Sequence[str], key: str) -> list[tuple[float, ...]]:
    """Return a figure of several systems for each seed that all of them have."""
    found = by_system(rows)
    if any(name not in found for name in systems):
        return []
    seeds = set.intersection(*(set(found[name]) for name in systems))
    values = [tuple(found[name][seed][key] for name in systems) for seed in sorted(seeds)]
    return [one for one in values if None not in one]


def difference(rows: Iterable[Row], system: str, reference: str, key: str) -> Interval:
    """Return a figure of a system less that of a reference."""
    pairs = paired(rows, (system, reference), key)
    return bootstrap(pairs, lambda several: median(x - r for x, r in several))


def ratio(rows: Iterable[Row], system: str, reference: str, key: str) -> Interval:
    """Return a figure of a system over that of a reference."""
    pairs = paired(rows, (system, reference), key)
    return bootstrap(
        pairs, lambda several: median(x / r if r > 0 else math.inf for x, r in several)
    )


def excess(rows: Sequence[Row], system: str, baseline: str, key: str) -> Interval:
    """Return what a system has beyond the oracle's, over what the baseline has beyond it.

    There is none where the baseline lies within noise of the oracle.
    """
    if within_noise(difference(rows, baseline, ORACLE, key)):
        return Interval(math.nan)
    triples = paired(rows, (system, baseline, ORACLE), key)

    def share(several: Sequence[tuple[float, ...]]) -> float:
        over = median(x - oracle for x, _, oracle in several)
        under = median(base - oracle for _, base, oracle in several)
        return over / under if under > 0 else math.inf

    return bootstrap(triples, share)


def within_noise(beyond: Interval) -> bool:
    """Tell whether a difference cannot be told from nought, or from less."""
    return not (beyond.low if beyond.known else beyond.middle) > 0


TTFT: tuple[tuple[str, Compared], ...] = (
    ("− oracle, s", lambda rows, name: difference(rows, name, ORACLE, P99)),
    ("− disk, s", lambda rows, name: difference(rows, name, DISK, P99)),
    ("excess/disk", lambda rows, name: excess(rows, name, DISK, P99)),
    ("excess/chain", lambda rows, name: excess(rows, name, CHAIN, P99)),
    ("/ disk", lambda rows, name: ratio(rows, name, DISK, P99)),
)
COST: tuple[tuple[str, Compared], ...] = (
    ("attained/oracle", lambda rows, name: ratio(rows, name, ORACLE, "attainment")),
    ("inst·s/oracle", lambda rows, name: ratio(rows, name, ORACLE, "instance_seconds")),
    ("inst·s/full", lambda rows, name: ratio(rows, name, FULL, "instance_seconds")),
)
"""Heads, and what is below them."""


def comparison_tables(rows: Sequence[Row]) -> str:
    """Return comparisons with their intervals; empty where there is nothing to compare with."""
    tables = [_table(rows, "p99 TTFT by seeds", TTFT), _table(rows, "paired by seeds", COST)]
    if not any(tables):
        return ""
    notes = [
        "excess/x: (this − oracle) / (x − oracle); [ ]: 95 % of a bootstrap over seeds, or, with"
        ' "of N", the range of so few runs.'
    ]
    for name in (DISK, CHAIN):
        beyond = difference(rows, name, ORACLE, P99)
        if math.isfinite(beyond.middle) and within_noise(beyond):
            told = interval(beyond)
            notes.append(f"No excess/{name}: it lies within noise of the oracle, {told} s.")
    return "\n\n".join([*(table for table in tables if table), "\n".join(notes)])


def _table(rows: Sequence[Row], title: str, heads: Iterable[tuple[str, Compared]]) -> str:
    systems = by_system(rows)
    columns = [(head, [compared(rows, name) for name in systems]) for head, compared in heads]
    columns = [(head, cells) for head, cells in columns if any(map(_is_known, cells))]
    if not columns or len(systems) < 2:
        return ""
    lines = [[title, *systems]]
    lines += [[head, *map(interval, cells)] for head, cells in columns]
    widths = [max(map(len, column)) + 2 for column in lines]
    return "\n".join(
        f"{row[0]:<{max(18, widths[0])}}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in zip(*lines, strict=True)
    )


def interval(one: Interval) -> str:
    """Write a statistic with its interval, or its range."""
    if not _is_known(one):
        return "–"
    if not one.known:
        return _brief(one.middle)
    few = f" of {one.runs}" if one.is_range else ""
    return f"{_brief(one.middle)} [{_brief(one.low)}, {_brief(one.high)}]{few}"


def _brief(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "−∞" if value < 0 else "∞"


def _is_known(one: Interval) -> bool:
    return not math.isnan(one.middle)
