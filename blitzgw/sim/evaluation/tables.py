"""Rows as text: medians with their spread, and comparisons of what is paired by seeds.

    excess of x over a baseline    median(x − oracle) / median(baseline − oracle), by seeds
    ratio of x to a reference      median(x / reference), by seeds

Both with the interval of a bootstrap over seeds (statistics.py). Void rows are in no figure, and
told. Seconds are undilated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blitzgw.sim.evaluation.growth import PHASES
from blitzgw.sim.evaluation.statistics import Interval, bootstrap, median

Row = Mapping[str, Any]

ORACLE, DISK, CHAIN, FULL = "oracle", "stop+disk", "stop+chain", "static-full"

FEASIBLE = 0.99
"""Attainment of `static-full` at the feasible level."""

COLUMNS = (
    ("attained", "attainment", "{:.1%}"),
    ("TTFT p50", "ttft_p50", "{:.3f}"),
    ("p90", "ttft_p90", "{:.3f}"),
    ("p99", "ttft_p99", "{:.3f}"),
    ("TPOT p99", "tpot_p99", "{:.4f}"),
    ("inst·s", "instance_seconds", "{:.0f}"),
)
"""Heads, keys of rows, formats."""


def report(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return all tables of an evaluation."""
    good = counted(rows)
    parts = [
        headline(about, rows),
        summary_table(good),
        comparison_table(good),
        sweep_table(good),
        phase_table(good),
        notes(rows, about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def counted(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that are no void runs'."""
    return [row for row in rows if not row["void"]]


def headline(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Say what was measured."""
    setting = about.get("settings", {})
    kind = " and ".join(sorted({"SIMULATED" if row["virtual"] else "PACED" for row in rows}))
    window = setting.get("window") or (0, 0)
    trace = str(setting.get("trace", "")).rpartition("/")[2]
    return (
        f"{kind} {trace} {window[0]:g}:{window[1]:g} s × {setting.get('factor', 1):g},"
        f" {setting.get('nodes', '?')} nodes, load/compute {setting.get('load_over_compute', '?')},"
        f" bound {setting.get('ttft_target_s', '?')} s; seconds undilated"
        f" (dilation {setting.get('dilation', '?')})."
    ).strip()


def by_system(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Return rows by system and seed, in their order."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["system"], {})[row["seed"]] = row
    return found


def summary_table(rows: Sequence[Row]) -> str:
    """Return medians over seeds, each with the greatest distance from it."""
    systems = by_system(rows)
    if not systems:
        return "Nothing has been measured that can be counted."
    width = max(18, *(len(name) + 2 for name in systems))
    head = f"{'medians':<{width}}"
    lines = [head + "".join(f"{name:>14}" for name, _, _ in COLUMNS) + "  seeds failed split"]
    for name, found in systems.items():
        several = list(found.values())
        cells = "".join(f"{spread([one[k] for one in several], f):>14}" for _, k, f in COLUMNS)
        counts = (len(several), *(sum(one[key] for one in several) for key in ("failed", "split")))
        lines.append(f"{name:<{width}}{cells}{counts[0]:>7}{counts[1]:>7}{counts[2]:>6}")
    return "\n".join(lines)


def spread(values: Iterable[float | None], form: str) -> str:
    """Write a median with what lies around it."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "–"
    middle = form.format(median(known))
    if len(known) < 2:
        return middle
    return f"{middle} ±{_bare(form, max(known[-1] - median(known), median(known) - known[0]))}"


def _bare(form: str, value: float) -> str:
    """Write a distance as briefly as it can be told from nought."""
    return form.format(value).removeprefix("0") or "0"


def excess(rows: Iterable[Row], system: str, baseline: str, key: str) -> Interval:
    """Return what a system has beyond the oracle's, over what the baseline has beyond it."""
    triples = paired(rows, (system, baseline, ORACLE), key)

    def ratio(several: Sequence[tuple[float, ...]]) -> float:
        over = median(x - oracle for x, _, oracle in several)
        under = median(base - oracle for _, base, oracle in several)
        return over / under if under > 0 else math.nan

    return bootstrap(triples, ratio)


def ratio(rows: Iterable[Row], system: str, reference: str, key: str) -> Interval:
    """Return a figure of a system over that of a reference."""
    pairs = paired(rows, (system, reference), key)

    def middle(several: Sequence[tuple[float, ...]]) -> float:
        return median(x / r for x, r in several) if all(r > 0 for _, r in several) else math.nan

    return bootstrap(pairs, middle)


def paired(rows: Iterable[Row], systems: Sequence[str], key: str) -> list[tuple[float, ...]]:
    """Return a figure of several systems for each seed that all of them have."""
    found = by_system(rows)
    if any(name not in found for name in systems):
        return []
    seeds = set.intersection(*(set(found[name]) for name in systems))
    values = [tuple(found[name][seed][key] for name in systems) for seed in sorted(seeds)]
    return [one for one in values if None not in one]


Compared = Callable[[Sequence[Row], str], Interval]

COMPARISONS: tuple[tuple[str, Compared], ...] = (
    ("p99 excess/disk", lambda rows, name: excess(rows, name, DISK, "ttft_p99")),
    ("p99 excess/chain", lambda rows, name: excess(rows, name, CHAIN, "ttft_p99")),
    ("p99/disk", lambda rows, name: ratio(rows, name, DISK, "ttft_p99")),
    ("attained/oracle", lambda rows, name: ratio(rows, name, ORACLE, "attainment")),
    ("inst·s/oracle", lambda rows, name: ratio(rows, name, ORACLE, "instance_seconds")),
    ("inst·s/full", lambda rows, name: ratio(rows, name, FULL, "instance_seconds")),
)
"""Heads, and what is below them."""


def comparison_table(rows: Sequence[Row]) -> str:
    """Return comparisons with their intervals; empty where there is nothing to compare with."""
    systems = by_system(rows)
    columns = [(head, [compared(rows, name) for name in systems]) for head, compared in COMPARISONS]
    columns = [(head, cells) for head, cells in columns if any(map(_is_known, cells))]
    if not columns or len(systems) < 2:
        return ""
    width = max(18, *(len(name) + 2 for name in systems))
    lines = [f"{'paired by seeds':<{width}}" + "".join(f"{head:>21}" for head, _ in columns)]
    for place, name in enumerate(systems):
        cells = "".join(f"{interval(several[place]):>21}" for _, several in columns)
        lines.append(f"{name:<{width}}{cells}")
    lines.append("excess/x: (this − oracle) / (x − oracle); in brackets 95 % of a bootstrap")
    return "\n".join(lines)


def interval(one: Interval) -> str:
    """Write a statistic with its interval."""
    if not _is_known(one):
        return "–"
    if not one.known:
        return f"{one.middle:.2f}"
    return f"{one.middle:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _is_known(one: Interval) -> bool:
    return math.isfinite(one.middle)


def sweep_table(rows: Sequence[Row]) -> str:
    """Return attainment for several factors of the objective, medians over seeds."""
    systems = by_system(rows)
    factors = sorted({key for row in rows for key in row["attainment_by_times"]}, key=float)
    if not factors:
        return ""
    width = max(18, *(len(name) + 2 for name in systems))
    head = f"{'attained within':<{width}}" + "".join(f"{f'{one} ×':>10}" for one in factors)
    lines = [head]
    for name, found in systems.items():
        middles = (
            median(one["attainment_by_times"][key] for one in found.values()) for key in factors
        )
        lines.append(f"{name:<{width}}" + "".join(f"{middle:>10.1%}" for middle in middles))
    return "\n".join(lines)


def phase_table(rows: Sequence[Row]) -> str:
    """Return how long scale-ups took until the end of each phase, medians over seeds."""
    systems = {name: found for name, found in by_system(rows).items() if _grown(found) > 0}
    if not systems:
        return ""
    width = max(18, *(len(name) + 2 for name in systems))
    lines = [
        f"{'s since the decision':<{width + 4}}" + "".join(f"{one:>{_wide(one)}}" for one in PHASES)
    ]
    for name, found in systems.items():
        cells = []
        for phase in PHASES:
            told = [one["phases"][phase] for one in found.values() if phase in one["phases"]]
            cells.append(f"{median(told):.3f}" if told else "–")
        text = "".join(f"{one:>{_wide(phase)}}" for phase, one in zip(PHASES, cells, strict=True))
        lines.append(f"{name:<{width}}{_grown(found):>4}{text}")
    return "\n".join(lines)


def _wide(phase: str) -> int:
    return max(10, len(phase) + 2)


def _grown(found: Mapping[int, Row]) -> int:
    """Return how many scale-ups there were."""
    return sum(one["growths"] for one in found.values())


def notes(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Tell what is void, whether the level is what it is called, and what was checked."""
    lines = [
        f"VOID: {row['system']}, seed {row['seed']}: {row['why_void']}"
        for row in rows
        if row["void"]
    ]
    if again := about.get("void_runs"):
        lines.append(f"{len(again)} runs were void and are told in about.json.")
    full = [row["attainment"] for row in counted(rows) if row["system"] == FULL]
    level = about.get("level", {})
    if full and level.get("level") == "feasible":
        attained = median(full)
        word = "confirmed" if attained >= FEASIBLE else "NOT CONFIRMED"
        lines.append(f"The feasible level is {word}: {FULL} attains {attained:.2%}.")
    if len(sources := {row["source"] for row in counted(rows)}) > 1:
        lines.append(f"Cells were measured with {len(sources)} versions of the program.")
    checked, wrong = (sum(row[key] for row in rows) for key in ("checked", "wrong"))
    if checked:
        lines.append(f"{checked} answers compared with a single process, {wrong} differ.")
    return "\n".join(lines)
