"""What `blitzgw inspect` shows: the answers of a node's /cluster/… as tables that fit a terminal.

A column has a rank: where the terminal is too narrow, the columns of the highest rank go first.
Those of rank 0 stay, and their words are cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from blitzgw.cli.output import size
from blitzgw.errors import BlitzError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Item = Mapping[str, Any]

BAR_CELLS = 8
"""Characters of a loading instance's bar: a step for each few layers."""

GAP = 2
"""Spaces between columns."""

MIN_CELLS = 6
"""No column is cut below this: what is left would say nothing."""

STYLES = {
    "alive": "green",
    "serving": "green",
    "suspect": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "dead": "red",
    "gone": "red",
    "held": "yellow",
    "conflict": "red",
    "left": "dim",
    "kept": "dim",
}
"""Words that are coloured wherever a cell begins with them."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, what a cell says, which columns go before it, which way it is set."""

    head: str
    cell: Callable[[Item], str]
    rank: int = 0
    right: bool = False


def table(what: str, answer: Item, width: int) -> RenderableType:
    """Return an answer as a table of at most `width` characters, where that is possible.

    Raises BlitzError for an answer that is formed differently.
    """
    from rich.console import Group  # noqa: PLC0415  keeps --help quick

    try:
        items = answer[what]
        shown = _render(COLUMNS[what], items, width) if items else f"no {what}"
        return Group(shown, *_notes(answer))
    except (AttributeError, KeyError, TypeError, ValueError):
        text = "the node's answer has another form: is it as new as this command? JSON may do"
        raise BlitzError(f"{text}: --format json") from None


