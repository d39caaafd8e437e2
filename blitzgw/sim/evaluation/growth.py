"""Scale-ups of a run, in phases: where the time went between a demand and a complete instance.

    crossed ─► decided ─► planned ─► first byte ─► first layer ─► first token helped ─► complete

Seconds count from the decision; `crossed` is before it, and the mean of the run where a node tells
no more. `first token helped` is the first that needed a loading instance; where instances do
nothing before they are complete there is none. `complete` is the last of an operation's instances.
What has grown before the window is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blitzgw.sim.evaluation.record import Answer, Record
from blitzgw.sim.evaluation.statistics import median

PHASES = (
    "crossed",
    "decided",
    "planned",
    "first byte",
    "first layer",
    "first token helped",
    "complete",
)

_WORKER = re.compile(r"@([^,\s\"]+?)(?:[#:,\s\"]|$)")
"""Of an instance's name: model@node/device."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A scale-up: when it was decided, how many instances it has brought, and its phases."""

    at_s: float
    instances: int
    phases: Mapping[str, float]


def growths(record: Record) -> list[Growth]:
    """Return the scale-ups of a run that have brought an instance, in their order."""
    found = [_growth(operation, record) for operation in record.operations if _grew(operation)]
    return sorted(found, key=lambda one: one.at_s)


def medians(several: Iterable[Growth]) -> dict[str, float]:
    """Return the median of each phase over those scale-ups that have it."""
    known = [*several]
    found = {}
    for phase in PHASES:
        if values := [one.phases[phase] for one in known if phase in one.phases]:
            found[phase] = median(values)
    return found


def _grew(operation: Mapping[str, Any]) -> bool:
    if operation.get("kind", "scale") != "scale" or operation["at_s"] < 0:
        return False
    before, wanted = operation["instances_before"], operation["instances_wanted"]
    return wanted > before and any(_known(one.get("ready_s")) for one in operation["targets"])


def _growth(operation: Mapping[str, Any], record: Record) -> Growth:
    targets = [one for one in operation["targets"] if _known(one.get("ready_s"))]
    crossed_s = float(record.about.get("decide_s", -1.0))
    complete_s = max(one["ready_s"] for one in targets)
    at_s = float(operation["at_s"])
    found = {
        "crossed": -crossed_s if crossed_s >= 0 else None,
        "decided": 0.0,
        "planned": _first(operation, "planned"),
        "first byte": _first_byte(operation, targets),
        "first layer": _least(_layers(targets)),
        "first token helped": _helped(targets, record.answers, at_s, at_s + complete_s),
        "complete": complete_s,
    }
    phases = {phase: value for phase, value in found.items() if value is not None}
    return Growth(at_s, len(targets), phases)


def _known(value: float | None) -> bool:
    return value is not None and value >= 0


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None and value >= 0), default=None)


def _first(operation: Mapping[str, Any], what: str) -> float | None:
    return _least(one["at_s"] for one in operation.get("events", ()) if one["what"] == what)


def _first_byte(operation: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> float | None:
    """Return when the first byte came; from a disk or memory only whole blobs are told."""
    blobs = [at_s for one in targets for at_s in one.get("arrived_s") or ()]
    return _least([_first(operation, "first_byte"), *blobs])


def _layers(targets: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return when layers came: all blobs but the embedding and the head."""
    return [at_s for one in targets for at_s in (one.get("arrived_s") or ())[1:-1]]


def _helped(
    targets: Sequence[Mapping[str, Any]], answers: Iterable[Answer], from_s: float, to_s: float
) -> float | None:
    """Return when the first token came that a target had a part in before it was complete."""
    workers = {str(one["worker"]) for one in targets}
    moments = (
        one.at_s + one.first_s
        for one in answers
        if one.split and one.first_s >= 0 and workers & set(_WORKER.findall(one.split))
    )
    found = _least(moment for moment in moments if from_s < moment <= to_s)
    return None if found is None else found - from_s
