"""How a plan is shown: a tree from whoever has the weights to whoever gets them.

FROM → TO              SIZE      OVER  PREDICTED
node-1/cpu0
├→ node-2/cpu0         98.1 MiB  fast     1.61 s
│  └→ node-3/cpu0      98.1 MiB  fast     1.63 s
└→ node-4/cpu0         98.1 MiB           9.80 s
disk of node-5
└→ node-5/cpu0         30 blobs           2.10 s
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from blitzgw.cli.grid import Column, Item, grid, guarded
from blitzgw.cli.output import helps, printable, rate, size

FILE_COLUMNS = 100
"""Width of tables that no terminal limits."""

MAX_DEPTH = 6
"""Deeper trees go on at the left: a chain of many would not fit a line."""

MAX_PIPELINES = 8
"""Are told one by one; each target's own stage stands in the tree."""

Operation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a target gets: over an edge, or by a read."""

    source: str
    target: str
    facts: Mapping[str, Any]


def print_plan(operation: Operation) -> None:
    """Print an operation's plan. Raises BlitzError for an answer of another form."""
    width = None if sys.stdout.isatty() else FILE_COLUMNS
    console = Console(highlight=False, markup=False, width=width)
    console.print(plan(operation, console.width))


def headline(operation: Operation) -> str:
    """Return in one line what an operation is about and how it stands."""
    before, wanted = operation["instances_before"], operation["instances_wanted"]
    count = f"{wanted} instance{'' if wanted == 1 else 's'}"
    parts = [f"{operation['model']}: {before} → {count}"]
    if operation["kind"] == "copy":
        parts = [f"{operation['model']}: a host copy"]
    elif before == wanted:
        return printable(f"{operation['model']}: {count}, as before")
    if operation["strategy"]:
        parts.append(f"by {operation['strategy']}")
    if operation["state"] == "planned":
        parts.append("planned only")
    elif operation["ended"]:
        parts.append(f"{operation['state']} after {operation['elapsed_s']:.2f} s")
    else:
        parts.append(f"{operation['state']} for {operation['elapsed_s']:.2f} s")
    reason = f": {operation['reason']}" if operation["reason"] else ""
    return printable(", ".join(parts) + reason)


@guarded
def plan(operation: Operation, width: int) -> RenderableType:
    """Return a plan as a tree with figures, at most `width` wide."""
    lines: list[RenderableType] = [Text(headline(operation))]
    if predicted := _predicted(operation):
        lines.append(Text(f"predicted: {predicted}"))
    if live := _live(operation):
        lines.append(Text(live))
    lines += [Text(printable(line)) for line in _pipelines(operation)]
    rows = list(_rows(operation))
    if rows:
        lines += [Text(""), grid(PLAN, rows, width)]
    if operation["alternatives"]:
        others = ", ".join(
            f"{other['strategy']} {_seconds(other['predicted_s'])}"
            for other in operation["alternatives"]
        )
        lines += [Text(""), Text(printable(f"instead: {others}"))]
    return Group(*lines)


def _predicted(operation: Operation) -> str:
    times = operation["predicted_s"]
    told = (
        ("first blob", times["first_blob"]),
        ("each blob somewhere", times["coverage"]),
        ("complete", times["complete"]),
    )
    return ", ".join(f"{what} {_seconds(s)}" for what, s in told if s is not None)


def _live(operation: Operation) -> str:
    """Return what instances do while they load, and what that is predicted to bring."""
    policy = operation.get("policy")
    if not policy:
        return ""
    means = {each["policy"]: each["predicted_mean_s"] for each in operation.get("policies") or ()}
    if policy not in means:
        return printable(f"while loading: {policy}")
    told = [f"{policy} {_seconds(means.pop(policy))}"]
    told += [f"{other} {_seconds(s)}" for other, s in means.items()]
    return printable(f"while loading: {policy}; mean time of what waits: {', '.join(told)}")


def _pipelines(operation: Operation) -> Iterator[str]:
    """Yield who serves together while they load; of many the first ones, and how many more."""
    pipelines = operation.get("pipelines") or ()
    for stages in pipelines[:MAX_PIPELINES]:
        told = (f"{s['worker']} [{s['layers'][0]}, {s['layers'][1]})" for s in stages)
        yield f"pipeline: {' → '.join(told)}"
    if len(pipelines) > MAX_PIPELINES:
        yield f"and {len(pipelines) - MAX_PIPELINES} more pipelines"


