"""`blitzgw simulate trace`: its options, and what they come to."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import click

from blitzgw.cli.output import format_option
from blitzgw.cli.simulating import no_collector, status
from blitzgw.errors import BlitzError

EXAMPLES = """\
\b
Examples:
  blitzgw simulate trace --trace scripts/traces/azure2023_code_first_800s.csv --window 540:800
  blitzgw simulate trace --trace … --window 540:800 --nodes 8,64,512 --systems stop+disk,live-zigzag
  blitzgw simulate trace --trace … --load-over-compute 1,3,6,12,24 --seeds 3 --out sweep
  blitzgw simulate trace --trace … --nodes 4000 --models 200 --duration 3600 --parts 2 --out hour
"""

SYSTEMS = "static-full,stop+disk,stop+chain,live-zigzag,oracle"
"""Where nothing is said: the ends of the ladder, and the two steps that matter most."""

MOST_NODES = 10_000
MOST_MODELS = 2000
MOST_CELLS = 1000
"""Of a sweep: more of them is a slip of the pen."""


def _window(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[float, float] | None:
    """Return the ends of a window such as 540:800."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    try:
        start, stop = float(first), float(last)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no window such as 540:800") from None
    if not 0 <= start < stop or not isfinite(stop):
        raise click.BadParameter(f"{text!r}: a start from 0 on, and a later stop")
    return start, stop


def _systems(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    """Return names of systems, each once."""
    from blitzgw.sim.evaluation.ladder import SYSTEMS as KNOWN  # noqa: PLC0415  as --help

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in names if name not in KNOWN]:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(KNOWN)}")
    if not names:
        raise click.BadParameter("one at least")
    return names


def _counts(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    """Return numbers of nodes such as 8,64,512."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number, or several such as 8,64,512") from None
    if not all(1 <= count <= MOST_NODES for count in found):
        raise click.BadParameter(f"{text!r}: numbers from 1 to {MOST_NODES}")
    return found


def _ratios(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[float, ...]:
    """Return ratios such as 1,6,24; none where nothing is said."""
    if text is None:
        return ()
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number, or several such as 1,6,24") from None
    if not all(0 < ratio < 1e6 for ratio in found):
        raise click.BadParameter(f"{text!r}: numbers above 0")
    return found


def _rate(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Return bytes per second of a rate such as 100Gbit."""
    if text is None:
        return None
    from blitzgw.config import parse_rate  # noqa: PLC0415  keeps --help quick

    found = parse_rate(text)
    if not isinstance(found, float) or not 0 < found < 1e15:
        raise click.BadParameter(f"{text!r} is no rate such as 100Gbit or 2.5GB/s")
    return found


@click.command("trace", epilog=EXAMPLES)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Azure CSV or Mooncake JSON lines.",
)
@click.option(
    "--window", metavar="A:B", callback=_window, help="Seconds of the trace.  [default: all of it]"
)
@click.option(
    "--factor",
    metavar="X",
    type=click.FloatRange(0, 1e6, min_open=True),
    help="How many times the arrivals; of several --nodes for the first, and for others in"
    " proportion.",
)
@click.option(
    "--level",
    type=click.Choice(["feasible", "paper"]),
    help="Find the factor: the largest that all instances together can serve, or half of them busy."
    "  [default: feasible]",
)
@click.option(
    "--systems",
    metavar="A,B,…",
    callback=_systems,
    default=SYSTEMS,
    help="Ways of bringing instances up.  [default: static-full, stop+disk, stop+chain,"
    " live-zigzag, oracle]",
)
@click.option(
    "--seeds",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many; tables tell medians, and with two or more intervals.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The first of them.")
@click.option(
    "--nodes",
    metavar="N,…",
    callback=_counts,
    default="8",
    show_default=True,
    help="Of one device each; several make a sweep.",
)
@click.option(
    "--profile",
    default="a800-8b",
    show_default=True,
    help="Device and model, such as h200-72b; `list` tells all.",
)
@click.option(
    "--load-over-compute",
    "ratios",
    metavar="X,…",
    callback=_ratios,
    help="Time to load a layer over time to compute it for 2000 tokens; several make a sweep."
    "  [default: 6]",
)
@click.option(
    "--link-rate",
    metavar="RATE",
    callback=_rate,
    help="In place of that: a node's network, each way, such as 100Gbit.",
)
@click.option(
    "--disk-rate",
    metavar="RATE",
    callback=_rate,
    help="Of each disk.  [default: the network's / 10]",
)
@click.option(
    "--host-rate",
    metavar="RATE",
    callback=_rate,
    help="Host memory to device.  [default: the network's × 1.28]",
)
@click.option(
    "--models",
    metavar="N",
    type=click.IntRange(1, MOST_MODELS),
    default=1,
    show_default=True,
    help="They share the load; each has its bursts at other moments of the window.",
)
@click.option(
    "--duration",
    "duration_s",
    metavar="S",
    type=click.FloatRange(1, 7 * 86_400),
    help="Seconds: the window is repeated, or cut.  [default: once]",
)
@click.option(
    "--parts",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Of the time: simulated side by side on all cores, each begun minutes early with a"
    " cluster that starts. In --out they are kept as they end.",
)
@click.option(
    "--failures-per-hour",
    metavar="X",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Crashes of each node.",
)
@click.option(
    "--constants",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What scripts/validate_sim --measure has written, but for cores and *_beside_s: here no"
    " two nodes share processors. Guesses remain check_s, report_s and host_share, which nothing"
    " measures."
    "  [default: guesses all, of a quiet machine, to within a factor of two]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for records, tables and figures; what it has already is not simulated again.",
)
@format_option()
def trace(*, layout: str, **asked: Any) -> int:
    """Let clusters serve a real trace, by several ways of bringing instances up.

    Routers, schedulers, policy, planner and lifecycle are the production code; devices, links and
    disks follow cost models (micro-benchmarks and documented formulas). What is measured, tables
    and files are those of scripts/evaluate.
    """
    from blitzgw.cli import simulatedtrace, tracesettings  # noqa: PLC0415  keeps --help quick

    if asked["profile"] == "list":
        simulatedtrace.print_profiles()
        return 0
    if asked["trace"] is None:
        raise click.UsageError("--trace FILE is missing")
    if asked["factor"] and asked["level"]:
        raise click.UsageError("either --factor or --level")
    if asked["link_rate"] and asked["ratios"]:
        raise click.UsageError("either --link-rate or --load-over-compute")
    cells = len(asked["nodes"]) * max(1, len(asked["ratios"]))
    if cells * len(asked["systems"]) * asked["seeds"] > MOST_CELLS:
        raise click.UsageError(f"more than {MOST_CELLS} simulations; make the sweep smaller")
    try:
        with no_collector(), status() as show:
            found = simulatedtrace.run(tracesettings.Wish(**asked), show)
    except BrokenPipeError:
        raise
    except OSError as error:
        if asked["out"] is None:
            raise
        raise BlitzError(f"--out {asked['out']}: {error.strerror or error}") from None
    if layout == "json":
        simulatedtrace.print_json_trace(found)
    else:
        simulatedtrace.print_trace(found)
    return 1 if found.failed else 0
