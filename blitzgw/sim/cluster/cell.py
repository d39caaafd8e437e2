"""A cell of an evaluation as the simulator takes it: from what a record tells of itself.

`blitzgw simulate trace` writes down what was asked for under the same names as runs on a testbed do
(`Record.about`), so whatever was measured can be simulated, and the other way round.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blitzgw.config import ModelConfig
from blitzgw.configfile.tables import Mistakes, read_table
from blitzgw.sim.cluster.profiles import Profile, named, scaled
from blitzgw.sim.cluster.setup import ClusterSetup, Failures, Latencies, ModelSetup
from blitzgw.sim.evaluation import traces
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.conditions import MAX_TOKENS
from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.summary import PATIENCE_S

PROFILE = "a800-8b"
"""What devices of a testbed are paced as."""

DRAIN_TIMEOUT_S = 1.0
"""What nodes of a testbed are told (tests/support/gateways.py), where a record does not say."""

MODEL = "bench"
"""A model's name; several are numbered."""

SEEDS_APART = 1000
"""Between the seeds of two models: a run's own seeds are fewer."""


def setup_of(
    about: Mapping[str, Any],
    system: System,
    seed: int,
    latencies: Latencies,
    arrivals: Sequence[Arrival] | None = None,
) -> ClusterSetup:
    """Return what is to be simulated. Without `arrivals`, those of the trace for the seed.

    Raises ConfigError for a trace or a knob that is none, KeyError for what is not told.
    """
    profile, config = profile_of(about), config_of(about["knobs"])
    count = int(about.get("models", 1))
    each = [arrivals] if arrivals is not None else arrivals_of(about, seed, count)
    nodes = int(about["nodes"])
    models = tuple(
        ModelSetup(
            name=MODEL if count == 1 else f"{MODEL}-{number:03d}",
            profile=profile,
            arrivals=tuple(one),
            config=config,
            mean=int(about["initial"]) if system.initial == "mean" else 0,
            max_tokens=int(about.get("max_tokens", MAX_TOKENS)),
        )
        for number, one in enumerate(each)
    )
    return ClusterSetup(
        system=system,
        models=models,
        nodes=nodes,
        link_bytes_per_s=float(about["link_bytes_per_s"]),
        disk_bytes_per_s=float(about["disk_bytes_per_s"]),
        host_bytes_per_s=float(about["host_bytes_per_s"]),
        latencies=latencies,
        ingresses=int(about.get("ingresses", nodes)),
        duration_s=duration_s(about),
        patience_s=float(about.get("patience_s", PATIENCE_S)),
        drain_timeout_s=float(about.get("drain_timeout_s", DRAIN_TIMEOUT_S)),
        seed=seed,
        failures=Failures(crashes_per_node_hour=float(about.get("failures_per_hour", 0.0))),
        about=dict(about),
    )


def profile_of(about: Mapping[str, Any]) -> Profile:
    """Return the device and the model; its weights may be played by fewer bytes."""
    profile = named(str(about.get("profile", PROFILE)))
    weights = int(about.get("model_bytes", profile.weight_bytes))
    return profile if weights == profile.weight_bytes else scaled(profile, weights)


def config_of(knobs: Mapping[str, Any]) -> ModelConfig:
    """Return a model's configuration, read as a node reads it. Raises ConfigError."""
    mistakes = Mistakes("knobs")
    config = read_table(ModelConfig, dict(knobs), "models[0]", mistakes)
    mistakes.raise_if_any()
    return config


def duration_s(about: Mapping[str, Any]) -> float:
    """Return how long requests arrive: the window, or as long as it is repeated."""
    start, stop = about["window"]
    return float(about.get("duration_s") or stop - start)


def arrivals_of(about: Mapping[str, Any], seed: int, count: int) -> Iterable[Sequence[Arrival]]:
    """Yield each model's arrivals: the window's, thinned or replicated by dice of their own.

    Those of further models are moved on by a random part of the window, around its end: no two
    models have their bursts together, and all have the same load.
    """
    start_s, stop_s = (float(one) for one in about["window"])
    spread_s = float(about.get("spread_s", 0.0))
    rows = traces.load(Path(about["trace"]), (start_s, stop_s), 1.0, seed, spread_s)
    window_s, until_s = stop_s - start_s, duration_s(about)
    for number in range(count):
        own = seed + number * SEEDS_APART
        one = traces.scaled(rows, float(about.get("factor", 1.0)), own, window_s)
        if number:
            shift_s = random.Random(f"offset {own}").uniform(0.0, window_s)  # noqa: S311
            one = _moved(one, shift_s, window_s)
        yield one if until_s == window_s else list(traces.repeated(one, window_s, until_s))


def _moved(arrivals: Iterable[Arrival], shift_s: float, window_s: float) -> list[Arrival]:
    moved = (
        Arrival((one.at_s + shift_s) % window_s, one.prompt_tokens, one.output_tokens, one.blocks)
        for one in arrivals
    )
    return sorted(moved, key=lambda one: one.at_s)
