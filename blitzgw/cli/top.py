"""`blitzgw top`: the cluster at a glance, drawn again twice a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blitzgw.cli.asking import asker_of, asking
from blitzgw.cli.output import print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from blitzgw.cli.ask import Asker
    from blitzgw.cli.snapshot import Snapshot

EXAMPLES = """\b
Examples:
  blitzgw top
  blitzgw top --url http://10.0.0.5:8000
  blitzgw top --once
  blitzgw top --format json
"""

REDRAW_S = 0.5

FILE_COLUMNS = 140
"""Width of a single picture that no terminal limits."""


@click.command(epilog=EXAMPLES)
@click.option("--once", is_flag=True, help="Print one picture, of full height, and end.")
@asking
def top(once: bool, **options: Any) -> None:
    """Watch models, instances, nodes and what happens to them, until q or ^C.

    Any node can be asked: each knows the whole cluster. HAS is how many instances a model has, and
    how many its owner wants; PRESS is the predicted time to first token over its target, ETA
    when the next instance serves, TTFT and TPOT are measured P50 and P90 against the target, with
    ! where that is missed. PREFILL/S is what an instance is able to, in prompt tokens; TOKENS/S
    what it generates. LAYERS are those that are there, HELPS says which instance it works for while
    the rest is loading.

    Without colours where $NO_COLOR is set. --format json prints one snapshot with everything.
    """
    from blitzgw.cli.snapshot import PATIENCE_S, look  # noqa: PLC0415  keeps --help quick

    asker = asker_of(options["url"], options["api_key"], PATIENCE_S)
    if options["layout"] == "json":
        print_json(look(asker).told())
    elif once:
        _print(look(asker))
    else:
        _live(asker)


def _print(snapshot: Snapshot) -> None:
    from rich.console import Console  # noqa: PLC0415

    from blitzgw.cli.dashboard import frame  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=FILE_COLUMNS)
    console.print(frame(snapshot, console.width))


def _live(asker: Asker) -> None:
    """Draw until q; ^C and signals leave the terminal as it was, too."""
    import sys  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from blitzgw.cli.keys import Keys, orderly_end  # noqa: PLC0415
    from blitzgw.cli.snapshot import Poller, look  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    if not console.is_terminal or console.is_dumb_terminal:
        text = "top draws on a terminal: elsewhere use --once, or --format json"
        raise click.UsageError(text)
    first = look(asker)
    with (
        orderly_end(),
        Poller(asker, first) as poller,
        Keys(sys.stdin) as keys,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(_picture(poller.latest(), console.size), refresh=True)
            if "q" in keys.wait(REDRAW_S).lower():
                return


def _picture(snapshot: Snapshot, size: tuple[int, int]) -> RenderableType:
    """Return what to draw now; where a snapshot cannot be drawn, the next one perhaps can."""
    from rich.text import Text  # noqa: PLC0415

    from blitzgw.cli.dashboard import frame  # noqa: PLC0415
    from blitzgw.errors import BlitzError  # noqa: PLC0415

    try:
        return frame(snapshot, *size)
    except BlitzError as error:
        return Text(str(error), style="red")
