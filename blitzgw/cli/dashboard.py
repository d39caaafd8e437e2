"""What `blitzgw top` draws: a snapshot of the cluster as one screen, whatever its size.

Four tables, one below the other: models, instances, nodes, and what happened last. Where there are
too few lines, each keeps some, and those go that one misses least; where there are too few columns,
those of the highest rank go (grid.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from blitzgw.cli.dashrows import INSTANCES, MODELS, NODES, instance_rows, model_rows, node_rows
from blitzgw.cli.grid import Column, grid, guarded
from blitzgw.cli.output import printable
from blitzgw.cli.snapshot import Snapshot
from blitzgw.cli.timeline import line, timeline
from blitzgw.cli.units import count, duration, moment

LEAST_ROWS = 3
"""Of each table, where it has as many: fewer would say nothing."""

AIRY_LINES = 30
"""From so many lines on, there are empty ones between the tables."""

EVENTS_WITHOUT_END = 20
"""How many of the last events there are where no height limits them."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A table. `weight` tells which rows are missed least, `none` is said where there are none."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    weight: Callable[[Row], float]
    none: str


@guarded
def frame(snapshot: Snapshot, width: int, height: int | None = None) -> RenderableType:
    """Return the picture, at most `width` wide and `height` high; None: as high as it gets.

    Raises BlitzError for a snapshot of another form.
    """
    instances = instance_rows(snapshot)
    models = model_rows(snapshot, instances)
    sections = (
        Section(MODELS, models, lambda row: row["pressure"] or 0.0, "no models"),
        Section(INSTANCES, instances, _of_instance, "no instances"),
        Section(NODES, node_rows(snapshot, instances), _of_node, "no nodes"),
    )
    hint = "" if height is None else "  q ends"
    head = [_summary(snapshot, instances, width, hint), *_troubles(snapshot)]
    events = _events(snapshot)
    gaps = len(sections) + 1 if height is None or height >= AIRY_LINES else 0
    wanted = [max(1, len(section.rows)) for section in sections]
    if height is None:
        rooms = [*wanted, EVENTS_WITHOUT_END]
    else:
        room = height - len(head) - len(sections) - 1 - gaps
        rooms = shares([*wanted, max(1, len(events))], room)
    lines: list[RenderableType] = [_cut(text, width) for text in head]
    for section, room in zip(sections, rooms[:-1], strict=True):
        lines += [Text("")] * bool(gaps)
        lines += _table(section, room, width)
    lines += [Text("")] * bool(gaps)
    lines += [_cut(text, width) for text in _last(events, rooms[-1])]
    return Group(*lines)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """Return how many of `room` lines each of several gets that want so many.

    Each gets LEAST_ROWS if it wants them, as far as there is room; then the first take what they
    want, and so on. What nobody wants is left.
    """
    given = [0] * len(wanted)
    for most in (1, LEAST_ROWS, room):
        for i, n in enumerate(wanted):
            more = max(0, min(n, most) - given[i])
            given[i] += min(more, max(0, room - sum(given)))
    return given


def _summary(snapshot: Snapshot, instances: Sequence[Row], width: int, hint: str) -> Text:
    """Return the first line: who was asked, when, and the sums; a hint where there is room."""
    living = sum(node["status"] in ("alive", "suspect") for node in snapshot.nodes)
    tokens = sum(row["decode"] or 0.0 for row in instances)
    told = [
        f"{living} node{'' if living == 1 else 's'}",
        f"{len(instances)} instance{'' if len(instances) == 1 else 's'}",
        f"{count(_sum(instances, 'running'))} running",
        f"{count(_sum(instances, 'waiting'))} waiting",
        f"{count(round(tokens))} tokens/s",
    ]
    text = f"blitzgw  {', '.join(told)}"
    end = f"{snapshot.url}  {moment(snapshot.at_s, snapshot.at_s, precise=False)}{hint}"
    for shorter in (end, moment(snapshot.at_s, snapshot.at_s, precise=False)):
        if len(text) + 2 + len(shorter) <= width:
            text = f"{text}{shorter:>{width - len(text)}}"
            break
    return Text(printable(text), style="bold")


def _troubles(snapshot: Snapshot) -> list[Text]:
    """Return what is not as it should be with the answers themselves."""
    if snapshot.problem:
        since = duration(max(1.0, round(snapshot.silent_s)))
        text = f"nothing new for {since}: {snapshot.problem}"
        return [Text(printable(text), style="red")]
    if snapshot.missing:
        text = f"not told: {', '.join(snapshot.missing)}"
        return [Text(printable(text), style="yellow")]
    return []


def _table(section: Section, room: int, width: int) -> list[RenderableType]:
    """Return a table of at most `room` lines below its head; the last says how many are left."""
    rows = section.rows
    if room <= 0:
        return []
    if not rows:
        return [Text(section.none, style="dim")]
    if len(rows) <= room:
        return [grid(section.columns, rows, width)]
    kept = sorted(range(len(rows)), key=lambda i: (-section.weight(rows[i]), i))[: room - 1]
    lines: list[RenderableType] = []
    if kept:
        lines.append(grid(section.columns, [rows[i] for i in sorted(kept)], width))
    text = f"… {len(rows) - len(kept)} {'more' if kept else section.none.removeprefix('no ')}"
    return [*lines, Text(text, style="dim")]


def _events(snapshot: Snapshot) -> list[Text]:
    """Return what happened of late, the latest first."""
    decisions = [past for why in snapshot.why for past in why["past"]]
    told = timeline(decisions, snapshot.operations)
    return [
        Text(line(entry, snapshot.at_s, precise=False), style=_style(entry.facts))
        for entry in reversed(told)
    ]


def _style(facts: Mapping[str, Any]) -> str:
    if facts["entry"] == "decision":
        return "bold"
    ended = facts["what"] == "ended"
    return "red" if ended and facts["state"] in ("failed", "cancelled") else ""


def _last(events: Sequence[Text], room: int) -> Iterable[Text]:
    if room <= 0:
        return []
    head = Text("EVENTS", style="bold")
    return [head, *(events[:room] or [Text("none yet", style="dim")])]


def _cut(text: Text, width: int) -> Text:
    cut = text.copy()
    cut.no_wrap = True
    cut.truncate(width, overflow="ellipsis")
    return cut


def _sum(rows: Iterable[Row], key: str) -> float:
    return sum(row[key] or 0 for row in rows)


def _of_instance(row: Row) -> float:
    """Rank an instance: those that change first, then the busiest."""
    changes = row["state"] != "serving"
    return float(1e9 * changes + (row["waiting"] or 0) * 1000 + (row["running"] or 0))


def _of_node(row: Row) -> float:
    """Rank a node: those that are not well first, then the busiest."""
    unwell = row["status"] != "alive" or bool(row["draining"])
    return float(1e9 * unwell + row["running"] + row["waiting"])
