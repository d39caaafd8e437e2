"""`blitzgw simulate scaling`: a cluster that scales itself, and what did not hold of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from blitzgw.sim.report import quantiles
from blitzgw.sim.scalingtrial import ScalingOutcome, ScalingTrial, try_scaling

FILE_COLUMNS = 120
"""Width of tables that no terminal limits: no heading is cut."""

MOST_SHOWN = 8
"""Of one failed seed, what does not hold is printed up to this number of lines."""

MOST_ROWS = 40
"""Seeds that are shown one by one; of more, those that failed, and the sum."""


def run(
    seed: int, count: int, nodes: tuple[int, int], models: int, show: Callable[[str], None]
) -> list[ScalingOutcome]:
    """Carry out so many seeds, from the first on; `show` is told how far it has come."""
    outcomes: list[ScalingOutcome] = []
    for number in range(seed, seed + count):
        failed = sum(not outcome.passed for outcome in outcomes)
        show(f"schedule {number - seed + 1} of {count}, {failed} failed")
        outcomes.append(try_scaling(number, *nodes, models))
    return outcomes


def print_json_scaling(outcomes: list[ScalingOutcome], command: str) -> None:
    """Print outcomes as JSON, the same for the same seeds; `command` and a seed repeat one."""
    lost = [outcome for outcome in outcomes if not outcome.passed]
    facts: dict[str, Any] = {
        "schedules": len(outcomes),
        "passed": len(outcomes) - len(lost),
        "settled_s": _settled(outcomes),
        **_totals(outcomes),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "failures": [
            {"seed": o.seed, "violations": o.violations, "reproduce": f"{command} --seed {o.seed}"}
            for o in lost
        ],
    }
    click.echo(json.dumps(facts, indent=2))


def print_scaling(outcomes: list[ScalingOutcome], command: str) -> None:
    """Print outcomes as a table, and of those that failed why and how to repeat them."""
    lost = [outcome for outcome in outcomes if not outcome.passed]
    shown = outcomes if len(outcomes) <= MOST_ROWS else lost[:MOST_ROWS]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
    if shown:
        console.print(_table(shown))
    click.echo(_summary(outcomes, lost))
    for outcome in lost:
        click.echo(f"\nseed {outcome.seed}, {outcome.nodes} nodes:")
        for violation in outcome.violations[:MOST_SHOWN]:
            click.echo(f"  {violation}")
        if len(outcome.violations) > MOST_SHOWN:
            click.echo(f"  and {len(outcome.violations) - MOST_SHOWN} more")
        click.echo(f"  reproduce: {command} --seed {outcome.seed}")


def print_faults(seed: int, nodes: int, models: int) -> None:
    """Print what happens to the cluster of a seed, on stderr."""
    trial = ScalingTrial(seed, nodes, models)
    click.echo(f"\n{nodes} nodes, {trial.devices} devices\n{trial.schedule}", err=True)


def _summary(outcomes: list[ScalingOutcome], lost: list[ScalingOutcome]) -> str:
    totals, settled = _totals(outcomes), _settled(outcomes)
    lines = [f"{len(outcomes) - len(lost)} of {len(outcomes)} schedules passed"]
    if settled is not None:
        lines[0] += (
            f"; all was right within {settled['p50_s']:g} s (median), {settled['p95_s']:g} s (p95),"
            f" {settled['max_s']:g} s (longest) of the last mending"
        )
    lines.append(
        f"{totals['requests']} requests: {totals['served']} served, {totals['in_time']} in time"
        f" ({totals['attainment']:.1%}), {totals['orphaned']} lost their own node;"
        f" refused: {_counts(totals['refused'])}"
    )
    lines.append(
        f"{totals['grown']} instances brought up, {totals['revived']} revived, in use"
        f" {totals['instance_s']:.0f} of {totals['device_s']:.0f} device seconds;"
        f" decisions: {_counts(totals['decisions'])}; operations: {_counts(totals['operations'])}"
    )
    lines.append(
        f"{totals['crashes']} crashes ({totals['owner_crashes']} of owners in the middle of a"
        f" growth), {totals['splits']} partitions, {totals['virtual_s']:.0f} virtual seconds"
    )
    return "\n".join(lines)


def _totals(outcomes: list[ScalingOutcome]) -> dict[str, Any]:
    def total(name: str) -> Any:
        return sum(getattr(outcome, name) for outcome in outcomes)

    def counted(name: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for outcome in outcomes:
            counts.update(getattr(outcome, name))
        return dict(sorted(counts.items()))

    plain = (
        "requests", "served", "in_time", "orphaned", "grown", "revived", "crashes",
        "owner_crashes", "splits", "messages", "weights_bytes",
    )  # fmt: skip
    seconds = ("instance_s", "device_s", "virtual_s")
    answered = total("requests") - total("orphaned")
    return {
        **{name: total(name) for name in plain},
        **{name: round(total(name), 3) for name in seconds},
        "attainment": round(total("in_time") / answered, 6) if answered else 1.0,
        **{name: counted(name) for name in ("refused", "decisions", "operations")},
    }


def _settled(outcomes: list[ScalingOutcome]) -> dict[str, float] | None:
    spread = quantiles([o.settled_s for o in outcomes if o.settled_s is not None])
    return None if spread is None else asdict(spread)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _table(outcomes: list[ScalingOutcome]) -> Table:
    table = Table(title="a cluster that scales itself, under faults", title_style="bold")
    for heading in (
        "seed", "nodes", "models", "crashes", "cuts", "requests", "in time", "refused", "grown",
        "revived", "used", "settled", "",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for o in outcomes:
        answered = o.requests - o.orphaned
        table.add_row(
            str(o.seed), str(o.nodes), str(o.models), str(o.crashes), str(o.splits),
            str(o.requests), f"{o.in_time / answered:.0%}" if answered else "-",
            str(sum(o.refused.values())), str(o.grown), str(o.revived),
            f"{o.instance_s / o.device_s:.0%}",
            "-" if o.settled_s is None else f"{o.settled_s:g} s",
            "" if o.passed else "failed",
        )  # fmt: skip
    return table
