"""`blitzgw inspect events` of all models: what was decided, and what became of it, by time.

    12:03:04.512  decision   m: grow 1 → 3: 2.10 s of backlog, 0.70 s are allowed  (op-1)
    12:03:04.530  operation  m: op-1 begins, 1 → 3 instances, by chain
    12:03:06.104  operation  m: op-1 done after 1.57 s

While it is followed, what happens in operations stands between (`event`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from blitzgw.cli.ask import Asker, NotFound, Unreachable
from blitzgw.cli.grid import guarded
from blitzgw.cli.output import print_json, printable, quoted
from blitzgw.cli.units import moment, unix_now
from blitzgw.cli.waterfall import settled, unseen
from blitzgw.cli.why import change

POLL_S = 0.5
"""How often a node is asked what is new."""

TAIL = 10
"""So many of the latest things are shown before those that come."""

MAX_LOOKS = 16
"""Operations whose events are asked for at a time; the rest has its turn the next time."""

MAX_SEEN = 16_384
"""Keys of what has been shown: many times what a node tells at once, so that none comes twice."""

SAID = frozenset({"decided", "done"})
"""Events of an operation that have lines of their own already."""

Decision = dict[str, Any]
Operation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: when (Unix time), what tells it apart, for people, for programs."""

    at_s: float
    key: tuple[Any, ...]
    text: str
    facts: dict[str, Any]

    @property
    def what(self) -> str:
        """Return `decision`, `operation` or `event`."""
        return str(self.facts["entry"])

    @property
    def is_end(self) -> bool:
        """Whether an operation has ended with it."""
        return self.what == "operation" and self.facts["what"] == "ended"


def show_timeline(asker: Asker, layout: str, *, follow: bool, blobs: bool = False) -> None:
    """Print the timeline; `follow`: its end, then what comes, until ^C. Raises BlitzError."""
    if follow:
        for entries in _news(asker, each=blobs or layout == "json"):
            _print(entries, layout)
        return
    told = timeline(decisions_of(asker), _operations(asker))
    if layout == "json":
        print_json({"timeline": [entry.facts for entry in told]})
    elif told:
        _print(told, layout)
    else:
        click.echo("nothing has been decided yet, and no operation is known", err=True)


@guarded
def decisions_of(asker: Asker) -> list[Decision]:
    """Return the decisions that nodes tell of, the newest first. Raises BlitzError."""
    return [dict(each) for each in asker.get("/cluster/decisions")["decisions"]]


@guarded
def timeline(decisions: Iterable[Decision], operations: Iterable[Operation]) -> list[Entry]:
    """Return all that decisions and operations tell, the oldest first."""
    decisions = list(decisions)
    causes = _causes(decisions)
    entries = [_decision(each) for each in decisions]
    entries += [entry for each in operations for entry in _operation(_after(each, causes))]
    return in_order(entries)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries by time; of one moment what is the cause first, and ends last."""
    return sorted(entries, key=lambda entry: (entry.at_s, RANKS[entry.what, entry.is_end]))


RANKS = {
    ("decision", False): 0,
    ("operation", False): 1,
    ("event", False): 2,
    ("operation", True): 3,
}
"""Of entries of one moment, by what they are and whether they are an end."""

WHOLE_S = 1.0
"""Some nodes tell in whole seconds when an operation began, others more exactly."""


def _causes(decisions: Iterable[Decision]) -> dict[str, float]:
    """Return when each operation that was decided upon was."""
    return {str(each["operation"]): float(each["at"]) for each in decisions if each["operation"]}


def _after(operation: Operation, causes: Mapping[str, float]) -> Operation:
    """Return an operation with a start that is not before the decision that led to it."""
    at_s = causes.get(str(operation["id"]), 0.0)
    if operation["started"] < at_s < operation["started"] + WHOLE_S:
        return {**operation, "started": at_s}
    return operation


@guarded
def decided(decision: Decision) -> str:
    """Return a decision in a line: of what model, what, and why."""
    action = decision["action"] if decision["acted"] else f"advice to {decision['action']}"
    text = f"{decision['model']}: {action} {change(decision)}"
    if decision["reason"]:
        text += f": {decision['reason']}"
    if decision["operation"]:
        text += f"  ({decision['operation']})"
    return printable(text)


def line(entry: Entry, now_s: float, *, precise: bool = True) -> str:
    """Return an entry as a line, with the time of day to the millisecond if `precise`."""
    return f"{moment(entry.at_s, now_s, precise=precise)}  {entry.what:<9}  {entry.text}"


def _decision(decision: Decision) -> Entry:
    names = ("owner", "model", "at", "action", "present", "wanted")
    key = ("decision", *(decision[name] for name in names))
    return Entry(float(decision["at"]), key, decided(decision), {"entry": "decision", **decision})


def _operation(operation: Operation) -> Iterator[Entry]:
    """Yield an operation's beginning and, once it has ended, its end."""
    about = f"{operation['model']}: {operation['id']}"
    before, wanted = operation["instances_before"], operation["instances_wanted"]
    what = f"{before} → {wanted} instance{'' if wanted == 1 else 's'}"
    what = "a host copy" if operation["kind"] == "copy" else what
    how = f", by {operation['strategy']}" if operation["strategy"] else ""
    facts = {"entry": "operation", **operation}
    begun_s, key = float(operation["started"]), ("operation", operation["id"])
    began = {**facts, "at": begun_s, "what": "begun"}
    yield Entry(begun_s, key, printable(f"{about} begins, {what}{how}"), began)
    if operation["ended"]:
        text = f"{about} {operation['state']} after {operation['elapsed_s']:.2f} s"
        text += f": {operation['reason']}" if operation["reason"] else ""
        end_s = begun_s + operation["elapsed_s"]
        ended = {**facts, "at": end_s, "what": "ended"}
        yield Entry(end_s, (*key, "ended"), printable(text), ended)


