"""What `blitzgw inspect` lists, once or again and again: a table, or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from blitzgw.cli.asking import asker_of
from blitzgw.cli.output import print_json
from blitzgw.cli.tables import table
from blitzgw.errors import BlitzError

Answer = dict[str, Any]


def show(what: str, *, url: str, api_key: str | None, layout: str, watch: float | None) -> None:
    """Print what is at /cluster/WHAT; with `watch`, again every so many seconds until ^C.

    Raises BlitzError where the first answer does not come.
    """
    asker, path = asker_of(url, api_key), f"/cluster/{what}"
    first = asker.get(path)
    if watch is None:
        _print(what, first, layout)
        return
    answers = _repeat(lambda: asker.get(path), first, watch)
    if layout == "json":
        _print_lines(answers)
    else:
        _redraw(what, answers)


def _repeat(
    again: Callable[[], Answer], first: Answer, interval_s: float
) -> Iterator[Answer | str]:
    """Yield answers for ever; in place of one that does not come, what went wrong."""
    answer: Answer | str = first
    while True:
        yield answer
        time.sleep(interval_s)
        try:
            answer = again()
        except BlitzError as error:
            answer = str(error)


def _print(what: str, answer: Answer, layout: str) -> None:
    if layout == "json":
        print_json(answer)
        return
    console = Console(highlight=False, markup=False)
    console.print(table(what, answer, console.width))


def _print_lines(answers: Iterator[Answer | str]) -> None:
    """Print one line of JSON for each answer."""
    for answer in answers:
        if isinstance(answer, str):
            click.echo(f"blitzgw: {answer}", err=True)
        else:
            click.echo(json.dumps(answer))


def _redraw(what: str, answers: Iterator[Answer | str]) -> None:
    """Draw each answer over the last one; off a terminal, one below the other."""
    console = Console(highlight=False, markup=False)

    def drawn(answer: Answer | str) -> RenderableType:
        if isinstance(answer, str):
            return Text(answer, style="red")
        return table(what, answer, console.width)

    if not console.is_terminal:
        for answer in answers:
            console.print(drawn(answer), end="\n\n")
        return
    with Live(console=console, auto_refresh=False) as live:
        for answer in answers:
            live.update(drawn(answer), refresh=True)