def _rows(operation: Operation) -> Iterator[dict[str, Any]]:
    """Yield the lines of the tree, then targets that get nothing: those that are let go."""
    homes = {pair["worker"]: pair["home"] for pair in operation.get("pairs") or ()}
    pipelines = operation.get("pipelines") or ()
    layers = {stage["worker"]: stage["layers"] for stages in pipelines for stage in stages}
    targets = {
        worker: {**target, "helps": homes.get(worker), "stage": layers.get(worker)}
        for target in operation["targets"]
        for worker in [target["worker"]]
    }
    steps = [Step(edge["source"], edge["target"], edge) for edge in operation["edges"]]
    steps += [Step(_origin(read), read["worker"], read) for read in operation["reads"]]
    outgoing: dict[str, list[Step]] = {}
    for step in steps:
        outgoing.setdefault(step.source, []).append(step)
    fed = {step.target for step in steps}
    roots = [source for source in outgoing if source not in fed]
    drawn: set[str] = set()
    while roots or (roots := [source for source in outgoing if source not in drawn]):
        root = roots.pop(0)  # circles have no root; they are no plans, and shown nevertheless
        if root not in drawn:
            yield {"tree": root, "facts": {}, "target": {}}
            yield from _branches(root, "", 1, outgoing, targets, drawn, roots)
    for worker, target in targets.items():
        if worker not in fed:
            yield {"tree": worker, "facts": {}, "target": target}


def _branches(
    source: str,
    indent: str,
    depth: int,
    outgoing: Mapping[str, Sequence[Step]],
    targets: Mapping[str, Mapping[str, Any]],
    drawn: set[str],
    roots: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield what goes out of a source. Each is drawn once; what is too deep becomes a root."""
    drawn.add(source)
    steps = outgoing.get(source, ())
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        yield {
            "tree": f"{indent}{'└→' if last else '├→'} {step.target}",
            "facts": step.facts,
            "target": targets.get(step.target, {}),
        }
        if step.target in drawn or step.target not in outgoing:
            continue
        if depth == MAX_DEPTH:
            roots.append(step.target)
            continue
        deeper = f"{indent}{'   ' if last else '│  '}"
        yield from _branches(step.target, deeper, depth + 1, outgoing, targets, drawn, roots)


def _origin(read: Mapping[str, Any]) -> str:
    node = str(read["worker"]).partition("/")[0]
    return f"{'host copy' if read['tier'] == 'host' else read['tier']} of {node}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _size(row: Item) -> str:
    facts = row["facts"]
    return size(facts["size_bytes"]) if "size_bytes" in facts else ""


def _blobs(row: Item) -> str:
    blobs = row["facts"].get("blobs", "")
    return str(len(blobs) if isinstance(blobs, list) else blobs)


def _came(row: Item) -> str:
    facts = row["facts"]
    if not facts.get("received_bytes"):
        return ""
    return f"{100 * facts['received_bytes'] // max(1, facts['size_bytes'])}%"


def _rate(row: Item) -> str:
    measured = row["facts"].get("rate_bytes_per_s")
    return rate(measured) if measured else ""


def _last(row: Item, times: str) -> str:
    """Return when the last blob comes, of a target of which all times are known."""
    known = row["target"].get(times) or [None]
    return "" if None in known else _seconds(max(known))


def _state(row: Item) -> str:
    state = row["facts"].get("state") or row["target"].get("state") or ""
    return "" if state == "opening" else str(state)


PLAN = (
    Column("FROM → TO", lambda row: str(row["tree"])),
    Column("HELPS", lambda row: helps(row["target"]), 4),
    Column("OVER", lambda row: str(row["facts"].get("network") or ""), 2),
    Column("BLOBS", _blobs, 3, right=True),
    Column("SIZE", _size, right=True),
    Column("CAME", _came, right=True),
    Column("RATE", _rate, right=True),
    Column("PREDICTED", lambda row: _last(row, "predicted_s"), 1, right=True),
    Column("ARRIVED", lambda row: _last(row, "arrived_s"), 1, right=True),
    Column("STATE", _state),
)
