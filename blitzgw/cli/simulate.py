"""`blitzgw simulate`: the production deciders in virtual time, at any size."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import click

from blitzgw.cli.output import format_option
from blitzgw.cli.simulatelive import LIVE_EXAMPLES, live
from blitzgw.cli.simulatetrace import trace
from blitzgw.cli.simulating import HEADING, no_collector, status

if TYPE_CHECKING:
    from blitzgw.sim.trial import Outcome

GOSSIP_EXAMPLES = """\
  blitzgw simulate gossip --nodes 1000 --seed 7
  blitzgw simulate gossip --nodes 100 --loss 0.05 --format json
  blitzgw simulate gossip --schedules 1000 --nodes 3-12
"""

TRACE_EXAMPLES = """\
  blitzgw simulate trace --trace azure.csv --window 540:800 --nodes 8,64,512
"""

SCALING_EXAMPLES = """\
  blitzgw simulate scaling --nodes 64 --models 8 --schedules 3
  blitzgw simulate scaling --nodes 3-12 --schedules 20 --seed 100
  blitzgw simulate scaling --nodes 12 --seed 4 --format json
"""

MOST_NODES = 10_000
"""Each node holds something of every other one: beyond this a machine's memory is too small."""


def _node_range(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Return the ends of a range such as 3-12, both included; a number is a range of one."""
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise click.BadParameter(f"{text!r} is neither a number nor a range such as 3-12")
    fewest, most = int(first[:6]), int((last or first)[:6])
    if not 1 <= fewest <= most <= MOST_NODES:
        raise click.BadParameter(f"{text!r}: numbers from 1 to {MOST_NODES}, in order")
    return fewest, most


@click.group(epilog=HEADING + GOSSIP_EXAMPLES + LIVE_EXAMPLES + SCALING_EXAMPLES + TRACE_EXAMPLES)
def simulate() -> None:
    """Try out a cluster in virtual time.

    The nodes run the same code as in production; network and clock are made up. Runs repeat: where
    anything is drawn, a seed stands for one run.
    """


simulate.add_command(live)
simulate.add_command(trace)


@simulate.command(epilog=HEADING + GOSSIP_EXAMPLES)
@click.option(
    "--nodes",
    metavar="N|A-B",
    callback=_node_range,
    help="How many; a range with --schedules.  [default: 100, 3-12]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all that is drawn.")
@click.option(
    "--schedules",
    type=click.IntRange(1),
    help="Carry out so many schedules of faults instead, from SEED on, and check what must hold.",
)
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the datagrams that get lost.",
)
@click.option(
    "--duration",
    "idle_s",
    type=click.FloatRange(0, 86400),
    default=10.0,
    show_default=True,
    help="Seconds of the idle phase.",
)
@click.option(
    "--probe-interval",
    "probe_interval_s",
    type=click.FloatRange(0.01, 60),
    help="Seconds, as in [cluster].  [default: that of the configuration]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How many nodes the others know at the start.",
)
@click.option(
    "--kills",
    type=click.IntRange(0, 100),
    default=5,
    show_default=True,
    help="How many nodes crash, one after another.",
)
@format_option()
def gossip(
    *,
    nodes: tuple[int, int] | None,
    seed: int,
    schedules: int | None,
    probe_interval_s: float | None,
    layout: str,
    **phases: Any,
) -> int:
    """Measure gossip: joining, spreading state, detecting deaths, healing partitions.

    With --schedules: carry out schedules of crashes, partitions, losses and pauses, and check that
    all agree some time after the last of them; the exit code is 1 if any did not.
    """
    from blitzgw.config import ClusterConfig  # noqa: PLC0415  keeps --help quick
    from blitzgw.gossip.knobs import Knobs  # noqa: PLC0415

    knobs = Knobs.of(probe_interval_s or ClusterConfig().probe_interval_s)
    if schedules is not None:
        if nodes is not None and nodes[0] < 2:
            raise click.UsageError("a schedule of faults needs two nodes at least")
        return _schedules(seed, schedules, nodes or (3, 12), knobs, layout)
    fewest, most = nodes or (100, 100)
    if fewest != most:
        raise click.UsageError("a range of --nodes goes with --schedules")
    return _phases(fewest, seed, knobs, layout, phases)


@simulate.command(epilog=HEADING + SCALING_EXAMPLES)
@click.option(
    "--nodes",
    metavar="N|A-B",
    default="3-64",
    show_default=True,
    callback=_node_range,
    help="How many; of a range each schedule draws one.",
)
@click.option(
    "--models",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="How many at most; there are no more than half as many as devices.",
)
@click.option(
    "--schedules",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many to carry out, from SEED on.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all that is drawn.")
@format_option()
def scaling(nodes: tuple[int, int], models: int, schedules: int, seed: int, layout: str) -> int:
    """Let a cluster scale itself under changing loads, crashes and partitions.

    Checks what must hold all the time, and that all is right some time after the last fault; the
    exit code is 1 if anything was not.
    """
    from blitzgw.cli import simulatedscaling  # noqa: PLC0415  keeps --help quick

    if nodes[0] < 2:
        raise click.UsageError("faults need two nodes at least")
    with no_collector(), status() as show:
        outcomes = simulatedscaling.run(seed, schedules, nodes, models, show)
    command = f"blitzgw simulate scaling --nodes {nodes[0]}-{nodes[1]} --models {models}"
    if layout == "json":
        simulatedscaling.print_json_scaling(outcomes, command)
    else:
        simulatedscaling.print_scaling(outcomes, command)
    lost = [outcome for outcome in outcomes if not outcome.passed]
    if lost and schedules == 1:
        simulatedscaling.print_faults(seed, lost[0].nodes, models)
    return 1 if lost else 0


def _phases(nodes: int, seed: int, knobs: Any, layout: str, options: dict[str, Any]) -> int:
    from blitzgw.cli.simulated import print_json, print_report  # noqa: PLC0415  keeps --help quick
    from blitzgw.sim.phases import Setup, measure  # noqa: PLC0415

    options["seeds"] = min(options["seeds"], nodes)
    with no_collector(), status() as show:
        report = measure(Setup(nodes, seed, **options), knobs, show)
    if layout == "json":
        print_json(report)
    else:
        print_report(report)
    return 0


def _schedules(seed: int, count: int, nodes: tuple[int, int], knobs: Any, layout: str) -> int:
    from blitzgw.cli import simulated  # noqa: PLC0415  keeps --help quick
    from blitzgw.sim.trial import try_seed  # noqa: PLC0415

    outcomes: list[Outcome] = []
    with no_collector(), status() as show:
        for number in range(seed, seed + count):
            failed = sum(not outcome.passed for outcome in outcomes)
            show(f"schedule {number - seed + 1} of {count}, {failed} failed")
            outcomes.append(try_seed(number, *nodes, knobs))
            gc.collect(0)
    lost = [outcome for outcome in outcomes if not outcome.passed]
    command = f"blitzgw simulate gossip --schedules 1 --nodes {nodes[0]}-{nodes[1]}"
    command += f" --probe-interval {knobs.probe_interval_s:g}"
    if layout == "json":
        simulated.print_json_outcomes(outcomes, lost, command)
    else:
        simulated.print_outcomes(outcomes, lost, command)
    if lost and count == 1:
        simulated.print_schedule(seed, nodes)
    return 1 if lost else 0
