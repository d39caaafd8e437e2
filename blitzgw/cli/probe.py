"""`blitzgw probe`: measure what the link between two workers carries."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from blitzgw.cli.grid import guarded
from blitzgw.cli.output import print_json, printable, rate, size
from blitzgw.cli.scale import admin_key, node_options

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from blitzgw.cli.ask import Asker

EXAMPLES = """\b
Examples:
  blitzgw probe node-a/gpu0 node-b/gpu0                  256 MiB, as weights go
  blitzgw probe node-a/gpu0 node-b/gpu0 --seconds 10 --class kv --rate 100MB
  blitzgw inspect nodes                                  shows the workers
"""

PROBE_PATH = "/admin/v1/probe"

MAX_SECONDS = 60.0
"""What a node accepts (api/probing.py), which is not imported here: `--help` stays quick."""

MARGIN_S = 20.0
"""What a node may take beyond the time of the measurement, to begin and to end it."""

CLASSES = ("weights", "kv", "activations")


class _Amount(click.ParamType[float]):
    """A size such as 256MiB, or a rate such as 400Mbit, as configuration files have them."""

    def __init__(self, name: str, example: str) -> None:
        self.name, self._example = name, example

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from blitzgw.config import parse_rate, parse_size  # noqa: PLC0415  keeps --help quick

        found = (parse_size if self.name == "size" else parse_rate)(value)
        if not isinstance(found, int | float) or found <= 0:
            self.fail(f"{value!r} is no {self.name} such as {self._example}", param, ctx)
        return found


@click.command(epilog=EXAMPLES)
@click.argument("source")
@click.argument("target")
@click.option(
    "--size", "size_bytes", type=_Amount("size", "256MiB"), help="How much to send.  [256MiB]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.0, MAX_SECONDS, min_open=True),
    metavar="S",
    help="Send for so long at most; without --size as much as goes.",
)
@click.option(
    "--class",
    "lane",
    type=click.Choice(CLASSES),
    default=CLASSES[0],
    show_default=True,
    help="As what: weights stand back for the others.",
)
@click.option("--network", metavar="NAME", help="Over this one, not the fastest they share.")
@click.option(
    "--rate", "most", type=_Amount("rate", "400Mbit"), metavar="RATE", help="Send at most at this."
)
@click.option("--encrypt", is_flag=True, help="Seal what is sent, as prompts are.")
@node_options
def probe(source: str, target: str, **options: Any) -> None:
    """Measure what the link from SOURCE to TARGET carries.

    They are workers, NODE/DEVICE, of any nodes of the cluster. What is sent takes the way that
    weights take, and is thrown away. Requests go on meanwhile, and share the link.
    """
    from blitzgw.cli.ask import Asker  # noqa: PLC0415  keeps --help quick

    seconds = options["seconds"] or MAX_SECONDS
    key = admin_key(options["admin_key"])
    asker = Asker(options["url"], key, admin=True, timeout_s=seconds + MARGIN_S)
    body = {
        "source": source,
        "target": target,
        "size_bytes": None if options["size_bytes"] is None else int(options["size_bytes"]),
        "seconds": options["seconds"],
        "class": options["lane"],
        "network": options["network"],
        "rate_bytes_per_s": options["most"],
        "encrypt": options["encrypt"],
    }
    _probe(asker, body, options["layout"])


@guarded
def _probe(asker: Asker, body: dict[str, Any], layout: str) -> None:
    way = printable(f"{body['source']} → {body['target']}")
    with _waiting(way, quiet=layout == "json"):
        found = asker.post(PROBE_PATH, body)
    if layout == "json":
        print_json(found)
        return
    measured = found["bytes_per_s"]
    amount, seconds = size(found["payload_bytes"]), found["seconds"]
    network = f" over {printable(str(found['network']))}" if found["network"] else ""
    speed = "too short to tell" if measured is None else _both(measured)
    click.echo(f"{way}{network}: {speed} ({amount} in {seconds:.3g} s)")
    if found["yielded_s"] or found["delayed_s"]:
        text = f"stood back for requests: {found['yielded_s']:.3g} s"
        click.echo(f"{text}; kept them waiting: {found['delayed_s']:.3g} s")


def _both(bytes_per_s: float) -> str:
    """Return a rate as files have it and as links do."""
    return f"{rate(bytes_per_s)}, {bytes_per_s * 8 / 1e6:.4g} Mbit/s"


def _waiting(way: str, *, quiet: bool) -> AbstractContextManager[object]:
    """Show on a terminal that something is under way, and for how long."""
    from rich.console import Console  # noqa: PLC0415  keeps --help quick
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True, highlight=False, markup=False)
    if quiet or not console.is_terminal:
        return nullcontext()
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task(f"measuring {way}", total=None)
    return bar