def _event(event: Mapping[str, Any], operation: Operation) -> Entry:
    told = (event["what"], event["about"], event["detail"])
    text = f"{operation['model']}: {operation['id']}  {'  '.join(str(t) for t in told if t)}"
    at_s = operation["started"] + event["at_s"]
    facts = {"entry": "event", "at": at_s, "model": operation["model"],
             "operation": operation["id"], **event}  # fmt: skip
    return Entry(at_s, ("event", operation["id"], *told, event["at_s"]), printable(text), facts)


@dataclass(slots=True)
class Follower:
    """What has been shown of the timeline. `each`: every blob, not all of a target together."""

    asker: Asker
    each: bool = False
    seen: dict[tuple[Any, ...], None] = field(default_factory=dict)
    told: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)
    """The events that have been shown of operations that go on."""
    over: dict[str, None] = field(default_factory=dict)
    """Operations of which nothing more is to come."""
    causes: dict[str, float] = field(default_factory=dict)
    """When those operations were decided upon that nodes tell of."""

    def begin(self) -> list[Entry]:
        """Return the latest of what has happened. Raises BlitzError."""
        operations, entries = self._all()
        self._note(entry.key for entry in entries)
        _remember(self.over, (str(each["id"]) for each in operations if each["ended"]))
        return entries[-TAIL:]

    def more(self) -> list[Entry]:
        """Return what is new, the oldest first. Raises BlitzError."""
        operations, entries = self._all()
        entries = [entry for entry in entries if entry.key not in self.seen]
        self._note(entry.key for entry in entries)
        going = [str(each["id"]) for each in operations if str(each["id"]) not in self.over]
        for id_ in going[:MAX_LOOKS]:
            entries += self._look(id_)
        return in_order(entries)

    def _all(self) -> tuple[list[Operation], list[Entry]]:
        """Return the operations, and all that they and decisions tell."""
        operations, decisions = _operations(self.asker), decisions_of(self.asker)
        entries = timeline(decisions, operations)
        self.causes = _causes(decisions)
        return operations, entries

    def _look(self, id_: str) -> list[Entry]:
        """Return what is new of one operation's events."""
        try:
            operation = self.asker.get(f"/cluster/operations/{quoted(id_)}")
        except NotFound:  # its owner has died since
            _remember(self.over, [id_])
            return []
        operation = _after(operation, self.causes)
        entries = _events(operation, self.told.setdefault(id_, set()), each=self.each)
        if operation["ended"]:
            _remember(self.over, [id_])
            self.told.pop(id_, None)
        return entries

    def _note(self, keys: Iterable[tuple[Any, ...]]) -> None:
        _remember(self.seen, keys)


@guarded
def _events(operation: Operation, told: set[tuple[Any, ...]], *, each: bool) -> list[Entry]:
    """Return the events of an operation that have not been told."""
    events = operation["events"] if each else settled(operation)
    news = (event for event in unseen(events, told) if event["what"] not in SAID or event["about"])
    return [_event(event, operation) for event in news]


def _remember(known: dict[Any, None], keys: Iterable[Any]) -> None:
    """Add keys; of too many the oldest are forgotten."""
    known.update(dict.fromkeys(keys))
    while len(known) > MAX_SEEN:
        del known[next(iter(known))]


def _news(asker: Asker, *, each: bool) -> Iterator[list[Entry]]:
    """Yield what happens for ever. A node that is out of reach is told of once, and asked again."""
    follower = Follower(asker, each)
    yield follower.begin()
    silent = False
    while True:
        time.sleep(POLL_S)
        try:
            entries, silent = follower.more(), False
        except Unreachable as error:
            if not silent:
                click.echo(f"blitzgw: {error}; asking again", err=True)
            entries, silent = [], True
        yield entries


def _operations(asker: Asker) -> list[Operation]:
    return list(asker.get("/cluster/operations").get("operations") or [])


def _print(entries: Sequence[Entry], layout: str) -> None:
    now_s = unix_now()
    for entry in entries:
        click.echo(json.dumps(entry.facts) if layout == "json" else line(entry, now_s))
    sys.stdout.flush()
