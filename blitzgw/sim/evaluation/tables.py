"""Rows as text: medians with their spread, comparisons (comparisons.py), and what is to be known.

Void rows are in no figure, and told. Seconds are undilated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from blitzgw.sim.evaluation.comparisons import FULL, Row, by_system, comparison_tables
from blitzgw.sim.evaluation.gains import control_verdicts
from blitzgw.sim.evaluation.growth import PHASES
from blitzgw.sim.evaluation.knobs import PREFIX_CACHING
from blitzgw.sim.evaluation.levels import FEASIBLE
from blitzgw.sim.evaluation.statistics import median

COLUMNS = (
    ("attained", "attainment", "{:.1%}"),
    ("TTFT p50", "ttft_p50", "{:.3f}"),
    ("p90", "ttft_p90", "{:.3f}"),
    ("p99", "ttft_p99", "{:.3f}"),
    ("TPOT p99", "tpot_p99", "{:.4f}"),
    ("inst·s", "instance_seconds", "{:.0f}"),
)
"""Heads, keys of rows, formats."""

MORE = ("bound", "busy", "max", "seeds", "void", "failed", "split")
"""Heads of what has no spread."""


def report(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return all tables of an evaluation."""
    good = counted(rows)
    parts = [
        headline(about, rows),
        summary_table(rows, about.get("void_runs")),
        comparison_tables(good),
        sweep_table(good),
        phase_table(good),
        control_verdicts(good, about.get("level", {}).get("control", "")),
        "\n".join(notes(rows, about)),
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
        f" bound {_bound(setting)}, prefix caching {'on' if PREFIX_CACHING else 'off'},"
        f"{_jobs(setting)} seconds undilated (dilation {setting.get('dilation', '?')})."
    ).strip()


def _bound(setting: Mapping[str, Any]) -> str:
    if setting.get("targets"):
        return "of each system's own"
    return f"{setting.get('ttft_target_s', '?')} s"


def _jobs(setting: Mapping[str, Any]) -> str:
    jobs = setting.get("jobs", 1)
    return f" {jobs} cells side by side," if jobs > 1 else ""


def summary_table(rows: Sequence[Row], void_runs: Iterable[Row] | None = None) -> str:
    """Return medians over seeds, each with the greatest distance from it.

    `void_runs` are all attempts that were void; of some there is no row any more.
    """
    good = by_system(counted(rows))
    if not good:
        return "Nothing has been measured that can be counted."
    void = Counter(row["system"] for row in rows if row["void"])
    void |= Counter(one["system"] for one in void_runs or ())
    systems = {name: [*good.get(name, {}).values()] for name in by_system(rows)}
    table = [["medians", *(name for name, _, _ in COLUMNS), *MORE]]
    for name, several in systems.items():
        failed, split = (sum(one[key] for one in several) for key in ("failed", "split"))
        table.append(
            [
                name,
                *(spread([one[key] for one in several], form) for _, key, form in COLUMNS),
                spread([one["bound_s"] for one in several][:1], "{:.3f}"),
                *(_most(several, key) for key in ("busy", "busy_max")),
                *map(str, (len(several), void[name], failed, split)),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in table
    )


def _most(several: Iterable[Row], key: str) -> str:
    """Write the greatest share."""
    most = max((one[key] for one in several if one[key] is not None), default=None)
    return "–" if most is None else f"{most:.0%}"


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


def notes(rows: Sequence[Row], about: Mapping[str, Any]) -> Iterator[str]:
    """Tell what is void, whether the level is what it is called, and what was checked."""
    for row in rows:
        if row["void"]:
            yield f"VOID: {row['system']}, seed {row['seed']}: {row['why_void']}"
    if again := about.get("void_runs"):
        yield f"{len(again)} runs were void and are told in about.json."
    full = [row["attainment"] for row in counted(rows) if row["system"] == FULL]
    if full and about.get("level", {}).get("level") == "feasible":
        yield _level(full)
    if len(sources := {row["source"] for row in counted(rows)}) > 1:
        yield f"Cells were measured with {len(sources)} versions of the program."
    if about.get("commit") == "":
        yield "The commit is not known: this was no repository, or git was not there."
    elif changed := about.get("changed_files"):
        yield f"{changed} files differed from the commit that is told."
    checked, wrong = (sum(row[key] for row in rows) for key in ("checked", "wrong"))
    if checked:
        yield f"{checked} answers compared with a single process, {wrong} differ."


def _level(full: Sequence[float]) -> str:
    """Say whether a level, which was computed, is what was measured."""
    attained = median(full)
    told = f"{FULL} attains {attained:.2%} (median of {len(full)}, at least {min(full):.2%})"
    if attained < FEASIBLE:
        return f"The feasible level was computed, and is NOT CONFIRMED: {told}."
    return f"The feasible level was computed, and the measured median agrees with it: {told}."