def _render(columns: Sequence[Column], items: Sequence[Item], width: int) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415

    cells = {column: [_text(column.cell(item)) for item in items] for column in columns}
    widths = _fit(cells, width)
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, room in widths.items():
        grid.add_column(
            column.head,
            justify="right" if column.right else "left",
            width=room,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in zip(*(cells[column] for column in widths), strict=True):
        grid.add_row(*row)
    return grid


def _fit(cells: Mapping[Column, Sequence[Text]], width: int) -> dict[Column, int]:
    """Return the columns to show and their widths.

    Empty ones go, then those of the highest rank until the rest fits; at last words are cut, the
    widest first, and figures never.
    """
    widths = {
        column: max(len(column.head), *(text.cell_len for text in texts))
        for column, texts in cells.items()
        if any(text.plain for text in texts)
    }
    while sum(widths.values()) + GAP * (len(widths) - 1) > width:
        last = max(widths, key=lambda column: column.rank)
        if last.rank:
            del widths[last]
            continue
        words = {column: w for column, w in widths.items() if not column.right and w > MIN_CELLS}
        if not words:
            break
        widest = max(words, key=lambda column: words[column])
        widths[widest] -= 1
    return widths


def _text(cell: str) -> Text:
    """Return a cell without anything that a terminal would obey: it came from other nodes."""
    from rich.text import Text  # noqa: PLC0415

    plain = "".join(c if c.isprintable() else "?" for c in cell)
    return Text(plain, style=STYLES.get(plain.partition(" ")[0].rstrip(",:"), ""))


def _notes(answer: Item) -> list[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    if not answer.get("unanswered"):
        return []
    names = ", ".join(map(str, answer["unanswered"]))
    return [Text(f"no answer from {_text(names).plain}", style="yellow")]


def age(seconds: float | None) -> str:
    """Return a duration in its largest unit: 3s, 4m, 5h, 6d."""
    if seconds is None:
        return ""
    for limit, unit, unit_s in ((120, "s", 1), (7200, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / unit_s:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def layers(item: Item) -> str:
    """Return the resident layers, with a bar while some are missing."""
    there, total = item["layers_resident"], item["layers_total"]
    if there >= total or item["state"] != "loading":
        return f"{there}/{total}"
    filled = BAR_CELLS * there // max(1, total)
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {there}/{total}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _known(key: str) -> Callable[[Item], str]:
    return lambda item: "" if item[key] is None else str(item[key])


def _count(key: str) -> Callable[[Item], str]:
    return lambda item: _number(item[key])


def _devices(node: Item) -> str:
    """Return the kinds of devices, how many of each, and their memory."""
    devices = node["devices"]
    kinds = Counter(device["kind"] for device in devices)
    memory = sum(device["memory_bytes"] for device in devices)
    parts = [kind if n == 1 else f"{n} {kind}" for kind, n in sorted(kinds.items())]
    return ", ".join(parts) + (f" {size(memory)}" if memory else "")


def _status(node: Item) -> str:
    return f"{node['status']}, draining" if node["draining"] else str(node["status"])


def _uptime(node: Item) -> str:
    if node["status"] not in ("alive", "suspect"):
        return ""
    return age(datetime.now(UTC).timestamp() - node["started"])


def _kv(instance: Item) -> str:
    usage = instance["kv_usage"]
    return "" if usage is None else f"{100 * usage:.0f}%"


def _step(instance: Item) -> str:
    step_s = instance["decode_step_s"]
    return "" if step_s is None else f"{_number(1000 * step_s)}ms"


def _in_state(*states: str) -> Callable[[Item], str]:
    return lambda model: str(sum(model["instances"].get(state, 0) for state in states))


def _others(model: Item) -> str:
    counts = {s: n for s, n in model["instances"].items() if s not in ("serving", "loading")}
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def _remark(model: Item) -> str:
    if not model["conflict"]:
        return ""
    return "conflict: in use" if model["prevails"] else "conflict: not served"


def _progress(request: Item) -> str:
    return f"{request['output_tokens']}/{request['max_tokens']}"


NODES = (
    Column("NODE", _known("name")),
    Column("STATUS", _status),
    Column("DEVICES", _devices, 2),
    Column("MODELS", lambda node: str(len(node["models"])), 3, right=True),
    Column("INSTANCES", _count("instances"), 1, right=True),
    Column("HTTP", _known("http"), 1),
    Column("PEERS AT", _known("address"), 5),
    Column("UP", _uptime, 2, right=True),
    Column("CHANGED", lambda node: age(node["state_age_s"]), 7, right=True),
    Column("BOOT", _known("boot"), 6),
)
INSTANCES = (
    Column("MODEL", _known("model")),
    Column("NODE", _known("node")),
    Column("DEVICE", _known("device"), 1),
    Column("STATE", _known("state")),
    Column("LAYERS", layers, right=True),
    Column("RUN", _count("running"), right=True),
    Column("WAIT", _count("waiting"), right=True),
    Column("KV", _kv, 1, right=True),
    Column("QUEUED", _count("queued_tokens"), 3, right=True),
    Column("TOK/S", _count("prefill_tokens_per_s"), 4, right=True),
    Column("STEP", _step, 2, right=True),
    Column("CHANGED", lambda instance: age(instance["load_age_s"]), 7, right=True),
    Column("ID", _known("id"), 6),
)
MODELS = (
    Column("MODEL", _known("name")),
    Column("SERVING", _in_state("serving"), right=True),
    Column("LOADING", _in_state("loading"), right=True),
    Column("OTHERS", _others, 2),
    Column("LAYERS", _count("layers"), 3, right=True),
    Column("COPIES", _count("host_copies"), 4, right=True),
    Column("NODES", lambda model: " ".join(model["nodes"]), 5),
    Column("ALIASES", lambda model: " ".join(model["aliases"]), 6),
    Column("DIGEST", lambda model: str(model["digest"])[:10], 1),
    Column("NOTE", _remark),
)
REQUESTS = (
    Column("REQUEST", _known("id")),
    Column("MODEL", _known("model"), 2),
    Column("INGRESS", _known("ingress"), 3),
    Column("INSTANCE", lambda request: request["instance"] or "held", 1),
    Column("TRY", _count("attempt"), 5, right=True),
    Column("PROMPT", _count("prompt_tokens"), 4, right=True),
    Column("OUTPUT", _progress, right=True),
    Column("AGE", lambda request: age(request["age_s"]), right=True),
)
COLUMNS = {"nodes": NODES, "instances": INSTANCES, "models": MODELS, "requests": REQUESTS}
