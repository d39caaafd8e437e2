"""Runs that must show no gain: where they do, the harness flatters what it measures.

steady       arrivals one after another at the window's mean rate, and as many instances as that
             needs from the start: nobody scales, so nobody can gain
one-target   two nodes: a star and a chain to one target are the same plan; nobody has a copy in
             its host's memory, so weights cross the link
light        load over compute is 1: weights are there before anything could be done with a part
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blitzgw.sim.evaluation import levels
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import SYSTEMS, System
from blitzgw.sim.evaluation.store import write_bytes
from blitzgw.sim.evaluation.traces import AZURE_COLUMNS, load
from scripts.evaluation.campaign import Wish
from scripts.evaluation.configuration import COPIES, size_mb

ENOUGH = 2.0
"""Times what the mean needs: chance brings long prompts together even in a steady trace."""

DAY = datetime(2000, 1, 1, tzinfo=UTC)
"""A synthetic trace has times of a day on which there were no language models."""


def steady(wish: Wish, folder: Path) -> Wish:
    """Return the same with a steady trace, which is written to the folder. Raises OSError."""
    setting = wish.setting
    arrivals = load(setting.file, setting.window, setting.factor, spread_s=setting.spread_s)
    file = folder.resolve() / "steady.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(file, _csv(arrivals, setting.window_s).encode())
    busy = levels.load(arrivals, setting.window_s, setting.steps)
    least = levels.mean_instances(ENOUGH * busy, setting.nodes)
    window = (0.0, setting.window_s)
    made = setting.but(trace=str(file), window=window, factor=1.0, spread_s=0.0)
    return replace(wish, setting=made.but(min_instances=least))


def _csv(arrivals: list[Arrival], window_s: float) -> str:
    """Return the same requests at equal distances, in an order from the dice."""
    shuffled = random.Random("steady").sample(arrivals, len(arrivals))
    lines = [",".join(AZURE_COLUMNS)]
    for number, one in enumerate(shuffled):
        at = DAY + timedelta(seconds=number * window_s / len(shuffled))
        stamp = at.strftime("%Y-%m-%d %H:%M:%S.%f")
        lines.append(f"{stamp},{one.prompt_tokens},{one.output_tokens}")
    return "\n".join(lines) + "\n"


def one_target(wish: Wish, _folder: Path) -> Wish:
    """Return star and chain on two nodes, at the same arrivals for each node."""
    setting = wish.setting
    made = setting.but(nodes=2, factor=setting.factor * 2 / setting.nodes)
    bare = [_without_copies(SYSTEMS[name]) for name in ("stop+star", "stop+chain")]
    return replace(wish, setting=made, systems=bare)


def _without_copies(system: System) -> System:
    return replace(system, settings={**system.settings, COPIES: 0})


def light(wish: Wish, _folder: Path) -> Wish:
    """Return the same with load over compute 1."""
    made = wish.setting.but(load_over_compute=1.0, size_mb=size_mb(1.0))
    return replace(wish, setting=made)


CONTROLS: Mapping[str, Callable[[Wish, Path], Wish]] = {
    "steady": steady,
    "one-target": one_target,
    "light": light,
}
