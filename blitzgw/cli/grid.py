"""Tables that fit a terminal.

A column has a rank: where the terminal is too narrow, the columns of the highest rank go first.
Those of rank 0 stay, and their words are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from blitzgw.cli.output import printable
from blitzgw.errors import BlitzError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Item = Mapping[str, Any]

P = ParamSpec("P")
R = TypeVar("R")

GAP = 2
"""Spaces between columns."""

MIN_CELLS = 6
"""No column is cut below this: what is left would say nothing."""

STYLES = {
    "alive": "green",
    "serving": "green",
    "ready": "green",
    "done": "green",
    "flowing": "yellow",
    "failed": "red",
    "lost": "red",
    "suspect": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "dead": "red",
    "gone": "red",
    "held": "yellow",
    "conflict": "red",
    "left": "dim",
    "kept": "dim",
    "met": "green",
    "missed": "red",
}
"""Words that are coloured wherever a cell begins with them."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, what a cell says, which columns go before it, which way it is set.

    `wrap`: cells go on in further lines instead of being cut. `style` of a cell goes before that of
    its first word.
    """

    head: str
    cell: Callable[[Item], str]
    rank: int = 0
    right: bool = False
    wrap: bool = False
    style: Callable[[Item], str] | None = None


def guarded(show: Callable[P, R]) -> Callable[P, R]:
    """Let a function raise BlitzError for an answer that is formed differently."""

    @wraps(show)
    def guard(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return show(*arguments, **options)
        except (AttributeError, KeyError, TypeError, ValueError):
            text = "the node's answer has another form: is it as new as this command? JSON may do"
            raise BlitzError(f"{text}: --format json") from None

    return guard


def grid(columns: Sequence[Column], items: Sequence[Item], width: int) -> RenderableType:
    """Return items as rows below the columns' heads, of at most `width` characters if possible."""
    from rich.table import Table  # noqa: PLC0415

    cells = {column: [_cell(column, item) for item in items] for column in columns}
    widths = _fit(cells, width)
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, room in widths.items():
        grid.add_column(
            column.head,
            justify="right" if column.right else "left",
            width=room,
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
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


def _cell(column: Column, item: Item) -> Text:
    text = cell_text(column.cell(item))
    style = "" if column.style is None else column.style(item)
    if style:
        text.style = style
    return text


def cell_text(cell: str) -> Text:
    """Return a cell without anything that a terminal would obey, coloured by its first word."""
    from rich.text import Text  # noqa: PLC0415

    plain = printable(cell)
    return Text(plain, style=STYLES.get(plain.partition(" ")[0].rstrip(",:"), ""))
