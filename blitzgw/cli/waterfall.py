"""What happened in an operation, drawn over time: a line for each target.

                 0 s                                            1.74 s
    node-2/cpu0  ··---=░░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓█◆                1.63 s  ready
    node-3/cpu0  ··---==░░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓█◆               1.66 s  ready

The shades tell which part of the blobs is there. Off a terminal there is a line for each event,
but one only for all blobs of a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from blitzgw.cli.grid import guarded
from blitzgw.cli.output import printable

SHADES = "░▒▓"
MIN_BAR_CELLS = 10
LABEL_CELLS = 28
"""A worker's name is cut at this: the bars are what one looks at."""

TAIL_CELLS = 22
"""For the time and the state behind a bar."""

LEGEND = "· decided - claimed = connected ░▒▓ receiving █ complete ◆ ready × failed"

BLOB, BLOBS = "blob", "blobs"
"""An event of one blob; and of several together, which the node does not tell."""

LAST = frozenset({"complete", "ready", "failed"})
"""After one of these no more blobs come to a target."""

ROUTINE = frozenset(
    {"decided", "planned", "claimed", "connected", "first_byte", BLOB, BLOBS, "complete", "ready"}
)
"""What the picture shows by itself; anything else that happened is written below it."""

Operation = Mapping[str, Any]
Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Track:
    """One target's phases: seconds from the decision; endless where one has not come."""

    worker: str
    state: str
    claimed: float
    connected: float
    first: float
    complete: float
    ready: float
    failed: float
    arrived: tuple[float, ...]
    blobs: int

    def mark(self, at_s: float) -> str:
        """Return what is drawn for a moment."""
        if at_s >= min(self.ready, self.failed):
            return " "
        if at_s >= self.complete:
            return "█"
        if at_s >= self.first:
            part = sum(s <= at_s for s in self.arrived) / max(1, self.blobs)
            return SHADES[min(len(SHADES) - 1, int(part * len(SHADES)))]
        if at_s >= self.connected:
            return "="
        return "-" if at_s >= self.claimed else "·"

    @property
    def end_s(self) -> float:
        """When nothing more happens, endless while something may."""
        return min(self.ready, self.failed)


NEVER = float("inf")


@guarded
def waterfall(operation: Operation, width: int) -> RenderableType:
    """Return the picture, at most `width` wide. Raises BlitzError for an answer of another form."""
    tracks = [track(target, operation["events"]) for target in operation["targets"]]
    if not tracks:
        return Group(*(Text(line) for line in event_lines(operation)))
    span_s = _span_s(operation, tracks)
    label = min(LABEL_CELLS, max(len(printable(t.worker)) for t in tracks))
    cells = max(MIN_BAR_CELLS, width - label - TAIL_CELLS - 3)
    end = f"{span_s:.2f} s"
    lines = [f"{'':<{label}}  {'0 s':<{max(3, cells - len(end))}}{end}"]
    lines += [_line(t, label, cells, span_s, operation["elapsed_s"]) for t in tracks]
    lines += ["", LEGEND]
    lines += event_lines(operation, leave_out=ROUTINE | {"done"})
    return Group(*(Text(line[:width], no_wrap=True) for line in lines))


def event_lines(
    operation: Operation, leave_out: frozenset[str] = frozenset(), *, blobs: bool = False
) -> list[str]:
    """Return a line for each event: when, what, about what, and more.

    All blobs of a target share one, unless each of the `blobs` is wanted.
    """
    events = operation["events"] if blobs else folded(operation["events"])
    return [event_line(event) for event in events if str(event["what"]) not in leave_out]


def folded(events: Sequence[Event]) -> list[Event]:
    """Return the events with one in place of all blobs of a target, where the last of them was."""
    blobs: dict[str, list[Event]] = {}
    for event in events:
        if event["what"] == BLOB:
            blobs.setdefault(str(event["about"]), []).append(event)
    return [
        _together(blobs[str(event["about"])]) if event["what"] == BLOB else event
        for event in events
        if event["what"] != BLOB or event is blobs[str(event["about"])][-1]
    ]


