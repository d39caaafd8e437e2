"""Figures in people's units: times, counts, and named figures whose unit is last in the name."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from blitzgw.cli.output import rate, size

DAY_S = 86_400.0


def duration(seconds: float | None) -> str:
    """Return a time to three figures: 16.6 ms, 1.25 s, 15 min; empty where there is none."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    magnitude = abs(seconds)
    if magnitude < 1e-6:
        return "0 s"
    if magnitude < 0.9995:
        return f"{1e3 * seconds:.3g} ms" if magnitude >= 1e-3 else f"{1e6 * seconds:.3g} µs"
    if magnitude < 99.95:
        return f"{seconds:.3g} s"
    if magnitude < 600:
        return f"{seconds:.0f} s"
    if magnitude < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if magnitude < 2 * DAY_S else f"{seconds / DAY_S:.0f} d"


def count(value: float | None) -> str:
    """Return a number as people write it; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def figure(name: str, value: float | None) -> str:
    """Return a figure in the unit that stands last in its name; a count where there is none."""
    if value is None or not math.isfinite(value):
        return "not known"
    if name.endswith("_bytes_per_s"):
        return rate(value)
    if name.endswith("_bytes"):
        return size(round(value))
    if "_per_" in name:
        what, _, per = name.rpartition("_per_")
        return f"{count(value)} {what.rpartition('_')[2]}/{per}"
    unit = name.rpartition("_")[2]
    if unit in ("s", "seconds"):
        return duration(value)
    if unit == "ms":
        return duration(value / 1000)
    if unit in ("share", "usage", "fraction"):
        return f"{100 * value:.3g} %"
    if unit in COUNTED:
        return f"{count(value)} {unit if value != 1 else unit.removesuffix('s')}"
    return count(value)


COUNTED = frozenset({"tokens", "instances", "requests", "devices", "blocks", "layers", "nodes"})
"""Units that are told with the number."""


def moment(at_s: float, now_s: float, *, precise: bool = True) -> str:
    """Return a moment of Unix time in local time; with its date where it was not of late."""
    try:
        local = datetime.fromtimestamp(at_s, UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return "?"
    clock = local.strftime("%H:%M:%S")
    if precise:
        clock += f".{local.microsecond // 1000:03d}"
    return clock if abs(now_s - at_s) < DAY_S / 2 else f"{local:%Y-%m-%d} {clock}"


def unix_now() -> float:
    """Return the wall clock in seconds of the Unix epoch."""
    return datetime.now(UTC).timestamp()
