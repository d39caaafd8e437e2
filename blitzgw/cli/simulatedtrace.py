"""`blitzgw simulate trace`: the cells of a sweep, one after another, and how they are printed."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from blitzgw.cli.simulatedparts import Cell, simulate_parts
from blitzgw.cli.tracesettings import Setting, Wish, settings_of
from blitzgw.cli.units import duration
from blitzgw.errors import ConfigError
from blitzgw.sim.cluster.cell import setup_of
from blitzgw.sim.cluster.profiles import named, names
from blitzgw.sim.cluster.setup import Latencies
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.evaluation.figures import NoMatplotlib, draw
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.statistics import median
from blitzgw.sim.evaluation.store import OtherSettings, Store
from blitzgw.sim.evaluation.summary import row
from blitzgw.sim.evaluation.tables import report

FILE_COLUMNS = 120
"""Width of tables that no terminal limits: no heading is cut."""

TOLD_S = 0.2
"""Between two lines of progress, on the wall."""

GUESS_S = 10.0
"""After which it is said how long a simulation may go on: its beginning tells nothing of it."""

OF_ONE_BOX = ("_beside_s", "cores")
"""How constants end that say what nodes take of one another's processors: a testbed is one machine,
here each node has its own."""

Row = dict[str, Any]


@dataclass(slots=True)
class Found:
    """What was simulated: rows by point of the sweep. `failed` runs say why on stderr."""

    rows: list[tuple[Setting, list[Row]]] = field(default_factory=list)
    events: int = 0
    wall_s: float = 0.0
    failed: int = 0
    files: list[Path] = field(default_factory=list)


def run(wish: Wish, show: Callable[[str], None]) -> Found:
    """Simulate all cells. Raises ConfigError for what cannot be meant, OSError for a folder."""
    found = Found()
    constants = _constants(wish.constants)
    latencies = Latencies.measured(constants)
    settings = [_with(constants, setting) for setting in settings_of(wish)]
    for setting in settings:
        store = _store(wish, setting) if wish.out else None
        rows = [
            _cell(setting, system, seed, latencies, wish.parts, store, found, show)
            for seed in range(wish.seed, wish.seed + wish.seeds)
            for system in wish.systems
        ]
        found.rows.append((setting, rows))
        if store is not None:
            found.files += _written(store, setting, rows, show)
    return found


def _cell(
    setting: Setting,
    system: str,
    seed: int,
    latencies: Latencies,
    parts: int,
    store: Store | None,
    found: Found,
    show: Callable[[str], None],
) -> Row:
    """Simulate a cell, or take it from the folder; return its row."""
    record = store.get(system, seed) if store is not None else None
    if record is None:
        record = _simulated(setting, system, seed, latencies, parts, store, show)
        found.events += int(record.about.get("events", 0))
        found.wall_s += float(record.about.get("wall_s", 0.0))
        if store is not None:
            store.put(record)
    if record.failure:
        found.failed += 1
        click.echo(f"{system}, seed {seed}: {record.failure}", err=True)
    told = row(record)
    return {**setting.label, **told, "events_per_s": _events_per_s(record)}


def _simulated(
    setting: Setting,
    system: str,
    seed: int,
    latencies: Latencies,
    parts: int,
    store: Store | None,
    show: Callable[[str], None],
) -> Record:
    where = ", ".join([system, f"seed {seed}", *(f"{k} {v:g}" for k, v in setting.label.items())])
    told = 0.0

    def progress(share: float, what: str) -> None:
        nonlocal told
        if time.monotonic() - told >= TOLD_S:
            told = time.monotonic()
            show(f"{where}: {share:.0%}, {what}{_left(share, time.perf_counter() - begun)}")

    show(f"{where}: it is set up")
    about = setting.about_of(system, seed)
    if parts > 1:
        begun = time.perf_counter()
        return simulate_parts(Cell(about, system, seed, latencies), parts, store, progress)
    setup = setup_of(about, SYSTEMS[system], seed, latencies)
    begun = time.perf_counter()
    record = simulate_cluster(setup, progress)
    record.about.setdefault("wall_s", round(time.perf_counter() - begun, 3))
    gc.collect()  # a cluster that is not needed any more
    return record


def _left(share: float, elapsed_s: float) -> str:
    """Say how long a simulation goes on if it goes on as it has; nothing while that is no guess."""
    if share <= 0 or elapsed_s < GUESS_S:
        return ""
    return f", {duration(elapsed_s * (1 - share) / share)} left"


def _events_per_s(record: Record) -> float | None:
    events, wall_s = record.about.get("events"), record.about.get("wall_s")
    return round(events / wall_s) if events and wall_s else None


def _constants(file: Path | None) -> dict[str, float]:
    """Return what was measured of real nodes, which here keep real time."""
    if file is None:
        return {}
    try:
        told = json.loads(file.read_bytes())["constants"]
        values = {name: one["value"] for name, one in told.items() if one["value"] is not None}
        own = {name: value for name, value in values.items() if not name.endswith(OF_ONE_BOX)}
        made = asdict(Latencies.measured(own))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError([f"{file}: not what validate_sim --measure writes: {error}"]) from None
    return {name: made[name] for name in own if name in made}


def _with(constants: Mapping[str, float], setting: Setting) -> Setting:
    """Return a setting that tells of constants: a folder has cells of no others."""
    if not constants:
        return setting
    return replace(setting, about={**setting.about, "constants": constants})


def _store(wish: Wish, setting: Setting) -> Store:
    assert wish.out is not None
    store = Store(wish.out / setting.name if setting.label else wish.out)
    try:
        store.begin(setting.about)
    except OtherSettings as error:
        raise ConfigError([f"--out: {error}"]) from None
    return store


def _written(
    store: Store, setting: Setting, rows: Sequence[Row], show: Callable[[str], None]
) -> list[Path]:
    """Write tables and, where the extra is installed, figures; return their files."""
    store.write("summary.json", json.dumps(rows, indent=1) + "\n")
    store.write("summary.txt", report(rows, {"settings": setting.about}))
    made = [store.folder / "summary.json", store.folder / "summary.txt"]
    show("drawing")
    try:
        return made + draw([*store.records()], store.folder)
    except NoMatplotlib as error:
        click.echo(f"no figures: {error}", err=True)
        return made


def print_json_trace(found: Found) -> None:
    """Print rows for programs."""
    settings = [
        {"label": dict(setting.label), "about": setting.about, "rows": rows}
        for setting, rows in found.rows
    ]
    click.echo(json.dumps({"settings": settings, "files": [*map(str, found.files)]}, indent=2))


def print_trace(found: Found) -> None:
    """Print tables as scripts/evaluate does; of a sweep, a line for each point and system."""
    if len(found.rows) == 1:
        ((setting, rows),) = found.rows
        click.echo(report(rows, {"settings": setting.about}))
    else:
        Console(highlight=False, width=FILE_COLUMNS).print(_sweep(found))
    if found.wall_s:
        rate = f"{found.events:,} events, {found.events / found.wall_s:,.0f} per second"
        beside = (
            " of processes side by side" if any("parts" in s.about for s, _ in found.rows) else ""
        )
        click.echo(f"simulated in {found.wall_s:.1f} s{beside}: {rate}")
    for folder in dict.fromkeys(file.parent for file in found.files):
        names = sorted(file.name for file in found.files if file.parent == folder)
        click.echo(f"written in {folder}: {', '.join(names)}")


def print_profiles() -> None:
    """Print what devices and models there are."""
    table = Table(box=None, pad_edge=False)
    for heading in ("profile", "prompt tokens/s", "step", "weights", "KV tokens"):
        table.add_column(heading, justify="left" if heading == "profile" else "right")
    for name in names():
        one = named(name)
        table.add_row(
            name,
            f"{one.prefill_tokens_per_s:,.0f}",
            f"{1e3 * one.step_s:.1f} ms",
            f"{one.weight_bytes / 1e9:.1f} GB",
            f"{one.kv_tokens:,}",
        )
    Console(highlight=False, width=FILE_COLUMNS).print(table)


def _sweep(found: Found) -> Table:
    """Return a table of medians over seeds."""
    table = Table(box=None, pad_edge=False)
    labels = [*found.rows[0][0].label]
    heads = ("p50 TTFT", "p99 TTFT", "p99 TPOT", "attained", "instance s", "failed", "events/s")
    for heading in labels:
        table.add_column(heading, justify="right")
    table.add_column("system")
    for heading in heads:
        table.add_column(heading, justify="right")
    for setting, rows in found.rows:
        for system in dict.fromkeys(one["system"] for one in rows):
            mine = [one for one in rows if one["system"] == system]
            cells = (
                f"{_middle(mine, 'ttft_p50'):.3f}",
                f"{_middle(mine, 'ttft_p99'):.3f}",
                f"{_middle(mine, 'tpot_p99'):.4f}",
                f"{100 * _middle(mine, 'attainment'):.1f} %",
                f"{_middle(mine, 'instance_seconds'):,.0f}",
                f"{sum(one['failed'] for one in mine)}",
                f"{_middle(mine, 'events_per_s'):,.0f}",
            )
            table.add_row(*(f"{setting.label[name]:g}" for name in labels), system, *cells)
    return table


def _middle(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return median(math.nan if one[name] is None else float(one[name]) for one in rows)
