"""`blitzgw inspect events` of one operation: a picture on a terminal, lines elsewhere.

Both also as things happen. Above them stands the decision that led to it, where there was one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from blitzgw.cli.ask import Asker
from blitzgw.cli.follow import NoOperation, followed, operation_of
from blitzgw.cli.grid import guarded
from blitzgw.cli.output import print_json, quoted
from blitzgw.cli.plans import headline
from blitzgw.cli.timeline import decided, decisions_of, show_timeline
from blitzgw.cli.waterfall import event_line, event_lines, settled, unseen, waterfall
from blitzgw.errors import BlitzError

POLL_S = 0.5
"""How often an operation is asked about while it is followed."""

LOST_S = 30.0
"""How long a node may be out of reach meanwhile."""

Operation = dict[str, Any]


def show_events(
    asker: Asker, id_: str | None, layout: str, *, follow: bool, blobs: bool = False
) -> None:
    """Show what happened in an operation, without an id in the one that is probably meant.

    Where there is none, what has been decided is shown instead. Raises BlitzError.
    """
    try:
        found = operation_of(asker, id_)
    except NoOperation:
        if not _decisions(asker):
            raise
        show_timeline(asker, layout, follow=False)
        return
    if follow:
        path = f"/cluster/operations/{quoted(found['id'])}"
        follow_events(lambda: asker.get(path), found, layout, blobs=blobs)
    elif layout == "json":
        print_json(found)
    else:
        led = [each for each in _decisions(asker) if each.get("operation") == found["id"]]
        print_events(found, decided(led[0]) if led else "", blobs=blobs)


def _decisions(asker: Asker) -> list[dict[str, Any]]:
    """Return what has been decided; nothing where no node tells: it is only told in passing."""
    try:
        return decisions_of(asker)
    except BlitzError:
        return []


def print_events(operation: Operation, lead: str = "", *, blobs: bool = False) -> None:
    """Print what happened below a lead, off a terminal each of the `blobs` if so wanted.

    Raises BlitzError for an answer of another form.
    """
    console = Console(highlight=False, markup=False)
    if lead:
        console.print(Text(lead), soft_wrap=True)
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
