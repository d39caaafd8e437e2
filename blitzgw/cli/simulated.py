"""How the figures of a simulation are printed: as tables for people, as JSON for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from blitzgw.sim.faults import draw
from blitzgw.sim.live import HOME, LiveOutcome, LiveSetup
from blitzgw.sim.liveworker import Work
from blitzgw.sim.report import PhaseCost, Quantiles, Report, quantiles
from blitzgw.sim.trial import FAULTS_S, Outcome

FILE_COLUMNS = 110
"""Width of tables that no terminal limits: no heading is cut."""

LABEL_CELLS = 11
"""In front of a timeline: `helper 64` and some air."""

SYMBOLS = "123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Requests in a timeline; they begin again when there are more."""

LEVELS = "▁▂▃▄▅▆▇█"
"""How much of a model is there."""

MOST_SHOWN = 5
"""Of one failed schedule, what does not hold is printed up to this number of lines."""


def print_json(report: Report) -> None:
    """Print a measurement as JSON: the same bytes for the same seed."""
    click.echo(json.dumps(asdict(report), indent=2))


def print_json_outcomes(outcomes: list[Outcome], lost: list[Outcome], command: str) -> None:
    """Print what became of schedules as JSON; `command` and a seed repeat one."""
    failures = [asdict(o) | {"reproduce": f"{command} --seed {o.seed}"} for o in lost]
    facts = {
        "schedules": len(outcomes),
        "passed": len(outcomes) - len(lost),
        "settled_s": _settled(outcomes),
        "virtual_s": round(sum(o.virtual_s for o in outcomes), 3),
        "packets": sum(o.packets for o in outcomes),
        "failures": failures,
    }
    click.echo(json.dumps(facts, indent=2))


def _settled(outcomes: list[Outcome]) -> dict[str, float] | None:
    spread = quantiles([o.settled_s for o in outcomes if o.settled_s is not None])
    return None if spread is None else asdict(spread)


def print_outcomes(outcomes: list[Outcome], lost: list[Outcome], command: str) -> None:
    """Print what became of schedules, and of the failed ones why and how to repeat them."""
    settled = _settled(outcomes)
    line = f"{len(outcomes) - len(lost)} of {len(outcomes)} schedules passed"
    if settled is not None:
        line += (
            f"; all was right within {settled['p50_s']:g} s (median), {settled['p95_s']:g} s (p95),"
            f" {settled['max_s']:g} s (longest) of the last mending"
        )
    click.echo(line)
    for outcome in lost:
        click.echo(f"\nseed {outcome.seed}, {outcome.nodes} nodes:")
        for violation in outcome.violations[:MOST_SHOWN]:
            click.echo(f"  {violation}")
        if len(outcome.violations) > MOST_SHOWN:
            click.echo(f"  and {len(outcome.violations) - MOST_SHOWN} more")
        click.echo(f"  reproduce: {command} --seed {outcome.seed}")


def print_schedule(seed: int, nodes: tuple[int, int]) -> None:
    """Print what happens in the schedule of a seed, on stderr."""
    click.echo(f"\n{draw(seed, *nodes, FAULTS_S)}", err=True)


