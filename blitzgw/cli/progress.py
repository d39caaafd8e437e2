"""What `blitzgw scale --wait` shows: a bar for each instance that comes up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from blitzgw.cli.grid import Column, Item, grid
from blitzgw.cli.output import printable, rate, size

BAR_CELLS = 20
"""Of a bar: with all that stands beside it a line of 80 is enough."""

Operation = dict[str, Any]


def progress(news: Iterator[Operation], *, quiet: bool) -> Operation:
    """Draw an operation on stderr as it gets on, until it has ended; return it as it ended.

    Off a terminal there is a line for each change of a state; `quiet`: nothing.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    last: Operation = {}
    if quiet or not console.is_terminal:
        told: set[tuple[str, str]] = set()
        for last in news:
            if not quiet:
                _tell(last, told, console)
        return last
    with Live(console=console, auto_refresh=False) as live:
        for last in news:
            live.update(bars(last, console.width), refresh=True)
    return last


def bars(operation: Operation, width: int) -> Group:
    """Return a line for the whole and one for each target, at most `width` wide."""
    items = [_item(target, operation) for target in operation["targets"]]
    head = f"{operation['state']}, {operation['elapsed_s']:.1f} s"
    expected = operation["predicted_s"]["complete"]
    if expected is not None:
        head += f" of about {expected:.1f} s"
    return Group(Text(printable(head)), *([grid(BARS, items, width)] if items else []))


def _tell(operation: Operation, told: set[tuple[str, str]], console: Console) -> None:
    """Print the states that have not been told yet."""
    for target in operation["targets"]:
        state = target["worker"], target["state"]
        if state not in told:
            told.add(state)
            reason = f": {target['reason']}" if target["reason"] else ""
            line = f"{operation['elapsed_s']:7.2f} s  {target['worker']} {target['state']}{reason}"
            console.print(printable(line), soft_wrap=True)


def _item(target: Mapping[str, Any], operation: Operation) -> dict[str, Any]:
    """Return a target with what its bar needs; rates are those of its edges together."""
    rates = (
        edge["rate_bytes_per_s"] or 0.0
        for edge in operation["edges"]
        if edge["target"] == target["worker"] and edge["state"] == "flowing"
    )
    size_bytes = 0 if target["state"] in ("draining", "released") else operation["size_bytes"]
    return {**target, "size_bytes": size_bytes, "rate": sum(rates)}


def _bar(item: Item) -> str:
    """Return how much is there; nothing where nothing comes, as of an instance that is let go."""
    there, total = item["resident_bytes"], item["size_bytes"]
    if not total:
        return ""
    filled = min(BAR_CELLS, BAR_CELLS * there // total)
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)}"


def _share(item: Item) -> str:
    there, total = item["resident_bytes"], item["size_bytes"]
    return f"{min(100, 100 * there // total)}%" if total else ""


def _has(item: Item) -> str:
    return size(item["resident_bytes"]) if item["size_bytes"] else ""


def _left(item: Item) -> str:
    """Return how long it will take at the present rate."""
    missing = item["size_bytes"] - item["resident_bytes"]
    if missing <= 0 or not item["rate"]:
        return ""
    seconds = missing / item["rate"]
    return f"{seconds:.0f}s" if seconds < 600 else f"{seconds / 60:.0f}m"


def _state(item: Item) -> str:
    return f"{item['state']}: {item['reason']}" if item["reason"] else str(item["state"])


BARS = (
    Column("INSTANCE ON", lambda item: str(item["worker"])),
    Column("", _bar, 1, right=True),
    Column("", _share, right=True),
    Column("HAS", _has, 2, right=True),
    Column("RATE", lambda item: rate(item["rate"]) if item["rate"] else "", right=True),
    Column("LEFT", _left, right=True),
    Column("STATE", _state),
)
