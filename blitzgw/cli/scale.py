"""`blitzgw scale`: have so many instances of a model, see how they come up, or give that up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blitzgw.cli.grid import guarded
from blitzgw.cli.output import format_option, print_json, printable, quoted

if TYPE_CHECKING:
    from blitzgw.cli.ask import Asker

EXAMPLES = """\b
Examples:
  blitzgw scale smollm2-135m 4 --dry-run     the plan and its predicted time
  blitzgw scale smollm2-135m 4 --wait        a bar for each instance
  blitzgw scale smollm2-135m 4 --strategy star --format json
  blitzgw scale smollm2-135m 4 --live stop   new instances wait until they are complete
  blitzgw scale smollm2-135m --cancel        give up what is under way
  blitzgw scale smollm2-135m auto            let its owner decide again
"""

MAX_INSTANCES = 4096
"""What a node accepts (api/scaling.py), which is not imported here: `--help` stays quick."""

POLICIES = ("auto", "stop", "best-effort", "zigzag", "pipeline")
"""What a node accepts (core/live.py)."""

POLL_S = 0.5
"""How often an operation is asked about: soon for people, and each time all nodes are asked."""

LOST_S = 30.0
"""How long a node may be out of reach while it is waited for: longer than a restart."""

AUTO = "auto"
"""In place of a number of instances: as many as the model's owner decides."""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

Operation = dict[str, Any]
F = TypeVar("F", bound=Callable[..., None])


def node_options(command: F) -> F:
    """Give a command the options that say which node is asked, and with which key."""
    for option in (
        click.option(
            "--admin-key",
            metavar="KEY",
            envvar="BLITZGW_ADMIN_KEY",
            help="Key for what changes things; better in $BLITZGW_ADMIN_KEY. Neither: the key file"
            " that a node of this machine has made in the cache folder.",
        ),
        click.option(
            "--url",
            metavar="URL",
            envvar="BLITZGW_URL",
            default="http://127.0.0.1:8000",
            show_default=True,
            help="The node to ask, any of the cluster; also $BLITZGW_URL.",
        ),
        format_option("How to print it; JSON has everything."),
    ):
        command = option(command)
    return command


