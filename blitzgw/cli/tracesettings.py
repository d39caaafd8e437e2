"""The points of a sweep of `blitzgw simulate trace`: what its options come to, in figures.

link rate    layer's bytes / (load over compute · compute of a layer for RATIO_TOKENS)
factor       per model: that of the smallest cluster · nodes / its nodes / models
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from blitzgw.config import NodeConfig
from blitzgw.errors import ConfigError
from blitzgw.sim.cluster.cell import arrivals_of, duration_s, profile_of
from blitzgw.sim.cluster.profiles import Profile, named
from blitzgw.sim.evaluation import conditions, levels, traces
from blitzgw.sim.evaluation.arrivals import TIMES, Objective
from blitzgw.sim.evaluation.knobs import Bounds, knobs
from blitzgw.sim.evaluation.ladder import SYSTEMS, System

RATIO = 6.0
"""Load over compute where nothing is said: that of the papers."""

RATIO_TOKENS = 2000
"""Of the prompt whose computing it is compared with."""

LEVEL_NODES = 8
"""A level is found for so many nodes at most, and taken in proportion for more."""

MOST_INGRESSES = 16
"""Nodes that clients talk to: as many as a load balancer may have in its list. Each of them knows
all instances of its models, which at thousands of nodes would be most of what is simulated."""

OF_TPOT, BUDGET_UNIT = 0.9, 64
"""Of what a token may take, a full step; budgets are multiples of so many tokens."""

BOUNDS = tuple(field.name for field in fields(Bounds))
"""Bounds are told under the names that they have as knobs."""

SCALE_DOWN_AFTER_S, KEEP_S = 6.0, 1.0
"""As on the testbed (scripts/evaluate)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for, as the options are named."""

    trace: Path
    window: tuple[float, float] | None
    factor: float | None
    level: str | None
    systems: tuple[str, ...]
    seeds: int
    seed: int
    nodes: tuple[int, ...]
    profile: str
    ratios: tuple[float, ...]
    link_rate: float | None
    disk_rate: float | None
    host_rate: float | None
    models: int
    duration_s: float | None
    parts: int
    failures_per_hour: float
    constants: Path | None
    out: Path | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a sweep: what is special about it, and what its cells have in common."""

    label: Mapping[str, float]
    about: dict[str, Any]

    def about_of(self, system: str, seed: int) -> dict[str, Any]:
        """Return what a record of a system tells of itself."""
        its, about = SYSTEMS[system], self.about
        objective = Objective(about["prefill_tokens_per_s"], about["step_s"], about["times"])
        made = knobs(
            its,
            objective,
            Bounds(**{name: about[name] for name in BOUNDS}),
            context=about["context"],
            sequences=about["max_sequences"],
            budget_tokens=about["budget_tokens"],
        )
        return about | {
            "knobs": dict(made),
            "free_when_kept": its.free_when_kept,
            "initial": initial(its, about, seed),
        }

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return "-".join(
            f"{key.replace('/', '-over-')}-{value:g}" for key, value in self.label.items()
        )


def settings_of(wish: Wish) -> Iterator[Setting]:
    """Yield all points of the sweep. Raises ConfigError for what cannot be meant."""
    profile = named(wish.profile)
    window = wish.window or _whole(wish.trace)
    common = _about(wish, profile, window)
    factor = _factor(wish, window, common)
    links = _links(wish, profile)
    for nodes in wish.nodes:
        for ratio, link in links:
            label: dict[str, float] = {}
            if len(wish.nodes) > 1:
                label["nodes"] = nodes
            if len(links) > 1:
                label["load/compute"] = ratio
            about = common | {
                "nodes": nodes,
                "max_instances": nodes,
                "ingresses": min(nodes, MOST_INGRESSES),
                "load_over_compute": round(ratio, 6),
                "link_bytes_per_s": link,
                "disk_bytes_per_s": wish.disk_rate or link / conditions.LINK_OVER_DISK,
                "host_bytes_per_s": wish.host_rate or link * conditions.HOST_OVER_LINK,
                "factor": factor * nodes / wish.nodes[0] / wish.models,
            }
            yield Setting(label, about)


def compute_s(profile: Profile) -> float:
    """Return what a layer takes to compute for a prompt of RATIO_TOKENS."""
    return RATIO_TOKENS / profile.prefill_tokens_per_s / profile.layers


