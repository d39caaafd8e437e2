"""Measured runs simulated again: the same arrivals, system, rates and knobs; then compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blitzgw.errors import ConfigError
from blitzgw.sim.cluster.cell import setup_of
from blitzgw.sim.cluster.setup import Latencies
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.differences import Difference
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.store import read_record
from blitzgw.sim.evaluation.summary import why_void
from blitzgw.sim.evaluation.validation import Cell, Pair, Verdict

COLUMNS = 118
"""Width of tables that no terminal limits."""

MICRO = Path(__file__).with_name("constants.json")
"""What --measure has found on the machine on which the records of this project were made."""

NOT_REPORTED = re.compile(r"tuning-.*|tuned")
"""Folders of cells that scripts/evaluate finds bounds with, or runs with others than the rest."""

MARKS = (
    """! off   ? beyond its limit, by no more than runs differ   ~ within it, its interval not"""
)
"""What stands behind a difference in a table."""

PHASES_SHOWN = 4
"""Of a cell that is not accepted: where most of the difference is."""


def measured_records(folder: Path) -> list[Record]:
    """Return records of runs on a testbed below a folder, wherever they lie, but void ones.

    What lies below in folders of tuning is left out: name such a one itself to have it.
    """
    found = []
    for file in sorted([*folder.rglob("*.json.gz"), *folder.rglob("*.json")]):
        if any(map(NOT_REPORTED.fullmatch, file.relative_to(folder).parts[:-1])):
            continue
        try:
            record = read_record(file)
        except ValueError:
            continue  # a summary, or an account of the whole
        if not record.virtual and not why_void(record):
            found.append(record)
    return found


def constants(file: Path, dilation: float) -> Latencies:
    """Return the constants that micro-benchmarks have measured, as undilated seconds.

    Raises ConfigError for a file that is none of theirs.
    """
    try:
        told = json.loads(file.read_bytes())["constants"]
        values = {name: one["value"] for name, one in told.items() if one["value"] is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError([f"{file}: not what --measure writes: {error}"]) from None
    return Latencies.measured(values, dilation)


def predicted(
    records: Iterable[Record], micro: Path, repeats: int, progress: Callable[[str], None]
) -> Iterator[Pair]:
    """Simulate each run `repeats` times, with other dice."""
    for record in records:
        made = []
        for turn in range(repeats):
            progress(f"{record.system}, seed {record.seed}, {turn + 1} of {repeats}")
            made.append(predict(record, micro, turn))
        yield Pair(record, tuple(made))


def predict(record: Record, micro: Path, turn: int = 0) -> Record:
    """Simulate a measured run. Raises ConfigError where it does not tell enough of itself."""
    try:
        return _predict(record, micro, turn)
    except KeyError as error:
        what = f"{record.system}, seed {record.seed}: the record does not tell {error}"
        raise ConfigError([what]) from None


def _predict(record: Record, micro: Path, turn: int) -> Record:
    latencies = constants(micro, float(record.about["dilation"]))
    arrivals = [Arrival(one.at_s, one.prompt_tokens, one.output_tokens) for one in record.answers]
    seed = record.seed + 1_000_003 * turn  # only routers and the like draw from it
    system = SYSTEMS[record.system]
    system = replace(system, settings=record.about.get("settings", system.settings))
    setup = setup_of(record.about, system, seed, latencies, arrivals)
    made = simulate_cluster(setup, lambda _at_s, _what: None)
    made.seed = record.seed
    return made


def told(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON can hold it."""
    facts = asdict(verdict) | {"accepted": verdict.accepted, "not_judged": verdict.too_little}
    for cell, made in zip(facts["cells"], verdict.cells, strict=True):
        cell["accepted"] = made.accepted
        for one, found in zip(cell["differences"], made.differences, strict=True):
            one |= {"accepted": found.accepted, "sure": found.sure, "open": found.open}
    return dict(_finite(facts))


def print_verdict(verdict: Verdict) -> None:
    """Print tables of what differs by how much, and what differs most where it is too much."""
    console = Console(highlight=False, width=None if Console().is_terminal else COLUMNS)
    by_setting: dict[str, list[Cell]] = {}
    for cell in verdict.cells:
        by_setting.setdefault(cell.setting, []).append(cell)
    for setting, cells in by_setting.items():
        console.print(f"\n{setting}", style="bold")
        console.print(_table(cells))
        for cell in cells:
            if not cell.accepted:
                _print_phases(console, cell)
    judged = [one for cell in verdict.cells for one in cell.differences if one.judged]
    console.print(f"\n{MARKS}")
    console.print(
        f"{sum(one.accepted for one in judged)} of {len(judged)} figures are within their limits,"
        f" {sum(one.accepted and one.sure for one in judged)} with their whole intervals"
    )
    wrong = [order for order in verdict.orders if not order.agrees]
    console.print(f"order: {len(verdict.orders) - len(wrong)} of {len(verdict.orders)} agree")
    for order in wrong:
        console.print(f"  {order.figure}: measured {order.less} < {order.more}, predicted not")
    if verdict.off:
        console.print("NOT accepted")
    else:
        console.print(f"NOT JUDGED: {why}" if (why := verdict.too_little) else "accepted")


def _table(cells: Iterable[Cell]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("system")
    table.add_column("runs", justify="right")
    table.add_column("load", justify="right")
    for heading in ("mean TTFT", "p50 TTFT", "p99 TTFT", "attainment", "instance time", "growths"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for cell in cells:
        table.add_row(
            cell.system,
            str(cell.runs),
            f"{cell.load:.2f}",
            *(_difference(one) for one in cell.differences),
            f"{cell.growths[0]:.1f} → {cell.growths[1]:.1f}",
            "off" if cell.off else "" if cell.accepted else "open",
        )
    return table


def _difference(one: Difference) -> str:
    """Return measured → predicted (off by)."""
    off = 100 * one.off.middle
    mark = ("" if one.sure else " ~") if one.accepted else " ?" if one.open else " !"
    if not one.judged:
        mark = " (not judged)"
    if one.figure == "attainment":
        return f"{100 * one.measured:.1f} → {100 * one.predicted:.1f} ({off:+.1f}){mark}"
    digits = 0 if one.figure == "instance_seconds" else 3
    text = f"{one.measured:.{digits}f} → {one.predicted:.{digits}f} ({off:+.1f} %)"
    return text + mark


def _print_phases(console: Console, cell: Cell) -> None:
    known = [p for p in cell.phases if math.isfinite(p.predicted - p.measured)]
    known.sort(key=lambda one: -abs(one.predicted - one.measured))
    console.print(f"  {cell.system}, where the time differs (mean seconds, measured → predicted):")
    for phase in known[:PHASES_SHOWN]:
        change = phase.predicted - phase.measured
        console.print(
            f"    {phase.name:<32}{phase.measured:8.4f} → {phase.predicted:8.4f}  {change:+.4f}"
        )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
