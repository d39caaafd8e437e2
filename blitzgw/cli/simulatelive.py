"""`blitzgw simulate live`: a burst at one instance that others help while they load."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click

from blitzgw.cli.output import format_option
from blitzgw.cli.simulating import HEADING
from blitzgw.core.live import LivePolicy

LIVE_EXAMPLES = """\
  blitzgw simulate live --layers 7 --requests 6 --load-over-compute 6
  blitzgw simulate live --layers 32 --requests 24 --policy best-effort
  blitzgw simulate live --in-flight 4 --helpers 3 --format json
"""

MOST_LAYERS, MOST_REQUESTS, MOST_HELPERS = 256, 1000, 64
"""Every layer of every request is a step: more of them take minutes, and show nothing new."""

MOST_UNITS = 1000.0
"""A layer that takes longer to come is slower than anything there is."""


def _units(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """Return a number of units: a whole one as an int, so that times that follow are whole."""
    if not isfinite(value):
        raise click.BadParameter(f"{value} is not a number from 0 to {MOST_UNITS:g}")
    return int(value) if value == int(value) else value


@click.command(epilog=HEADING + LIVE_EXAMPLES)
@click.option(
    "--layers",
    type=click.IntRange(1, MOST_LAYERS),
    default=32,
    show_default=True,
    help="Of the model.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, MOST_REQUESTS),
    default=24,
    show_default=True,
    help="In the burst, all at the home at time 0.",
)
@click.option(
    "--load-over-compute",
    "load",
    type=click.FloatRange(0, MOST_UNITS),
    callback=_units,
    default=8,
    show_default=True,
    help="Time from one layer's arrival to the next one's.",
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in LivePolicy]),
    default=LivePolicy.ZIGZAG.value,
    show_default=True,
    help="What instances do while their layers arrive.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, MOST_REQUESTS),
    help="Requests at a helper at once, at most.  [default: no limit]",
)
@click.option(
    "--helpers",
    type=click.IntRange(1, MOST_HELPERS),
    default=1,
    show_default=True,
    help="Instances that are loading, all from time 0 on.",
)
@click.option(
    "--handoff",
    type=click.FloatRange(0, MOST_UNITS),
    callback=_units,
    default=0,
    show_default=True,
    help="Time for one layer's KV, or the hidden states, of a request that is passed on.",
)
@format_option()
def live(*, policy: str, layout: str, **numbers: Any) -> int:
    """Serve a burst at one instance while others, which help it, are loading.

    The unit of time is one layer's compute of one request. The first layer is there at time 0, a
    batch is one request, and messages take no time.
    """
    from blitzgw.cli import simulated  # noqa: PLC0415  keeps --help quick
    from blitzgw.sim.live import LiveSetup, simulate_live  # noqa: PLC0415

    setup = LiveSetup(policy=LivePolicy(policy), **numbers)
    outcome = simulate_live(setup)
    if layout == "json":
        simulated.print_json_live(outcome)
    else:
        simulated.print_live(setup, outcome)
    return 0