def _links(wish: Wish, profile: Profile) -> list[tuple[float, float]]:
    """Return load over compute, and the links' bytes/s, for each point."""
    layer_bytes = max(profile.blob_bytes[1:-1])
    unit = layer_bytes / compute_s(profile)
    if wish.link_rate:
        return [(unit / wish.link_rate, wish.link_rate)]
    return [(ratio, unit / ratio) for ratio in wish.ratios or (RATIO,)]


def _about(wish: Wish, profile: Profile, window: tuple[float, float]) -> dict[str, Any]:
    """Return what all points have in common."""
    objective = Objective(profile.prefill_tokens_per_s, profile.step_s)
    rows = traces.read_trace(wish.trace)
    spread_s = conditions.spread_of(wish.trace)
    before = conditions.before(rows, window[0], spread_s)
    max_tokens = conditions.max_tokens(rows, window, spread_s)
    return {
        "trace": str(wish.trace),
        "window": list(window),
        "level": wish.level or ("" if wish.factor else "feasible"),
        "profile": wish.profile,
        "models": wish.models,
        "duration_s": wish.duration_s or 0.0,
        "failures_per_hour": wish.failures_per_hour,
        "prefill_tokens_per_s": objective.prefill_tokens_per_s,
        "step_s": objective.step_s,
        "times": objective.times,
        "context": conditions.rounded(max(one.prompt_tokens for one in rows) + max_tokens),
        "max_tokens": max_tokens,
        "spread_s": spread_s,
        "budget_tokens": budget_tokens(profile),
        "max_sequences": conditions.MAX_SEQUENCES,
        "ttft_target_s": levels.ttft_target_s(before, objective),
        "tpot_target_s": round(objective.tpot_s, 4),
        "min_instances": 1,
        "scale_down_after_s": SCALE_DOWN_AFTER_S,
        "keep_s": KEEP_S,
        "drain_timeout_s": NodeConfig().drain_timeout_s,
        "dilation": 1.0,
        **({"parts": wish.parts} if wish.parts > 1 else {}),
    }


def _factor(wish: Wish, window: tuple[float, float], about: Mapping[str, Any]) -> float:
    """Return how many times the trace's arrivals come to the smallest cluster."""
    if wish.factor:
        return wish.factor
    rows = traces.load(wish.trace, window, 1.0, wish.seed, about["spread_s"])
    window_s, nodes = window[1] - window[0], min(wish.nodes[0], LEVEL_NODES)
    steps = steps_of(named(wish.profile), about)
    if wish.level == "paper":
        found = levels.paper(levels.load(rows, window_s, steps), nodes)
    else:
        objective = Objective(about["prefill_tokens_per_s"], about["step_s"])

        def attained(factor: float) -> float:
            arrivals = traces.scaled(rows, factor, wish.seed, window_s)
            return levels.attainment(arrivals, nodes, steps, objective)

        try:
            found = levels.feasible(attained)
        except ValueError as error:
            raise ConfigError([f"{wish.trace}: {error}; --factor says how much to play"]) from None
    return found * wish.nodes[0] / nodes


def initial(system: System, about: Mapping[str, Any], seed: int) -> int:
    """Return how many instances each model of a cell has at the start.

    All have the same load; what a load needs on average is told as the testbed tells it.
    """
    most = max(1, int(about["nodes"]) // int(about["models"]))

    def load() -> float:
        played = next(iter(arrivals_of(about, seed, 1)))
        return levels.load(played, duration_s(about), steps_of(profile_of(about), about))

    return conditions.initial(system, most, min(most, int(about["min_instances"])), load)


def steps_of(profile: Profile, about: Mapping[str, Any]) -> levels.Steps:
    """Return what steps cost, for a level to be found."""
    token_s = profile.layers * (profile.cost.token_us + profile.cost.context_us) * 1e-6
    return levels.Steps(profile.step_s, token_s, about["budget_tokens"], about["max_sequences"])


def budget_tokens(profile: Profile) -> int:
    """Return the tokens of a step that takes no longer than a token may, less a tenth.

    That much is left for what runs beside: each step delays all who decode.
    """
    left_s = OF_TPOT * TIMES * profile.step_s - profile.step_s
    token_s = profile.layers * profile.cost.token_us * 1e-6
    return max(BUDGET_UNIT, round(left_s / token_s / BUDGET_UNIT) * BUDGET_UNIT)


def _whole(trace: Path) -> tuple[float, float]:
    """Return the window of all that a trace has, in whole seconds."""
    return 0.0, math.floor(traces.read_trace(trace)[-1].at_s) + 1.0
