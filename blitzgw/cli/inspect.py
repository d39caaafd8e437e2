"""`blitzgw inspect`: what a node knows about its cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blitzgw.cli.asking import asker_of, asking
from blitzgw.cli.output import print_json, quoted

EXAMPLES = """\b
Examples:
  blitzgw inspect nodes
  blitzgw inspect instances --watch 1
  blitzgw inspect requests --url http://10.0.0.5:8000 --format json
  blitzgw inspect plan
  blitzgw inspect why smollm2-135m
  blitzgw inspect events --follow
"""

WHY_EXAMPLES = """\b
Examples:
  blitzgw inspect why smollm2-135m
  blitzgw inspect why smollm2-135m --format json
"""

EVENT_EXAMPLES = """\b
Examples:
  blitzgw inspect events                 the last operation, and why it was begun
  blitzgw inspect events --last --follow the one under way, until it has ended
  blitzgw inspect events --all           decisions and operations of all models
  blitzgw inspect events --follow        the same as they come, until ^C
"""

MIN_WATCH_S = 0.1

F = TypeVar("F", bound=Callable[..., None])


@click.group(epilog=EXAMPLES)
def inspect() -> None:
    """Show the nodes, instances, models or requests of a cluster, how it scales, and why.

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
    return option(asking(command))


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect nodes --url http://10.0.0.5:8000\n")
@_options
def nodes(**options: Any) -> None:
    """Show the nodes: which live, what they have, where they are.

    COPIES are weights that are kept in its memory, FREE what more of them could take there, CHANGED
    is how long ago anything last changed there, UP how long ago it was started.
    """
    _show("nodes", options)


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
    _show("instances", options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect models --format json\n")
@_options
def models(**options: Any) -> None:
    """Show the models, and how many instances of each there are.

    A name that nodes define differently is shown once for each definition: the oldest is served.
    WANTED is how many instances its owner wants (`blitzgw inspect why MODEL` says why). COPIES is
    how many nodes keep the weights in memory besides, of as many as should.
    """
    _show("models", options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect requests\n")
@_options
def requests(**options: Any) -> None:
    """Show the requests under way, the oldest first.

    INGRESS is the node that the client speaks to, TRY the number of the attempt, OUTPUT the tokens
    so far and at most.
    """
    _show("requests", options)


@inspect.command(epilog="\b\nExample:\n  blitzgw inspect plan --format json\n")
@click.argument("operation", required=False, metavar="[ID]")
@asking
def plan(operation: str | None, **options: Any) -> None:
    """Show who sends what to whom in a scale operation, and how fast.

    Without an ID it is the one under way, or else the last. `blitzgw scale MODEL N --dry-run`
    shows a plan that nobody carries out.
    """
    from blitzgw.cli.follow import operation_of  # noqa: PLC0415  keeps --help quick
    from blitzgw.cli.plans import print_plan  # noqa: PLC0415

    found = operation_of(asker_of(options["url"], options["api_key"]), operation)
    if options["layout"] == "json":
        print_json(found)
    else:
        print_plan(found)


@inspect.command(epilog=WHY_EXAMPLES)
@click.argument("model")
@asking
def why(model: str, **options: Any) -> None:
    """Show why MODEL has as many instances as it has.

    Who decides, within which bounds and for which targets; what is measured of late; what would be
    decided this moment, by which formula and from which figures; and the last decisions.
    """
    from blitzgw.cli.why import print_why  # noqa: PLC0415  keeps --help quick

    asker = asker_of(options["url"], options["api_key"])
    print_why(asker.get(f"/cluster/models/{quoted(model)}/why"), options["layout"])


@inspect.command(epilog=EVENT_EXAMPLES)
@click.argument("operation", required=False, metavar="[ID]")
@click.option("--last", is_flag=True, help="The operation under way, or else the last one.")
@click.option("--all", "whole", is_flag=True, help="All decisions and operations, by time.")
@click.option("--follow", is_flag=True, help="Show what happens as it happens.")
@click.option("--blobs", is_flag=True, help="In lines, show one for every blob.")
@asking
def events(operation: str | None, **options: Any) -> None:
    """Show what happened in a scale operation and when, or all that happens to all models.

    With an ID, or with --last, it is one operation. On a terminal it is a picture over time:
    decided, claimed, connected, first byte, each blob, complete, ready. Elsewhere it is a line for
    each event, but one for all blobs of a target, or with --blobs for each. JSON tells each blob.
    --follow goes on until the operation has ended.

    With --all it is a timeline of all models: what was decided, from how many instances to how
    many, and why; and which operations began and how they ended. --follow, with or without --all,
    shows the latest of that and then what comes, events of operations too, until ^C; with --format
    json each as a line.

    With nothing it is as with --last, below the decision that led to it.
    """
    from blitzgw.cli.happenings import show_events  # noqa: PLC0415  keeps --help quick

    asker = asker_of(options.pop("url"), options.pop("api_key"))
    if options["whole"] and (operation is not None or options["last"]):
        raise click.UsageError("--all shows all operations: leave out the ID and --last")
    if options["last"] and operation is not None:
        raise click.UsageError(
            "--last is the operation under way or the last one: leave out the ID"
        )
    single = operation is not None or options["last"]
    if options["whole"] or (options["follow"] and not single):
        from blitzgw.cli.timeline import show_timeline  # noqa: PLC0415

        show_timeline(asker, options["layout"], follow=options["follow"], blobs=options["blobs"])
        return
    show_events(
        asker, operation, options["layout"], follow=options["follow"], blobs=options["blobs"]
    )


def _show(what: str, options: dict[str, Any]) -> None:
    from blitzgw.cli.watch import show  # noqa: PLC0415  keeps --help quick

    show(what, **options)