def settled(operation: Operation) -> list[Event]:
    """Return the events, folded, but for blobs of targets to which more may come."""
    events = operation["events"]
    over = {event["about"] for event in events if event["what"] in LAST}
    return [
        event
        for event in folded(events)
        if event["what"] not in (BLOB, BLOBS) or operation["ended"] or event["about"] in over
    ]


def _together(blobs: Sequence[Event]) -> Event:
    """Return the event that stands for all blobs of a target."""
    first, last = blobs[0], blobs[-1]
    if len(blobs) == 1:
        return first
    detail = f"{len(blobs)} of them since {first['at_s']:.3f} s"
    return {**last, "what": BLOBS, "detail": detail}


def event_line(event: Event) -> str:
    """Return one event as a line."""
    told = (event["what"], event["about"], event["detail"])
    return printable(f"{event['at_s']:9.3f} s  {'  '.join(str(text) for text in told if text)}")


def unseen(events: Sequence[Event], seen: set[tuple[Any, ...]]) -> Iterator[Event]:
    """Yield the events that have not been yielded before."""
    for event in events:
        key = event["at_s"], event["what"], event["about"], event["detail"]
        if key not in seen:
            seen.add(key)
            yield event


def track(target: Mapping[str, Any], events: Sequence[Event]) -> Track:
    """Return the phases of a target, from its events and from when its blobs arrived."""
    worker = str(target["worker"])
    firsts: dict[str, float] = {}
    for event in events:
        if _is_about(event["about"], worker):
            firsts.setdefault(event["what"], event["at_s"])
    arrived = tuple(s for s in target["arrived_s"] if s is not None)
    blobs = int(target["blobs"])
    whole = max(arrived) if arrived and len(arrived) >= blobs else NEVER
    came = min((s for s in arrived if s > 0), default=NEVER)
    ready = target["ready_s"]
    failed = firsts.get("failed", NEVER) if target["state"] == "failed" else NEVER
    return Track(
        worker,
        str(target["state"]),
        firsts.get("claimed", NEVER),
        firsts.get("connected", NEVER),
        min(firsts.get("first_byte", NEVER), came),
        min(firsts.get("complete", NEVER), whole),
        NEVER if ready is None else float(ready),
        failed,
        arrived,
        blobs,
    )


def _is_about(about: str | None, worker: str) -> bool:
    """Tell whether an event is about a worker, or about an edge that ends there."""
    if about is None or not about.endswith(worker):
        return False
    before = about[: -len(worker)]
    return not before or not (before[-1].isalnum() or before[-1] in "._-/")


def _span_s(operation: Operation, tracks: Sequence[Track]) -> float:
    """Return the time that the bars stand for: until the end, or what is expected of it."""
    expected = 0.0 if operation["ended"] else operation["predicted_s"]["complete"] or 0.0
    known = [t.end_s for t in tracks if t.end_s < NEVER]
    return max(0.001, float(operation["elapsed_s"]), float(expected), *known)


def _line(track: Track, label: int, cells: int, span_s: float, now_s: float) -> str:
    """Return one target's line. Nothing is drawn for the time to come."""
    shown_s = min(now_s if track.end_s == NEVER else track.end_s, span_s)
    marks = [
        track.mark(min(shown_s, (i + 1) * span_s / cells)) if i * span_s / cells <= shown_s else " "
        for i in range(cells)
    ]
    if track.end_s < NEVER:
        at = min(cells - 1, int(track.end_s / span_s * cells))
        marks[at] = "◆" if track.ready <= track.failed else "×"
    when = "" if track.end_s == NEVER else f"{track.end_s:.2f} s"
    name = printable(track.worker)
    name = name if len(name) <= label else f"{name[: label - 1]}…"
    return f"{name:<{label}}  {''.join(marks)} {when:>9}  {printable(track.state)}".rstrip()
