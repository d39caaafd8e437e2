"""`blitzgw inspect`: what a node knows about its cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blitzgw.cli.output import print_json, quoted

if TYPE_CHECKING:
    from blitzgw.cli.ask import Asker

EXAMPLES = """\b
Examples:
  blitzgw inspect nodes
  blitzgw inspect instances --watch 1
  blitzgw inspect requests --url http://10.0.0.5:8000 --format json
  blitzgw inspect plan
  blitzgw inspect events --follow
"""

MIN_WATCH_S = 0.1

F = TypeVar("F", bound=Callable[..., None])


@click.group(epilog=EXAMPLES)
def inspect() -> None:
    """Show the nodes, instances, models, requests or scale operations of a cluster.

    Any node can be asked: each knows the whole cluster, as of a moment ago.
    """


def _options(command: F) -> F:
    """Give a command the options of what can be watched."""
    option = click.option(
        "--watch",
        type=click.FloatRange(min=MIN_WATCH_S),
        metavar="SECONDS",
        help="Show it again this often, until ^C.",
    )
    return option(_asking(command))


def _asking(command: F) -> F:
    """Give a command the options that all of them have."""
    for option in (
        click.option(
            "--format",
            "layout",
            type=click.Choice(["table", "json"]),
            default="table",
            show_default=True,
            help="How to print it. A table leaves out what does not fit; JSON has everything.",
        ),
        click.option(
            "--api-key",
            metavar="KEY",
            envvar="BLITZGW_API_KEY",
            help="Key that the node wants; better in $BLITZGW_API_KEY.",
        ),
        click.option(
            "--url",
            metavar="URL",
            envvar="BLITZGW_URL",
            default="http://127.0.0.1:8000",
            show_default=True,
            help="The node to ask; also $BLITZGW_URL.",
        ),
    ):
        command = option(command)
    return command


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect nodes --url http://10.0.0.5:8000\n")
@_options
def nodes(**options: Any) -> None:
    """Show the nodes: which live, what they have, where they are.

    COPIES are weights that are kept in its memory, FREE what more of them could take there, CHANGED
    is how long ago anything last changed there, UP how long ago it was started.
    """
    _show("nodes", **options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect instances --watch 1\n")
@_options
def instances(**options: Any) -> None:
    """Show the instances of models on devices, and how busy they are.

    LAYERS are those that are there: an instance that loads may help another one (HELPS) with them,
    and be a stage of a pipeline, which runs the layers from [ up to ).
    RUN and WAIT count requests, QUEUED tokens not yet computed; KV is the share in use, TOK/S the
    measured speed of prefill, STEP the time of one token, CHANGED how long ago anything did
    on that node.
    """
    _show("instances", **options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect models --format json\n")
@_options
def models(**options: Any) -> None:
    """Show the models, and how many instances of each there are.

    A name that nodes define differently is shown once for each definition: the oldest is served.
    COPIES is how many nodes keep the weights in memory besides, of as many as should.
    """
    _show("models", **options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect requests\n")
@_options
def requests(**options: Any) -> None:
    """Show the requests under way, the oldest first.

    INGRESS is the node that the client speaks to, TRY the number of the attempt, OUTPUT the tokens
    so far and at most.
    """
    _show("requests", **options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect plan --format json\n")
@click.argument("operation", required=False, metavar="[ID]")
@_asking
def plan(operation: str | None, **options: Any) -> None:
    """Show who sends what to whom in a scale operation, and how fast.

    Without an ID it is the one under way, or else the last. `blitzgw scale MODEL N --dry-run`
    shows a plan that nobody carries out.
    """
    from blitzgw.cli.plans import print_plan  # noqa: PLC0415  keeps --help quick

    found = _operation(operation, options["url"], options["api_key"])
    if options["layout"] == "json":
        print_json(found)
    else:
        print_plan(found)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect events --follow\n")
@click.argument("operation", required=False, metavar="[ID]")
@click.option("--follow", is_flag=True, help="Show what happens as it happens, until the end.")
@click.option("--blobs", is_flag=True, help="In lines, show one for every blob.")
@_asking
def events(operation: str | None, follow: bool, blobs: bool, **options: Any) -> None:
    """Show what happened in a scale operation, and when.

    Without an ID it is the one under way, or else the last. On a terminal it is a picture over
    time: decided, claimed, connected, first byte, each blob, complete, ready. Elsewhere it is a
    line for each event, but one for all blobs of a target, or with --blobs for each. JSON tells
    each blob; with --follow it is a line for each event.
    """
    from blitzgw.cli.happenings import follow_events, print_events  # noqa: PLC0415

    found = _operation(operation, options["url"], options["api_key"])
    if follow:
        path = f"/cluster/operations/{quoted(found['id'])}"
        asker = _asker(options["url"], options["api_key"])
        follow_events(lambda: asker.get(path), found, options["layout"], blobs=blobs)
    elif options["layout"] == "json":
        print_json(found)
    else:
        print_events(found, blobs=blobs)


def _operation(id_: str | None, url: str, api_key: str | None) -> dict[str, Any]:
    """Return an operation; raises BlitzError where there is none."""
    from blitzgw.cli.follow import latest  # noqa: PLC0415
    from blitzgw.errors import BlitzError  # noqa: PLC0415

    asker = _asker(url, api_key)
    if id_ is None:
        found = latest(asker.get("/cluster/operations").get("operations") or [])
        if found is None:
            raise BlitzError("no operation is known: begin one with `blitzgw scale MODEL N`")
        id_ = str(found["id"])
    return asker.get(f"/cluster/operations/{quoted(id_)}")


def _asker(url: str, api_key: str | None) -> Asker:
    from blitzgw.cli.ask import Asker  # noqa: PLC0415

    keys = (api_key or "").split()  # the variable of `run` may hold several
    return Asker(url, keys[0] if keys else None)


def _show(what: str, *, url: str, api_key: str | None, layout: str, watch: float | None) -> None:
    asker, path = _asker(url, api_key), f"/cluster/{what}"
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
    again: Callable[[], dict[str, Any]], first: dict[str, Any], interval_s: float
) -> Iterator[dict[str, Any] | str]:
    """Yield answers for ever; in place of one that does not come, what went wrong."""
    import time  # noqa: PLC0415

    from blitzgw.errors import BlitzError  # noqa: PLC0415

    answer: dict[str, Any] | str = first
    while True:
        yield answer
        time.sleep(interval_s)
        try:
            answer = again()
        except BlitzError as error:
            answer = str(error)


def _print(what: str, answer: dict[str, Any], layout: str) -> None:
    if layout == "json":
        print_json(answer)
        return
    from rich.console import Console  # noqa: PLC0415

    from blitzgw.cli.tables import table  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    console.print(table(what, answer, console.width))


def _print_lines(answers: Iterator[dict[str, Any] | str]) -> None:
    """Print one line of JSON for each answer."""
    import json  # noqa: PLC0415

    for answer in answers:
        if isinstance(answer, str):
            click.echo(f"blitzgw: {answer}", err=True)
        else:
            click.echo(json.dumps(answer))


def _redraw(what: str, answers: Iterator[dict[str, Any] | str]) -> None:
    """Draw each answer over the last one; off a terminal, one below the other."""
    from rich.console import Console, RenderableType  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from blitzgw.cli.tables import table  # noqa: PLC0415

    console = Console(highlight=False, markup=False)

    def drawn(answer: dict[str, Any] | str) -> RenderableType:
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
