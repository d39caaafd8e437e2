"""The command line of scripts/evaluate: what is asked for, settled before anything is measured."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation.ladder import SYSTEMS, System
from blitzgw.sim.evaluation.store import OtherSettings, Store
from scripts.evaluation import controls, settling
from scripts.evaluation.campaign import Campaign, NoRoomLeft, Wish
from scripts.evaluation.cellprocess import NoRoom
from scripts.evaluation.configuration import ROOT, Premises
from scripts.evaluation.machine import machine, warm_up
from scripts.evaluation.tuning import tuned
from tests.support import netns

NOT_PERMITTED = 77
TRACE = ROOT / "scripts/traces/azure2023_code_first_800s.csv"

QUICK_WINDOW = (558.0, 600.0)
"""Of the default trace: its largest burst, from before it to after it."""

QUICK_SYSTEMS = "static-full,stop+disk,stop+chain,live-zigzag,oracle"


def names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    found = tuple(part.strip() for part in (value or "").split(",") if part.strip())
    for name in found:
        if name not in SYSTEMS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(SYSTEMS)}")
    if len(set(found)) < len(found):
        raise click.BadParameter("each system once")
    return found


def span(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    start, _, stop = value.partition(":")
    try:
        found = float(start), float(stop)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no window such as 540:800") from None
    if not 0 <= found[0] < found[1] < float("inf"):
        raise click.BadParameter(f"{value!r} is empty")
    return found


@click.command()
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=TRACE,
    show_default="azure2023_code_first_800s.csv",
    help="Azure's CSV or Mooncake's JSON lines.",
)
@click.option("--window", callback=span, help="Seconds of the trace.  [default: 540:800]")
@click.option(
    "--systems", callback=names, help=f"Of {', '.join(SYSTEMS)}.  [default: all but live]"
)
@click.option("--seeds", type=click.IntRange(1, 1000), help="How many.  [default: 5]")
@click.option("--first-seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--level",
    type=click.Choice(["feasible", "paper"]),
    default="feasible",
    show_default=True,
    help="feasible: static-full attains 99 %. paper: half of all instances are busy on average.",
)
@click.option("--factor", type=click.FloatRange(0.01, 1000.0), help="Arrivals, instead of a level.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder."
)
@click.option("--nodes", type=click.IntRange(2, 16), default=8, show_default=True)
@click.option("--dilation", type=click.FloatRange(0.1), default=4.0, show_default=True)
@click.option(
    "--load-over-compute",
    type=click.FloatRange(0.1, 100.0),
    default=6.0,
    show_default=True,
    help="Loading a layer over computing it for a prompt of 2,000 tokens.",
)
@click.option(
    "--size-mb",
    type=click.FloatRange(1.0),
    help="Of the model.  [default: 45 × load over compute, at most 270]",
)
@click.option(
    "--ttft-target-s",
    type=click.FloatRange(0.01),
    help="The policy's bound.  [default: half of what is due of the median prompt before]",
)
@click.option("--scale-down-after-s", type=click.FloatRange(0.0), default=6.0, show_default=True)
@click.option("--keep-s", type=click.FloatRange(0.0), default=1.0, show_default=True)
@click.option("--jobs", type=click.IntRange(1, 8), help="Cells side by side.  [default: 1]")
@click.option("--quick", is_flag=True, help="A short window, five systems, one seed: 15 minutes.")
@click.option(
    "--tuned",
    "tune",
    is_flag=True,
    help="Give each system the bound that suits it best in the window next to this one.",
)
@click.option("--control", type=click.Choice([*controls.CONTROLS]), help="One that shows no gain.")
@click.option("--figures/--no-figures", default=True, show_default=True)
@click.option("--dry-run", is_flag=True, help="Settle and tell, measure nothing.")
def main(**asked: Any) -> None:
    """Measure, and keep what was found."""
    asked = quick(asked) if asked.pop("quick") else asked
    wish, how = settle(asked)
    out: Path = asked["out"]
    about = {**machine(ROOT), "command": shlex.join(sys.argv), "level": how}
    about["systems"] = {system.name: system.says for system in wish.systems}
    about["seeds"] = [*wish.seeds]
    click.echo(settling.describe(wish, how), err=True)
    if asked["dry_run"]:
        return
    netns.check_permitted()
    premises = Premises(wish.setting)  # makes the model, once for cells side by side
    warm_up(premises.model)
    if asked["tune"]:
        wish = tuned(wish, out, about, say)
        out = out / "tuned"
    measure(wish, Store(out), about, figures=asked["figures"])


def quick(asked: dict[str, Any]) -> dict[str, Any]:
    """Fill what was not said with what takes a quarter of an hour."""
    plain = {"window": QUICK_WINDOW, "systems": tuple(QUICK_SYSTEMS.split(",")), "seeds": 1}
    plain["jobs"] = 2
    return {**asked, **{name: asked[name] or value for name, value in plain.items()}}


def settle(asked: dict[str, Any]) -> tuple[Wish, dict[str, Any]]:
    """Return what is to be run, and how its level was found. Raises ConfigError, OSError."""
    chosen = asked["systems"] or tuple(name for name in SYSTEMS if name != "live")
    systems: list[System] = [SYSTEMS[name] for name in chosen]
    seeds = range(asked["first_seed"], asked["first_seed"] + (asked["seeds"] or 5))
    window = asked["window"] or (540.0, 800.0)
    setting, how = settling.settle({**asked, "window": window})
    wish = Wish(setting, systems, seeds, asked["jobs"] or 1)
    if asked["control"]:
        wish = controls.CONTROLS[asked["control"]](wish, asked["out"])
        how = {**how, "control": asked["control"]}
    return wish, how


def measure(wish: Wish, store: Store, about: dict[str, Any], *, figures: bool) -> None:
    """Run all cells; tell and draw what there is, whatever has happened."""
    campaign = Campaign(wish, store, about, say)
    campaign.begin()
    try:
        campaign.run()
    finally:
        campaign.tell()
        if figures:
            draw(store)
        click.echo((store.folder / "table.txt").read_text())
        for system, seed in campaign.missing:
            click.echo(f"MISSING: {system}, seed {seed}", err=True)
        for system, seed in campaign.failed:
            click.echo(f"FAILED: {system}, seed {seed}", err=True)
    if campaign.missing:
        raise click.ClickException("not all cells are there; run it again to go on")
    if campaign.failed:
        raise click.ClickException("some cells have failed, and stay so: the table says why")


def draw(store: Store) -> None:
    """Draw figures, where that is possible."""
    from blitzgw.sim.evaluation.figures import NoMatplotlib, draw

    try:
        for file in draw([*store.records()], store.folder):
            click.echo(f"wrote {file}", err=True)
    except NoMatplotlib as error:
        click.echo(str(error), err=True)


def say(text: str) -> None:
    click.echo(text, err=True)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def guarded(help_text: str) -> int:
    """Run; tell mistakes of the world without a traceback. Return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    main.help = help_text
    try:
        main(standalone_mode=False)
    except netns.NotPermitted as error:
        click.echo(f"SKIPPED, there can be no testbed here: {error}", err=True)
        return NOT_PERMITTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted: finished cells are kept; run it again to go on.", err=True)
        return 130
    except (NoRoom, NoRoomLeft) as error:
        click.echo(f"Error: {error}; finished cells are kept; run it again to go on.", err=True)
        return os.EX_IOERR
    except (ConfigError, OtherSettings, OSError, ValueError) as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return 0
