"""Knobs of `[[models]]` that a system gets: the same for all but what the system itself says.

Testbed and simulator ask here, so that both run the same configuration of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blitzgw.sim.evaluation.arrivals import Objective
from blitzgw.sim.evaluation.ladder import System

PREFIX_CACHING = False
"""What one system still has of a prompt another would have to compute: it is left out, and told."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all systems that scale are given. Seconds are undilated."""

    ttft_target_s: float
    max_instances: int
    min_instances: int = 1
    scale_down_after_s: float = 6.0
    keep_s: float = 1.0


def knobs(
    system: System,
    objective: Objective,
    bounds: Bounds,
    *,
    context: int,
    sequences: int,
    budget_tokens: int,
) -> Mapping[str, object]:
    """Return knobs by name; `context` and `budget_tokens` are tokens, of a sequence and a step."""
    common: dict[str, object] = {
        "max_model_len": context,
        "max_num_seqs": sequences,
        "max_batched_tokens": budget_tokens,
        "prefix_caching": PREFIX_CACHING,
    }
    if system.scales:
        common |= {
            "scaling": "auto",
            "ttft_target_s": bounds.ttft_target_s,
            "tpot_target_s": round(objective.tpot_s, 4),
            "min_instances": bounds.min_instances,
            "max_instances": bounds.max_instances,
            "scale_down_after_s": bounds.scale_down_after_s,
            "keep_s": bounds.keep_s,
        }
    return {**common, **system.settings}