def _instances(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> int | str | None:
    """Return a number of instances, or the word for as many as are needed."""
    if value is None or value == AUTO:
        return value
    try:
        number = int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor {AUTO}") from None
    if not 0 <= number <= MAX_INSTANCES:
        raise click.BadParameter(f"{number} is not within 0 to {MAX_INSTANCES}")
    return number


@click.command(epilog=EXAMPLES)
@click.argument("model")
@click.argument("instances", required=False, metavar="[N|auto]", callback=_instances)
@click.option("--dry-run", is_flag=True, help="Show the plan and what it would take; do nothing.")
@click.option(
    "--wait",
    is_flag=True,
    help="Show the progress, and end when it has ended: with 1 where fewer came than wanted.",
)
@click.option("--strategy", metavar="S", default="", help="Plan by this one, not by the quickest.")
@click.option(
    "--live",
    "policy",
    type=click.Choice(POLICIES),
    help="What instances do for others while they load; auto: what is predicted to be best."
    " Without it, what the model's configuration says.",
)
@click.option("--cancel", is_flag=True, help="Give up what is under way for MODEL instead.")
@node_options
@click.pass_context
def scale(
    context: click.Context, /, model: str, instances: int | str | None, **options: Any
) -> None:
    """Have N instances of MODEL in the cluster: bring some up, or let some go.

    Weights come over the network from whoever has them, as planned. Prints the id of the operation
    and returns; `blitzgw inspect plan` and `blitzgw inspect events` show what became of it. Where
    it fails, everything is as it was before.

    N holds, whatever the load is and whoever dies, until the next order. With `auto` the model's
    owner decides from then on by the targets and bounds of its configuration, also where that says
    mode = "manual"; `blitzgw inspect why MODEL` shows how.
    """
    from blitzgw.cli.ask import Asker  # noqa: PLC0415  keeps --help quick

    asker = Asker(options["url"], admin_key(options["admin_key"]), admin=True)
    _check_usage(instances, options)
    if options["cancel"]:
        _cancel(asker, model, options["layout"])
        return
    path = f"/admin/v1/models/{quoted(model)}/scale"
    if instances == AUTO:
        _print_automatic(asker.post(path, {"instances": AUTO}), options["layout"])
        return
    body = {
        "instances": instances,
        "dry_run": options["dry_run"],
        "strategy": options["strategy"],
    }
    if options["policy"]:
        body["policy"] = options["policy"]
    operation = _order(asker, path, body)
    if options["wait"]:
        operation = _wait(asker, operation, options["layout"])
    _print(operation, options["layout"], bool(options["wait"]))
    well = operation.get("state") not in ("failed", "cancelled") and not _falls_short(operation)
    context.exit(0 if well else EXIT_FAILED)


def _check_usage(instances: int | str | None, options: dict[str, Any]) -> None:
    if options["cancel"]:
        others = ("dry_run", "wait", "strategy", "policy")
        if instances is not None or any(options[name] for name in others):
            raise click.UsageError("--cancel goes with MODEL alone")
    elif instances is None:
        text = "how many instances? blitzgw scale MODEL N, or auto for as many as are needed"
        raise click.UsageError(text)
    elif instances == AUTO:
        _check_automatic(options)
    elif options["dry_run"] and options["wait"]:
        raise click.UsageError("--dry-run does nothing that --wait could wait for")


def _check_automatic(options: dict[str, Any]) -> None:
    if options["dry_run"]:
        text = "--dry-run goes with N: `blitzgw inspect why MODEL` shows what would be decided"
        raise click.UsageError(text)
    if options["wait"]:
        raise click.UsageError(
            "--wait goes with N: `blitzgw inspect events --follow` shows what comes"
        )
    if options["strategy"] or options["policy"]:
        raise click.UsageError("--strategy and --live go with N: [[models]] live is for the others")


def admin_key(given: str | None) -> str | None:
    """Return the key to send: the one that was given, or that of this machine's key file."""
    if given:
        return given.strip()
    from blitzgw.configfile.adminkey import ADMIN_KEY_FILE, load_admin_keys  # noqa: PLC0415
    from blitzgw.core.paths import cache_dir  # noqa: PLC0415

    path = Path(os.path.expanduser(cache_dir())) / ADMIN_KEY_FILE
    return load_admin_keys(path)[0] if os.path.lexists(path) else None


@guarded
def _cancel(asker: Asker, model: str, layout: str) -> None:
    """Give up all operations of a model that are under way, or the one with that id."""
    from blitzgw.errors import BlitzError  # noqa: PLC0415

    found = [
        str(operation["id"])
        for operation in asker.get("/cluster/operations")["operations"]
        if not operation["ended"] and _is_meant(operation, model)
    ]
    if not found:
        raise BlitzError(f"nothing is under way for {model}: `blitzgw inspect plan` shows the last")
    cancelled = [asker.post(f"/admin/v1/operations/{quoted(id_)}/cancel", {}) for id_ in found]
    if layout == "json":
        print_json({"operations": cancelled})
        return
    for operation in cancelled:
        click.echo(
            f"{printable(str(operation.get('id')))} {printable(str(operation.get('state')))}"
        )


def _order(asker: Asker, path: str, body: Operation) -> Operation:
    """Ask for an operation. ^C comes too late to keep it from beginning."""
    try:
        return asker.post(path, body)
    except KeyboardInterrupt:
        if not body["dry_run"]:
            text = "interrupted before the node's answer: `blitzgw inspect plan` tells whether it"
            click.echo(f"{text} has begun", err=True)
        raise


def _is_meant(operation: Operation, model: str) -> bool:
    """Tell whether an operation is the one with that id, or scales that model."""
    scales = operation["kind"] == "scale" and operation["model"] == model
    return scales or bool(operation["id"] == model)


@guarded
def _wait(asker: Asker, operation: Operation, layout: str) -> Operation:
    """Follow an operation to its end. ^C leaves it as it is."""
    from blitzgw.cli.follow import followed  # noqa: PLC0415
    from blitzgw.cli.progress import progress  # noqa: PLC0415

    path = f"/cluster/operations/{quoted(operation['id'])}"
    news = followed(lambda: asker.get(path), operation, POLL_S, LOST_S)
    try:
        return progress(news, quiet=layout == "json")
    except KeyboardInterrupt:
        click.echo(f"interrupted; {_remains(operation)}", err=True)
        raise


def _remains(operation: Operation) -> str:
    """Say that an operation goes on, and what can be done about it."""
    return (
        f"the operation goes on: `blitzgw inspect plan {printable(operation['id'])}` shows it,"
        f" `blitzgw scale {printable(operation['model'])} --cancel` gives it up"
    )


def _falls_short(operation: Operation) -> bool:
    """Tell whether an operation is done and has brought up fewer instances than were wanted."""
    ready = [target for target in operation.get("targets", ()) if target["state"] == "ready"]
    lacking = operation["instances_wanted"] - operation["instances_before"]
    return operation.get("state") == "done" and len(ready) < lacking


@guarded
def _print_automatic(answer: dict[str, Any], layout: str) -> None:
    """Print that the owner decides now, and what at once, where it has told already."""
    if layout == "json":
        print_json(answer)
        return
    text, why = f"{answer['model']}: automatic from now on", answer["why"]
    if why is not None:
        now = why["now"]
        text += f"; {now['present']} instance{'' if now['present'] == 1 else 's'}"
        if now["wanted"] != now["present"]:
            text += f", {now['wanted']} wanted"
        text += f": {now['reason']}" if now["reason"] else ""
    click.echo(printable(text))
    click.echo(f"`blitzgw inspect why {printable(answer['model'])}` shows more", err=True)


@guarded
def _print(operation: Operation, layout: str, waited: bool) -> None:
    if layout == "json":
        print_json(operation)
        return
    from blitzgw.cli.plans import headline, print_plan  # noqa: PLC0415

    if operation.get("state") == "planned":
        print_plan(operation)
        return
    click.echo(headline(operation), err=True)
    if not waited and not operation["ended"]:
        click.echo(_remains(operation), err=True)
    click.echo(printable(str(operation["id"])))
