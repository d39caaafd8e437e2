"""Rows of live scaling as a table, and as what they must show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.multicast_report import Verdict

Row = Mapping[str, Any]

MEAN, P95, CONTROL = 0.78, 0.85, 0.90
"""Of `zigzag` to `stop` at a load of PAYS layer times and more; the least where none is gained."""

PAYS, NO_GAIN = 8.0, 1.0

COLUMNS = ("mean", "/stop", "p95", "/stop", "loaded", "layer 1", "helped", "helped n", "spread")


def table(rows: Sequence[Row]) -> str:
    """Return rows as lines of text, with their ratios to `stop`."""
    head = f"{'policy':<14}{'targets':>8}{'load/c.':>9}"
    head += "".join(f"{name:>10}" for name in COLUMNS) + "  tokens"
    return "\n".join([head, "-" * len(head), *(_line(row, rows) for row in rows)])


def verdicts(rows: Sequence[Row], *, paced: bool = True) -> list[Verdict]:
    """Return what the rows show of what they must show; of real compute that is right tokens."""
    found = []
    for row in rows if paced else ():
        stop = _stop(row, rows)
        if row["policy"] == "zigzag" and stop:
            found += _zigzag(row, stop)
    wrong = [row["policy"] for row in rows if not row["tokens_ok"]]
    if rows:
        name = "policies with other tokens than one instance alone"
        found.append(Verdict(name, float(len(wrong)), 0.0))
    return found


def ratio(row: Row, rows: Sequence[Row], key: str) -> float | None:
    """Return a figure in parts of that of `stop` in the same setting, where there is one."""
    stop = _stop(row, rows)
    return float(row[key] / stop[key]) if stop else None


def _zigzag(row: Row, stop: Row) -> list[Verdict]:
    at = row["load_over_compute"]
    mean, p95 = row["mean_s"] / stop["mean_s"], row["p95_s"] / stop["p95_s"]
    if at <= NO_GAIN:
        name = f"zigzag / stop, mean, load/compute {at:g} (control)"
        return [Verdict(name, mean, CONTROL, least=True)]
    if at < PAYS:
        return []
    return [
        Verdict(f"zigzag / stop, mean, load/compute {at:g}", mean, MEAN),
        Verdict(f"zigzag / stop, p95, load/compute {at:g}", p95, P95),
    ]


def _stop(row: Row, rows: Sequence[Row]) -> Row | None:
    same = ("targets", "load_over_compute")
    return next(
        (
            one
            for one in rows
            if one["policy"] == "stop" and all(one[key] == row[key] for key in same)
        ),
        None,
    )


def _line(row: Row, rows: Sequence[Row]) -> str:
    def part(key: str) -> str:
        value = ratio(row, rows, key)
        return "" if value is None else f"{value:.3f}"

    def seconds(key: str) -> str:
        return f"{row[key]:.3f}" if row[key] >= 0 else ""

    cells = (
        seconds("mean_s"),
        part("mean_s"),
        seconds("p95_s"),
        part("p95_s"),
        seconds("load_s"),
        seconds("first_layer_s"),
        seconds("first_helped_s"),
        f"{row.get('helped', 0):g}",
        f"{row.get('spread_s', 0.0):.3f}",
    )
    name = f"{row['policy']:<14}{row['targets']:>8}{row['load_over_compute']:>9g}"
    tokens = "ok" if row["tokens_ok"] else "WRONG"
    return name + "".join(f"{cell:>10}" for cell in cells) + f"  {tokens}"