def print_report(report: Report) -> None:
    """Print a measurement as two tables."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
    figures = Table(title=f"gossip of {report.nodes} nodes, seed {report.seed}", title_style="bold")
    for heading, side in (("", "left"), ("median", "right"), ("p95", "right"), ("max", "right")):
        figures.add_column(heading, justify=side)  # type: ignore[arg-type]
    figures.add_row("join: 99.9 % of pairs know each other", "", "", _seconds(report.join_999_s))
    figures.add_row("join: all know all", "", "", _seconds(report.join_s))
    _add_quantiles(figures, f"publish {report.publish_bytes} bytes: at a node", report.publish)
    deaths = f"{report.kills} deaths"
    _add_quantiles(figures, f"{deaths}: first suspicion", report.first_suspicion)
    _add_quantiles(figures, f"{deaths}: first detection", report.first_detection)
    _add_quantiles(figures, f"{deaths}: known to all", report.known_to_all)
    cut = f"{report.partition_minority} cut off"
    noticed = f"{report.partition_noticed:.1%} of beliefs"
    apart = noticed if report.partition_s is None else _seconds(report.partition_s)
    figures.add_row(f"{cut}: both sides know", "", "", apart)
    figures.add_row(f"{cut}, rejoined: all know all", "", "", _seconds(report.merge_s))
    console.print(figures)

    costs = Table(
        title="what it costs a node; the living who were taken for suspect or dead",
        title_style="bold",
    )
    costs.add_column("phase")
    for heading in (
        "seconds", "bytes/s", "busiest", "packets/s", "syncs/s", "suspected", "failed",
    ):  # fmt: skip
        costs.add_column(heading, justify="right")
    for phase in report.phases:
        costs.add_row(*_cost_cells(phase))
    console.print(costs)


def _add_quantiles(table: Any, what: str, spread: Quantiles | None) -> None:
    if spread is None:
        table.add_row(what, "", "", "-")
    else:
        table.add_row(what, *map(_seconds, (spread.p50_s, spread.p95_s, spread.max_s)))


def _cost_cells(phase: PhaseCost) -> list[str]:
    return [
        phase.phase,
        f"{phase.duration_s:.2f}",
        f"{phase.bytes_per_node_s:,.0f}",
        f"{phase.busiest_bytes_s:,.0f}",
        f"{phase.packets_per_node_s:.1f}",
        f"{phase.syncs_per_node_s:.3f}",
        str(phase.false_suspicions),
        str(phase.false_failures),
    ]


def _seconds(duration_s: float | None) -> str:
    return "-" if duration_s is None else f"{duration_s:.3f} s"


def print_json_live(outcome: LiveOutcome) -> None:
    """Print the times to completion and their mean, in units, as JSON."""
    facts = {
        "completion": [_whole(moment) for moment in outcome.completion],
        "mean": _whole(outcome.mean),
    }
    click.echo(json.dumps(facts))


def print_live(setup: LiveSetup, outcome: LiveOutcome) -> None:
    """Print who computes what over time, and when each request is complete."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
    limit = "no limit" if setup.in_flight is None else f"at most {setup.in_flight}"
    click.echo(
        f"{setup.policy}: {setup.requests} requests, {setup.layers} layers, "
        f"load/compute {setup.load}, {limit} in flight\n"
    )
    for line in timeline(setup, outcome, console.width):
        click.echo(line)
    times = ", ".join(f"{_whole(moment):g}" for moment in outcome.completion)
    console.print(f"\ncomplete at {times}", soft_wrap=not sys.stdout.isatty())
    click.echo(f"mean {outcome.mean:.2f} units of one layer's compute of one request")


def timeline(setup: LiveSetup, outcome: LiveOutcome, width: int) -> list[str]:
    """Draw what each worker computes: a cell is a unit, or more where the width is too small."""
    last = max(outcome.completion)
    cells = max(1, min(width - LABEL_CELLS, int(last)))
    unit = last / cells
    middles = [(cell + 0.5) * unit for cell in range(cells)]
    end = f"{_whole(last):g}"
    lines = [f"{'':<{LABEL_CELLS}}0{end:>{max(len(end), cells - 1)}}"]
    for worker in range(setup.helpers + 1):
        label = f"helper {worker}" if worker != HOME else "home"
        mine = [work for work in outcome.work if work.worker == worker]
        lines.append(f"{label:<{LABEL_CELLS}}{_busy(mine, middles)}".rstrip())
    loaded = "".join(_level(setup, middle) for middle in middles)
    return [*lines, f"{'loaded':<{LABEL_CELLS}}{loaded}"]


def _busy(work: list[Work], middles: list[float]) -> str:
    """Return the request that is computed at each of some moments. `work` is in order."""
    marks, left = [], iter(work)
    piece = next(left, None)
    for middle in middles:
        while piece is not None and piece.stop <= middle:
            piece = next(left, None)
        running = piece is not None and piece.start <= middle
        marks.append(SYMBOLS[piece.request % len(SYMBOLS)] if piece and running else "·")
    return "".join(marks)


def _level(setup: LiveSetup, moment: float) -> str:
    layers = setup.layers if not setup.load else min(setup.layers, int(moment / setup.load) + 1)
    return LEVELS[layers * len(LEVELS) // setup.layers - 1] if layers * 8 >= setup.layers else " "


def _whole(value: float) -> float:
    """Return a number without the digits that say nothing."""
    value = round(value, 6)
    return int(value) if value == int(value) else value
