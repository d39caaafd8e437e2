"""What `blitzgw inspect why` shows: how many instances a model has, who says so, and why.

m: 2 instances, 3 wanted

mode       auto: node-2, its owner, decides and acts
bounds     1 to 8 instances, fewer after 2.00 s that they suffice, none after 10 min of silence

MEASURED     P50     P90     P99   TARGET
TTFT      120 ms  640 ms  1.20 s   1.00 s  met
…
now: hold, 2 instances are right
  …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from blitzgw.cli.grid import Column, Item, grid, guarded
from blitzgw.cli.output import print_json, printable
from blitzgw.cli.tables import age
from blitzgw.cli.units import duration, figure, unix_now

FILE_COLUMNS = 100
"""Width of text that no terminal limits."""

MAX_PAST = 8
"""Past decisions that are shown: with the rest they fit one screen."""

INDENT = 2

MODES = {
    "auto": "auto: {owner}, its owner, decides and acts",
    "advise": "advise: {owner}, its owner, says what it would do, and does nothing",
    "manual": "manual: only operators change the number, with `blitzgw scale {model} N`",
}

MEASURES = (("TTFT", "ttft", "ttft_s"), ("TPOT", "tpot", "tpot_s"), ("queue", "queue", None))
"""What is measured: its name for people, its prefix among quantiles, its target among terms."""

Why = Mapping[str, Any]


def print_why(answer: dict[str, Any], layout: str) -> None:
    """Print why a model has as many instances as it has; raises BlitzError."""
    if layout == "json":
        print_json(answer)
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=FILE_COLUMNS)
    console.print(screen(answer, console.width, unix_now()))


@guarded
def screen(why: Why, width: int, now_s: float) -> RenderableType:
    """Return the whole picture, at most `width` wide. `now_s` is Unix time.

    Raises BlitzError for an answer of another form.
    """
    parts: list[RenderableType] = [Text(headline(why), style="bold"), Text("")]
    parts += [_facts(why, width), Text(""), grid(MEASURED, _measured(why), width), Text("")]
    parts += _decision(why["now"], width)
    parts.append(Text(""))
    past = [_aged(each, now_s) for each in why["past"][:MAX_PAST]]
    parts.append(grid(PAST, past, width) if past else Text("nothing has been decided yet"))
    return Group(*parts)


@guarded
def headline(why: Why) -> str:
    """Return in one line how many instances there are and how many are wanted."""
    now = why["now"]
    present, wanted = now["present"], now["wanted"]
    text = f"{why['model']}: {_instances(present)}"
    text += ", as wanted" if present == wanted else f", {wanted} wanted"
    return printable(text)


def change(decision: Mapping[str, Any]) -> str:
    """Return what a decision changes: `1 → 3`, or `2` where that is left as it is."""
    present, wanted = decision["present"], decision["wanted"]
    return str(present) if present == wanted else f"{present} → {wanted}"


def _instances(n: int) -> str:
    return f"{n} instance{'' if n == 1 else 's'}"


def _facts(why: Why, width: int) -> RenderableType:
    """Return who decides, within what."""
    terms = why["terms"]
    mode = MODES.get(why["mode"], "{mode}").format_map({**why})
    rows = [["mode", mode], ["wish", _wish(why)], ["bounds", _bounds(terms)]]
    rows.append(["priority", f"{terms['priority']}; {_keeping(terms)}"])
    table = [Text(printable(value)) for _, value in rows]
    label = max(len(name) for name, _ in rows) + INDENT
    lines: list[RenderableType] = []
    for (name, _), value in zip(rows, table, strict=True):
        lines.append(_hanging(Text(name), value, label, width))
    return Group(*lines)


def _hanging(head: Text, text: Text, indent: int, width: int) -> Text:
    """Return a head and a text beside it, the further lines of which begin where it began."""
    lines = text.wrap(Console(width=width), max(10, width - indent))
    shown = Text(no_wrap=True, overflow="ellipsis")
    for i, line in enumerate(lines):
        begin = head if i == 0 else Text("")
        shown.append_text(begin)
        shown.append(" " * (indent - begin.cell_len))
        line.rstrip()
        shown.append_text(line)
        shown.append("\n" if i < len(lines) - 1 else "")
    return shown


def _wish(why: Why) -> str:
    if why["wish"] is None:
        return "none: the configuration holds"
    if why["wish"] == "auto":
        return "auto: as many as the figures ask for"
    return f"{_instances(why['wish'])}, until `blitzgw scale {why['model']} auto`"


def _bounds(terms: Mapping[str, Any]) -> str:
    most = terms["max_instances"]
    least = terms["min_instances"]
    text = f"{least} to {most} instances" if most else f"{_instances(least)} or more"
    text += f"; fewer after {duration(terms['patience_s'])} in which they suffice"
    if terms["idle_to_zero_s"]:
        text += f"; none after {duration(terms['idle_to_zero_s'])} without requests"
    return text


def _keeping(terms: Mapping[str, Any]) -> str:
    text = f"what ends can be revived for {duration(terms['keep_s'])}"
    if terms["host_cache_s"]:
        text += f", its weights stay in memory for {duration(terms['host_cache_s'])} more"
    return text


def _measured(why: Why) -> list[dict[str, Any]]:
    """Return the rows of what is measured, with the targets."""
    return [
        {
            "what": what,
            "target_s": None if target is None else why["terms"][target],
            **{f"p{p}_s": why["quantiles"].get(f"{prefix}_p{p}_s") for p in (50, 90, 99)},
        }
        for what, prefix, target in MEASURES
    ]


def verdict(measured_s: float | None, target_s: float | None) -> str:
    """Say whether a target is met; nothing where one of the two is not known."""
    if measured_s is None or target_s is None:
        return ""
    return "met" if measured_s <= target_s else "missed"


def _decision(now: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """Yield what would be decided this moment, the formula and what goes into it."""
    told = f"{now['action']} {change(now)}"
    if now["action"] == "hold":  # for now, perhaps: the reason may be that it waits for something
        told = f"stays at {now['present']}"
    lead = f"now: {told}" if now["acted"] or now["action"] == "hold" else f"now, as advice: {told}"
    if now["reason"]:
        lead += f": {now['reason']}"
    yield _hanging(Text(""), Text(printable(lead)), 0, width)
    for formula in filter(None, str(now["formula"] or "").split("; ")):
        yield _hanging(Text(""), Text(printable(formula), style="cyan"), INDENT, width)
    if now["inputs"]:
        yield Padding(_inputs(now["inputs"], width - INDENT), (0, 0, 0, INDENT))


def _inputs(inputs: Mapping[str, float | None], width: int) -> RenderableType:
    """Return the figures in as many columns as fit: one screen is to be enough."""
    cells = [(printable(name), printable(figure(name, value))) for name, value in inputs.items()]
    label = max(len(name) for name, _ in cells)
    each = label + INDENT + max(len(value) for _, value in cells) + 2 * INDENT
    across = max(1, min(len(cells), (width + 2 * INDENT) // each))
    deep = -(-len(cells) // across)
    lines = []
    for row in range(deep):
        taken = cells[row::deep]
        line = "".join(f"{f'{name:<{label}}  {value}':<{each}}" for name, value in taken)
        lines.append(line.rstrip())
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _aged(decision: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    return {**decision, "age_s": max(0.0, now_s - decision["at"])}


def _action(item: Item) -> str:
    return str(item["action"]) if item["acted"] else f"{item['action']}, advice"


def _target(item: Item) -> str:
    return duration(item["target_s"])


MEASURED = (
    Column("MEASURED", lambda item: str(item["what"])),
    Column("P50", lambda item: duration(item["p50_s"]) or "-", right=True),
    Column("P90", lambda item: duration(item["p90_s"]) or "-", right=True),
    Column("P99", lambda item: duration(item["p99_s"]) or "-", right=True),
    Column("TARGET OF P90", _target, right=True),
    Column("", lambda item: verdict(item["p90_s"], item["target_s"])),
)
PAST = (
    Column("AGO", lambda item: age(item["age_s"]), right=True),
    Column("DECIDED", _action),
    Column("INSTANCES", change, right=True),
    Column("OPERATION", lambda item: str(item["operation"] or ""), 2),
    Column("REASON", lambda item: str(item["reason"] or ""), wrap=True),
)
