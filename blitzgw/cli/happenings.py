"""`blitzgw inspect events`: a picture on a terminal, lines elsewhere, and both as things happen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from blitzgw.cli.follow import followed
from blitzgw.cli.grid import guarded
from blitzgw.cli.plans import headline
from blitzgw.cli.waterfall import event_line, event_lines, settled, unseen, waterfall

POLL_S = 0.5
"""How often an operation is asked about while it is followed."""

LOST_S = 30.0
"""How long a node may be out of reach meanwhile."""

Operation = dict[str, Any]


def print_events(operation: Operation, *, blobs: bool = False) -> None:
    """Print what happened, off a terminal each of the `blobs` if so wanted.

    Raises BlitzError for an answer of another form.
    """
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(_picture(operation, console.width))
        return
    click.echo("\n".join(_lines(operation, blobs=blobs)))


def follow_events(
    again: Callable[[], Operation], first: Operation, layout: str, *, blobs: bool = False
) -> None:
    """Show what happens until the operation has ended. Raises BlitzError.

    In lines the blobs of a target are one, once there are no more to come, or each of the `blobs`.
    """
    news = followed(again, first, POLL_S, LOST_S)
    console = Console(highlight=False, markup=False)
    if layout == "table" and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for operation in news:
                live.update(_picture(operation, console.width), refresh=True)
        return
    seen: set[tuple[Any, ...]] = set()
    for operation in news:
        each = blobs or layout == "json"
        for event in unseen(operation["events"] if each else settled(operation), seen):
            click.echo(json.dumps(event) if layout == "json" else event_line(event))
        sys.stdout.flush()


def _picture(operation: Operation, width: int) -> RenderableType:
    return Group(Text(headline(operation)), Text(""), waterfall(operation, width))


@guarded
def _lines(operation: Operation, *, blobs: bool) -> list[str]:
    return [headline(operation), *event_lines(operation, blobs=blobs)]
