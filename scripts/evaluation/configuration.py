"""What all cells of an evaluation have in common, and what the nodes of one are told.

    link               layer's bytes / (load over compute · a layer's time · dilation)
                       of a prompt of PROMPT_TOKENS; LINK_REASON has what that comes to

Bounds follow from the objective and from the trace *before* the window that is reported: levels.py;
they are the same for all that scale. Seconds are undilated.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blitzgw.sim.evaluation.arrivals import Objective
from blitzgw.sim.evaluation.conditions import (
    HOST_OVER_LINK,
    LINK_OVER_DISK,
    MAX_SEQUENCES,
    MAX_TOKENS,
)
from blitzgw.sim.evaluation.knobs import Bounds, knobs
from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.levels import Steps
from tests.support.benchmodel import bench_model, size_bytes
from tests.support.gateways import Gateways, Roles, Terms
from tests.support.live_setting import FIXED_US, LAYERS, TOKENS_PER_S, Pace

ROOT = Path(__file__).resolve().parents[2]

CONTEXT = 9216
"""Tokens: the longest prompt of the Azure traces and the longest answer; more where a window has
longer ones."""

BUDGET_TOKENS = 448
"""Of a step: one with a full chunk of a prompt stays within what a token may take."""

SIZE_MB, LOAD_OVER_COMPUTE = 270.0, 6.0
"""At a dilation of 4 these make links of 664 Mbit/s."""

LINK_REASON = (
    "loading a layer takes so many times computing it for a prompt of 2,000 tokens; 422 Mbit/s, the"
    " whole model in 5.1 s on the wall at a dilation of 4, would be 9.4 times instead of 6"
)
"""Why links are as fast as they are: their two customary figures exclude each other."""

STEP_S = FIXED_US * 1e-6 * LAYERS
"""A decode step of one sequence."""

COPIES = "host_copies"
"""The knob that a testbed writes by itself; without it there are no host copies."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What results depend on, beside the system and the seed."""

    trace: str
    """Where it lies, from the project's folder if it is in there."""
    window: tuple[float, float]
    factor: float
    ttft_target_s: float
    nodes: int = 8
    size_mb: float = SIZE_MB
    load_over_compute: float = LOAD_OVER_COMPUTE
    dilation: float = 4.0
    scale_down_after_s: float = 6.0
    keep_s: float = 1.0
    min_instances: int = 1
    patience_s: float = 120.0
    """Of clients."""
    context: int = CONTEXT
    max_tokens: int = MAX_TOKENS
    spread_s: float = 0.0
    """Rows of a trace come at any moment of so many seconds from their time on."""

    @property
    def file(self) -> Path:
        """Where the trace lies."""
        return ROOT / self.trace

    def told(self) -> dict[str, Any]:
        """Return what tells this setting from others, wherever the trace lies."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return {**asdict(self), "trace": self.file.name, "trace_sha256": digest}

    def but(self, **changes: Any) -> Setting:
        """Return another one."""
        return replace(self, **changes)

    @property
    def window_s(self) -> float:
        """How long the window is."""
        return self.window[1] - self.window[0]

    @property
    def objective(self) -> Objective:
        """What is due."""
        return Objective(TOKENS_PER_S, STEP_S)

    @property
    def steps(self) -> Steps:
        """The cost model of an instance: a prompt of PROMPT_TOKENS takes their exact time."""
        token_us = 1e6 / TOKENS_PER_S / LAYERS - FIXED_US / Pace(1, 1, 1).prompt_tokens
        return Steps(STEP_S, token_us * 1e-6 * LAYERS, BUDGET_TOKENS, MAX_SEQUENCES)


class Premises:
    """The model that cells serve, and how fast everything goes."""

    def __init__(self, setting: Setting) -> None:
        """Make the model where it is not there yet. Raises OSError."""
        self.setting = setting
        self.model = bench_model(setting.size_mb, LAYERS + 2, context=setting.context)
        sizes = size_bytes(self.model)
        self.layer_bytes, self.model_bytes = round(statistics.fmean(sizes[1:-1])), sum(sizes)
        load = setting.load_over_compute
        self.pace = Pace(load, self.layer_bytes, self.model_bytes, dilation=setting.dilation)

    @property
    def link_bytes_per_s(self) -> float:
        """Of a link, with the headers that shaping counts."""
        return self.pace.rate_mbit * 1e6 / 8 * self.pace.slowed

    @property
    def disk_bytes_per_s(self) -> float:
        """Of a node's disk."""
        return self.link_bytes_per_s / LINK_OVER_DISK

    @property
    def host_bytes_per_s(self) -> float:
        """Of a node's memory."""
        return self.link_bytes_per_s * HOST_OVER_LINK

    def about(self) -> dict[str, Any]:
        """What a record tells of all this (`blitzgw/sim/evaluation/summary.py`)."""
        setting = self.setting
        return {
            **asdict(setting),
            "paced": "an 8B model on one A800 per node",
            "prefill_tokens_per_s": setting.objective.prefill_tokens_per_s,
            "step_s": setting.objective.step_s,
            "times": setting.objective.times,
            "tpot_target_s": setting.objective.tpot_s,
            "max_instances": setting.nodes,
            "budget_tokens": BUDGET_TOKENS,
            "max_sequences": MAX_SEQUENCES,
            "layers": LAYERS,
            "layer_bytes": self.layer_bytes,
            "model_bytes": self.model_bytes,
            "link_bytes_per_s": self.pace.model_bytes / self.pace.load_s,
            "link_rate_mbit_on_the_wall": self.pace.rate_mbit,
            "link_rate_reason": LINK_REASON,
            "disk_bytes_per_s": self.disk_bytes_per_s,
            "host_bytes_per_s": self.host_bytes_per_s,
        }

    def knobs(self, system: System) -> Mapping[str, object]:
        """Return what a system's nodes are told of the model."""
        setting = self.setting
        bounds = Bounds(
            setting.ttft_target_s,
            setting.nodes,
            setting.min_instances,
            setting.scale_down_after_s,
            setting.keep_s,
        )
        return knobs(
            system,
            setting.objective,
            bounds,
            context=setting.context,
            sequences=MAX_SEQUENCES,
            budget_tokens=BUDGET_TOKENS,
        )

    def terms(self, system: System) -> Terms:
        """Return a system's knobs and the device of its nodes, as a testbed wants them."""
        told = {name: value for name, value in self.knobs(system).items() if name != COPIES}
        device = self.pace.terms().device.replace("hidden_bytes", "seed_ends = true, hidden_bytes")
        return Terms(device, toml(told), self.pace.slowed, disk_bytes_per_s=self.disk_bytes_per_s)


class Nodes(Gateways):
    """Nodes of a cell, which read from a host's memory at a rate of their own."""

    host_bytes_per_s = 0.0

    def configuration(self, node: int) -> str:
        """Return a node's configuration."""
        text = super().configuration(node)
        return text.replace(
            "max_disk_rate", f"max_host_rate = {self.host_bytes_per_s}\nmax_disk_rate"
        )


def size_mb(load_over_compute: float) -> float:
    """Return a model's size with which links are no faster than two cores can play them."""
    return min(SIZE_MB, SIZE_MB * load_over_compute / LOAD_OVER_COMPUTE)


def roles(premises: Premises, system: System, sources: int) -> Roles:
    """Return what the nodes of a cell are for: all define the model, some begin with it."""
    terms = premises.terms(system)
    copies = int(str(system.settings.get(COPIES, 0)))
    return Roles(premises.model, sources, copies, definers=premises.setting.nodes, terms=terms)


def toml(told: Mapping[str, object]) -> str:
    """Return knobs as lines of TOML."""
    return "\n".join(f"{name} = {_value(value)}" for name, value in told.items())


def _value(value: object) -> str:
    """Write a number, a word, a truth value or a list of them; JSON's way is TOML's, too."""
    return json.dumps(value)
