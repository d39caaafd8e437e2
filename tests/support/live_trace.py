"""What a node computes, step by step, as it happens: for pictures and for delays between nodes.

As a script it is `blitzgw` with an ear at the scheduler:

    python tests/support/live_trace.py FILE run --config …

It writes one JSON object a line, with `at` in undilated seconds of the machine's monotonic clock,
which all nodes of a testbed share:

    posted    step, instance, span, requests: what a step computes, and for whom
    done      step, instance, duration
    layers    instance, layers: the first so many may run
    ready     instance
    said      message, request, layer: what a scheduler tells the one that it is paired with
    tokens    request, tokens: how many
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from blitzgw import device
from blitzgw.cli.main import main as blitzgw
from blitzgw.core.step import LastRows, Step, StepResult
from blitzgw.scheduler.events import (
    EmitTokens,
    Event,
    InstanceReady,
    LayersResident,
    RunStep,
    Say,
)
from blitzgw.scheduler.shell import SchedulerShell


class TracedShell(SchedulerShell):
    """A scheduler's shell that tells what goes through it."""

    file: TextIO = sys.stderr

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._last_rows: defaultdict[str, LastRows] = defaultdict(LastRows)

    def on_result(self, result: StepResult) -> None:
        """Note that a step is done."""
        self._note("done", step=result.step, instance=result.instance, duration=result.duration_s)
        super().on_result(result)

    def _run_step(self, effect: RunStep) -> None:
        step = self._last_rows[effect.step.instance].in_full(effect.step)
        span, rows = [step.span.start, step.span.stop], self._rows(step)
        self._note("posted", step=step.id, instance=step.instance, span=span, requests=rows)
        super()._run_step(effect)

    def _emit_tokens(self, effect: EmitTokens) -> None:
        for one in effect.events:
            self._note("tokens", request=one.request_id, tokens=len(one.tokens))
        super()._emit_tokens(effect)

    def _say(self, effect: Say) -> None:
        message = effect.message
        about = {"request": _request(message), "layer": getattr(message, "layer", None)}
        self._note("said", message=type(message).__name__, **about)
        super()._say(effect)

    def _tell(self, event: Event) -> None:
        if isinstance(event, LayersResident):
            self._note("layers", instance=event.instance, layers=event.layers)
        elif isinstance(event, InstanceReady):
            self._note("ready", instance=event.instance.id)
        super()._tell(event)

    def _rows(self, step: Step) -> list[tuple[str, int]]:
        """For whom a step computes, and how many tokens."""
        seen = self._scheduler._requests.values()
        names = {seq.number: seq.id for seq in seen if seq.instance == step.instance}
        return [(names.get(row.seq, ""), row.count) for row in step.rows]

    def _note(self, what: str, **facts: Any) -> None:
        line = {"at": self._clock.now(), "what": what, **facts}
        self.file.write(json.dumps(line) + "\n")


def _request(message: Any) -> str:
    request = getattr(message, "request", None)
    return getattr(message, "request_id", "") or getattr(request, "id", "")


@dataclass(frozen=True, slots=True)
class Work:
    """A step that was done: `requests` are (name, tokens), of which a step has many."""

    instance: str
    start_s: float
    stop_s: float
    span: tuple[int, int]
    requests: tuple[tuple[str, int], ...]
    posted_s: float


@dataclass
class Trace:
    """What some nodes have computed, in seconds from some moment."""

    works: list[Work] = field(default_factory=list)
    layers: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By instance that was loading: since when so many layers might run."""
    ready: dict[str, float] = field(default_factory=dict)
    handoffs: list[tuple[float, str, int]] = field(default_factory=list)
    """When, which request, above how many layers."""
    tokens: list[tuple[float, str]] = field(default_factory=list)

    @property
    def instances(self) -> list[str]:
        """Those that computed, the ones that were complete from the start first."""
        return sorted({one.instance for one in self.works}, key=lambda n: (n in self.layers, n))


def read_files(paths: Iterable[Path], since_s: float, until_s: float = math.inf) -> Trace:
    """Return what the nodes that wrote these have computed; see `read`."""
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return read(lines, since_s, until_s)


def read(lines: Iterable[str], since_s: float, until_s: float = math.inf) -> Trace:
    """Return what was computed in a stretch of the (undilated) clock, counted from its start.

    A step is taken to have begun its duration before its end was told.
    """
    trace = Trace()
    posted: dict[tuple[str, int], Mapping[str, Any]] = {}
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:
            continue  # the last line of a node that was killed
        at = one["at"] - since_s
        if one["what"] == "posted":
            posted[one["instance"], one["step"]] = one | {"at": at}
        elif 0 <= at <= until_s - since_s:
            _note(trace, one, at, posted)
    trace.works.sort(key=lambda work: work.start_s)
    return trace


def _note(
    trace: Trace,
    one: Mapping[str, Any],
    at: float,
    posted: Mapping[tuple[str, int], Mapping[str, Any]],
) -> None:
    what = one["what"]
    if what == "done":
        step = posted.get((one["instance"], one["step"]))
        if step is not None and step["requests"]:
            rows = tuple((short(name), count) for name, count in step["requests"])
            start_s, span = at - one["duration"], (step["span"][0], step["span"][1])
            trace.works.append(Work(one["instance"], start_s, at, span, rows, step["at"]))
    elif what == "layers":
        trace.layers.setdefault(one["instance"], []).append((at, one["layers"]))
    elif what == "ready":
        trace.ready.setdefault(one["instance"], at)
    elif what == "said" and one["message"] == "Handoff":
        trace.handoffs.append((at, short(one["request"]), one["layer"]))
    elif what == "tokens" and one["tokens"]:
        trace.tokens.append((at, short(one["request"])))


def short(request: str) -> str:
    """Return the name that the client gave: `cmpl-NAME-HEX-0`."""
    parts = request.split("-")
    return parts[1] if len(parts) > 2 else request


def first_steps_s(trace: Trace) -> dict[str, float]:
    """Return how long after its first layer was announced each loading instance began to compute.

    Instances that computed nothing before they were complete are left out.
    """
    found = {}
    for instance, layers in trace.layers.items():
        usable = next((at for at, count in layers if count > 0), None)
        began = [
            one.start_s
            for one in trace.works
            if one.instance == instance and one.stop_s <= trace.ready.get(instance, one.stop_s)
        ]
        if usable is not None and began:
            found[instance] = max(0.0, began[0] - usable)
    return found


def idle_share(trace: Trace, instance: str, since_s: float, until_s: float) -> float:
    """Return the part of a stretch in which an instance computed nothing."""
    busy = sum(
        max(0.0, min(one.stop_s, until_s) - max(one.start_s, since_s))
        for one in trace.works
        if one.instance == instance
    )
    return 1.0 - busy / (until_s - since_s) if until_s > since_s else 0.0


def layer_tokens_per_s(trace: Trace, since_s: float, until_s: float) -> float:
    """Return what all instances together compute per second: layers times tokens."""
    done = 0.0
    for one in trace.works:
        inside_s = min(one.stop_s, until_s) - max(one.start_s, since_s)
        if inside_s > 0:
            size = (one.span[1] - one.span[0]) * sum(count for _, count in one.requests)
            done += size * inside_s / (one.stop_s - one.start_s)
    return done / (until_s - since_s) if until_s > since_s else 0.0


def main(arguments: Sequence[str]) -> int:
    """Be `blitzgw`, and write down what its schedulers do."""
    with Path(arguments[0]).open("a", buffering=1) as file:
        TracedShell.file = file
        device.SchedulerShell = TracedShell  # type: ignore[misc]
        return blitzgw(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
