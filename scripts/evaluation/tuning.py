"""Bounds of its own for each system that scales, found in another window than the reported one.

That is as long, and lies next to it: before it, or after it where the trace has nothing before.

Of some bounds around the one that follows from the objective, each system takes the one with which
it attains most; within NEAR of that, the one with the least instance time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation.store import Store
from blitzgw.sim.evaluation.summary import row
from blitzgw.sim.evaluation.traces import read_trace
from scripts.evaluation.campaign import Campaign, Wish
from scripts.evaluation.configuration import Setting
from scripts.evaluation.settling import lengths

GRID = (0.4, 0.7, 1.0, 1.4)
"""Times the bound that follows from the objective."""

TUNING_SEED = 1001
"""Of thinning: another one than those that are reported, too."""

NEAR = 0.005
"""Attainments that are this near are alike: a few requests of some hundreds."""


def tuned(wish: Wish, folder: Path, about: dict[str, Any], say: Callable[[str], None]) -> Wish:
    """Run what finds bounds, in `folder`/tuning-…, and return the wish with them.

    Raises ConfigError where the trace has no other window.
    """
    elsewhere = beside(wish.setting)
    say(f"bounds are found in {elsewhere.window[0]:g} to {elsewhere.window[1]:g} s")
    systems = [system for system in wish.systems if system.scales]
    rows: dict[float, list[Mapping[str, Any]]] = {}
    for times in GRID:
        target_s = round(times * wish.setting.ttft_target_s, 3)
        setting = elsewhere.but(ttft_target_s=target_s)
        store = Store(folder / f"tuning-{target_s:g}")
        one = replace(wish, setting=setting, systems=systems, seeds=[TUNING_SEED])
        campaign = Campaign(one, store, about, say)
        campaign.begin()
        campaign.run()
        rows[target_s] = [row(record) for record in store.records()]
    targets = {system.name: chosen(system.name, rows) for system in systems}
    told = {name: target_s for name, target_s in targets.items() if target_s}
    say(f"bounds: {told}")
    if lost := sorted({*targets} - {*told}):
        say(f"no cell can be counted of {', '.join(lost)}: the bound stays as it was")
    return replace(wish, targets=told)


def beside(setting: Setting) -> Setting:
    """Return the same for the window next to this one. Raises ConfigError where there is none.

    What `spread_s` moves from one into the other is in neither.
    """
    rows = read_trace(setting.file)
    (start_s, stop_s), long_s, gap_s = setting.window, setting.window_s, setting.spread_s
    if start_s >= long_s + gap_s:
        window = start_s - gap_s - long_s, start_s - gap_s
    elif stop_s + gap_s + long_s <= rows[-1].at_s:
        window = stop_s + gap_s, stop_s + gap_s + long_s
    else:
        raise ConfigError([f"{setting.trace}: no other {long_s:g} s next to the window to tune in"])
    return setting.but(window=window, **lengths(rows, window, gap_s))


def chosen(system: str, rows: Mapping[float, Sequence[Mapping[str, Any]]]) -> float:
    """Return the bound that suits a system best; 0 where no cell of it can be counted."""
    found = [
        (target_s, one)
        for target_s, several in rows.items()
        for one in several
        if one["system"] == system and not one["void"]
    ]
    if not found:
        return 0.0
    most = max(one["attainment"] for _, one in found)
    near = [(target_s, one) for target_s, one in found if one["attainment"] >= most - NEAR]
    return min(near, key=lambda pair: pair[1]["instance_seconds"])[0]
