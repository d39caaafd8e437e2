"""From what is asked for to a setting: the level, the bounds and the lengths that follow."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blitzgw.sim.evaluation import conditions, levels
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.traces import in_window, read_trace, scaled, spread
from scripts.evaluation.campaign import Wish
from scripts.evaluation.configuration import CONTEXT, ROOT, Setting, size_mb

DIGITS = 3
"""Of a factor: another one is another thinning of the trace."""

LEVEL_SEEDS = range(1, 8)
"""That a level is computed with, whatever is run: one seed's attainment moves by whole requests."""

BySeed = Mapping[int, Sequence[Arrival]]
"""A window's arrivals as they are played with a seed, before thinning."""


def settle(asked: Mapping[str, Any]) -> tuple[Setting, dict[str, Any]]:
    """Return the setting, and how its level was found. Raises ConfigError."""
    file: Path = asked["trace"].resolve()
    window: tuple[float, float] = asked["window"]
    rows = read_trace(file)
    spread_s = conditions.spread_of(file)
    there = {seed: in_window(spread(rows, spread_s, seed), *window) for seed in LEVEL_SEEDS}
    plain = Setting(
        trace=str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file),
        window=window,
        factor=1.0,
        ttft_target_s=1.0,
        nodes=asked["nodes"],
        size_mb=asked["size_mb"] or size_mb(asked["load_over_compute"]),
        load_over_compute=asked["load_over_compute"],
        dilation=asked["dilation"],
        scale_down_after_s=asked["scale_down_after_s"],
        keep_s=asked["keep_s"],
        spread_s=spread_s,
        **lengths(rows, window, spread_s),
    )
    how = _level(asked, plain, there)
    target_s = asked["ttft_target_s"]
    if target_s is None:
        source = conditions.before(rows, window[0], spread_s)
        target_s = levels.ttft_target_s(source, plain.objective)
        how["ttft_target_s"] = "half of what is due of the median prompt " + (
            "of the whole trace" if source is rows else "before the window"
        )
    return plain.but(factor=how["factor"], ttft_target_s=target_s), how


def _level(asked: Mapping[str, Any], setting: Setting, there: BySeed) -> dict[str, Any]:
    """Return the factor, and how it was found."""
    one = statistics.fmean(
        levels.load(some, setting.window_s, setting.steps) for some in there.values()
    )
    if asked["factor"]:
        found = {"level": "given", "factor": asked["factor"]}
    elif asked["level"] == "paper":
        found = {"level": "paper", "factor": round(levels.paper(one, setting.nodes), DIGITS)}
    else:
        found = {"level": "feasible", "factor": round(_feasible(setting, there), DIGITS)}
        found["how"] = (
            "largest factor at which the step model of levels.py says that static-full attains"
            " 99 % (mean of seeds 1 to 7); whether it does the table tells"
        )
    factor = float(found["factor"])
    attained = _attained(setting, there, factor)
    load = {"busy_instances": round(one * factor, 3), "predicted_static_full": round(attained, 4)}
    return {**found, **load}


def _feasible(setting: Setting, there: BySeed) -> float:
    return levels.feasible(lambda factor: _attained(setting, there, round(factor, DIGITS)))


def _attained(setting: Setting, there: BySeed, factor: float) -> float:
    """Return the mean attainment of static-full over seeds, as computed."""
    return statistics.fmean(
        levels.attainment(
            scaled(some, factor, seed, setting.window_s),
            setting.nodes,
            setting.steps,
            setting.objective,
        )
        for seed, some in there.items()
    )


def lengths(
    rows: Sequence[Arrival], window: tuple[float, float], spread_s: float
) -> dict[str, int]:
    """Return what every request asks for, and a context that has room for that after any prompt.

    Whatever `spread_s` moves into the window is among what is looked at.
    """
    there = conditions.reaching(rows, window, spread_s)
    max_tokens = conditions.max_tokens(rows, window, spread_s)
    longest = max(one.prompt_tokens for one in there) + max_tokens
    return {"context": max(CONTEXT, conditions.rounded(longest)), "max_tokens": max_tokens}


def describe(wish: Wish, how: Mapping[str, Any]) -> str:
    """Say in a paragraph what is measured and what is played."""
    setting = wish.setting
    objective = setting.objective
    return (
        f"PACED: an 8B model on up to {setting.nodes} devices"
        f" ({objective.prefill_tokens_per_s:g} prompt tokens/s each,"
        f" {objective.step_s * 1e3:g} ms a step), its weights played by {setting.size_mb:g} MB;"
        f" loading a layer takes {setting.load_over_compute:g} × computing it."
        f" {Path(setting.trace).stem}, {setting.window[0]:g} to {setting.window[1]:g} s,"
        f" × {setting.factor:g} ({how.get('level', '')}: {how.get('busy_instances')} instances busy"
        f" on average, static-full computed to attain {how.get('predicted_static_full', 0):.1%})."
        f" Due: {objective.times:g} × what each takes alone; bound of the policy"
        f" {setting.ttft_target_s:g} s. {len(wish.systems)} systems, {len(wish.seeds)} seeds;"
        f" seconds are undilated (dilation {setting.dilation:g})."
    )
