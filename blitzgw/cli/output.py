"""How facts are printed: columns that line up, sizes that can be read, progress in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Self, TextIO, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

BAR_CELLS = 24
"""Characters of a progress bar: it fits a line of 80 with what stands beside it."""


def format_option(text: str = "How to print it.") -> Callable[[Command], Command]:
    """Return `--format table|json`, which a command gets as `layout`; `text` is its help."""
    return click.option(
        "--format",
        "layout",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help=text,
    )


def columns(rows: Sequence[Sequence[str]], indent: int = 0) -> str:
    """Return rows as lines whose columns line up, two spaces apart."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for row in rows:
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        lines.append((" " * indent + cells).rstrip())
    return "\n".join(lines)


def size(size_bytes: int) -> str:
    """Return a size in the largest unit that leaves a number of at least 1."""
    amount, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"


def rate(bytes_per_s: float) -> str:
    """Return a rate in the unit that `size` would choose."""
    return f"{size(round(bytes_per_s))}/s"


def printable(text: str) -> str:
    """Return text without anything that a terminal would obey: it came from other nodes."""
    return "".join(c if c.isprintable() else "?" for c in text)


def quoted(name: str) -> str:
    """Return a name as one part of a URL's path, slashes included."""
    from urllib.parse import quote  # noqa: PLC0415  keeps --help quick

    return quote(name, safe="")


def print_json(value: Any) -> None:
    """Print a value for programs: nothing in it can command a terminal."""
    import json  # noqa: PLC0415  keeps --help quick

    click.echo(json.dumps(value, indent=2))


class ProgressLine:
    """Progress in bytes: one line that is redrawn on a terminal, one line per phase elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._redraw = stream.isatty()
        self._last = ("", -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._redraw and self._last[0]:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are there; a total of 0 is unknown."""
        percent = 100 * done // total if total else 0
        phase = self._last[0]
        if (what, percent) == self._last or (what == phase and not self._redraw):
            return
        self._last = (what, percent)
        if self._redraw:
            self._stream.write(f"\r\x1b[K{_progress(what, done, total)}")
        else:
            self._stream.write(f"{what}{f' {size(total)}' if total else ''}\n")
        self._stream.flush()


def _progress(what: str, done: int, total: int) -> str:
    if not total:
        return what
    filled = min(BAR_CELLS, BAR_CELLS * done // total)
    bar = "█" * filled + "░" * (BAR_CELLS - filled)
    return f"{what:<12} {bar} {100 * done // total:>3} %  {size(done)} of {size(total)}"


def helps(item: Mapping[str, Any]) -> str:
    """Return whom an instance helps while it loads, and which layers it runs for a pipeline."""
    stage = item.get("stage")
    told = [str(item.get("helps") or ""), f"stage [{stage[0]}, {stage[1]})" if stage else ""]
    return " ".join(part for part in told if part)
