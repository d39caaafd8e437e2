"""Rows of scale operations as a table, as what they must show, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.svg import COLOURS, GREY, RULE, box, image, nice, polyline, text

Row = Mapping[str, Any]

FLAT, SINGLE, STAR_FACTOR, ONCE, EXACT = 1.08, 1.06, 6.0, 1.05, 0.05
STAR_TARGETS = 8
"""Where a star is compared with a chain: it takes as many times one copy's time."""

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 24, 48
TICKS = 6


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure and the most (or, where `least`, the least) that it may be."""

    name: str
    value: float
    bound: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.least else self.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}

    def __str__(self) -> str:
        bound = f"{'≥' if self.least else '≤'} {self.bound:g}"
        return f"{self.name:<58}{self.value:8.3f} {bound} {'ok' if self.met else 'MISSED'}"


def table(rows: Sequence[Row]) -> str:
    """Return rows as lines of text, with their ratios."""
    names = ("seconds", "T/T(1)", "/ideal", "predicted", "error", "first", "coverage", "rx", "tx")
    head = f"{'strategy':<16}{'targets':>7}" + "".join(f"{name:>10}" for name in names)
    scenarios = [f"* {row['scenario']}" for row in rows if row.get("scenario")]
    return "\n".join([head, "-" * len(head), *(_line(row, rows) for row in rows), *scenarios])


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return what the rows show of what they must show."""
    found = []
    chain, star = of_strategy(rows, "chain"), of_strategy(rows, "star")
    if 1 in chain:
        found.append(Verdict("chain: T(1) / (bytes / rate)", _to_ideal(chain[1]), SINGLE))
        for n in sorted(chain.keys() - {1}):
            flat = chain[n]["seconds"] / chain[1]["seconds"]
            found.append(Verdict(f"chain: T({n}) / T(1)", flat, FLAT))
    for n in sorted(chain.keys() & star.keys() - {1}):
        factor = star[n]["seconds"] / chain[n]["seconds"]
        bound = STAR_FACTOR * n / STAR_TARGETS
        found.append(Verdict(f"star({n}) / chain({n})", factor, bound, least=True))
    for n, row in chain.items():
        found.append(Verdict(f"chain: model received by each of {n}", received(row), ONCE))
        found.append(Verdict(f"chain: model sent by each, {n} targets", sent(row), ONCE))
    for row in rows:
        if row["predicted_seconds"] > 0:
            name = f"{row['strategy']}: prediction for {row['targets']} is off by"
            found.append(Verdict(name, abs(error(row)), EXACT))
    return found


def of_strategy(rows: Sequence[Row], strategy: str) -> dict[int, Row]:
    """Return the undisturbed rows of a strategy by number of targets."""
    return {
        row["targets"]: row
        for row in rows
        if row["strategy"] == strategy and not row.get("scenario")
    }


def received(row: Row) -> float:
    """The most that any target has received, in models."""
    return float(max(row["received_bytes"], default=0) / max(1, row["size_bytes"]))


def sent(row: Row) -> float:
    """The most that any node has sent, in models."""
    return float(max(row["sent_bytes"].values(), default=0) / max(1, row["size_bytes"]))


def error(row: Row) -> float:
    """By which part the prediction is above (positive) or below what was measured."""
    return float(row["predicted_seconds"] / row["seconds"] - 1)


def plot(rows: Sequence[Row]) -> str:
    """Return an SVG image: seconds over the number of targets, a line for each strategy."""
    strategies = list(dict.fromkeys(row["strategy"] for row in rows if not row.get("scenario")))
    most_s = max([row["seconds"] for row in rows] + [row["ideal_seconds"] for row in rows])
    step = nice(most_s / TICKS)
    frame = _Frame(max(row["targets"] for row in rows), step * math.ceil(most_s / step))
    parts = [*frame.axes(step, sorted({row["targets"] for row in rows}))]
    ideal_s = max(row["ideal_seconds"] for row in rows)
    parts.append(frame.line([(0, ideal_s), (frame.n, ideal_s)], GREY, 'stroke-dasharray="5 4"'))
    parts.append(frame.label(len(strategies), GREY, "bytes / rate"))
    for place, strategy in enumerate(strategies):
        colour = COLOURS[place % len(COLOURS)]
        points = sorted((n, row["seconds"]) for n, row in of_strategy(rows, strategy).items())
        parts += [frame.line(points, colour), *(frame.dot(n, s, colour) for n, s in points)]
        parts.append(frame.label(place, colour, strategy))
    first = rows[0]
    title = f"{first['size_bytes'] / 1e6:.0f} MB at {first['rate_mbit']:g} Mbit/s (paced)"
    parts.append(text(LEFT, TOP - 8, title, "start"))
    return image(WIDTH, HEIGHT, parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where numbers of targets up to `n` and times up to `top_s` are on the image."""

    n: int
    top_s: float

    def x(self, targets: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * targets / self.n

    def y(self, seconds: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * seconds / self.top_s

    def axes(self, step: float, numbers: Sequence[int]) -> list[str]:
        parts = []
        for number in range(round(self.top_s / step) + 1):
            y = self.y(number * step)
            parts.append(self.line([(0, number * step), (self.n, number * step)], RULE))
            parts.append(text(LEFT - 8, y + 4, f"{number * step:g} s", "end"))
        parts += [text(self.x(n), HEIGHT - BOTTOM + 18, str(n), "middle") for n in numbers]
        parts.append(text(self.x(self.n / 2), HEIGHT - 10, "targets", "middle"))
        return parts

    def line(self, points: Sequence[tuple[float, float]], colour: str, more: str = "") -> str:
        return polyline(((self.x(n), self.y(s)) for n, s in points), colour, more)

    def dot(self, targets: float, seconds: float, colour: str) -> str:
        title = f"<title>{targets} targets: {seconds:.3f} s</title>"
        where = f'cx="{self.x(targets):.1f}" cy="{self.y(seconds):.1f}"'
        return f'<circle {where} r="3.5" fill="{colour}">{title}</circle>'

    def label(self, place: int, colour: str, words: str) -> str:
        x, y = WIDTH - RIGHT + 16, TOP + 16 + 18 * place
        return box(x, y - 9, 10, 10, colour) + text(x + 16, y, words, "start")


def _line(row: Row, rows: Sequence[Row]) -> str:
    name = row["strategy"] + ("*" if row.get("scenario") else "")
    single = of_strategy(rows, row["strategy"]).get(1)
    to_one = f"{row['seconds'] / single['seconds']:.3f}" if single else ""
    known = row["predicted_seconds"] > 0
    cells = (
        f"{row['seconds']:.3f}",
        to_one,
        f"{_to_ideal(row):.3f}" if row["ideal_seconds"] else "",
        f"{row['predicted_seconds']:.3f}" if known else "",
        f"{100 * error(row):+.1f} %" if known else "",
        _seconds(row["first_blob_seconds"]),
        _seconds(row["coverage_seconds"]),
        f"{received(row):.3f}×",
        f"{sent(row):.3f}×",
    )
    return f"{name:<16}{row['targets']:>7}" + "".join(f"{cell:>10}" for cell in cells)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else ""


def _to_ideal(row: Row) -> float:
    return float(row["seconds"] / row["ideal_seconds"])
