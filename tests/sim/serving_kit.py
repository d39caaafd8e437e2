"""Small clusters to be simulated: one model, Poisson arrivals from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from blitzgw.config import ModelConfig
from blitzgw.sim.cluster.profiles import Profile, named
from blitzgw.sim.cluster.setup import ClusterSetup, Latencies, ModelSetup
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import System

LINK = 12.5e9


def poisson(
    rate: float,
    seconds: float,
    seed: int = 1,
    prompt: tuple[int, int] = (200, 3000),
    output: tuple[int, int] = (1, 120),
) -> tuple[Arrival, ...]:
    """Return requests with lengths drawn evenly between bounds."""
    dice, at_s = random.Random(seed), 0.0
    arrivals = []
    while (at_s := at_s + dice.expovariate(rate)) < seconds:
        arrivals.append(Arrival(at_s, dice.randint(*prompt), dice.randint(*output)))
    return tuple(arrivals)


def cluster(
    arrivals: Sequence[Arrival],
    nodes: int = 2,
    *,
    profile: Profile | None = None,
    system: System | None = None,
    latencies: Latencies | None = None,
    ingresses: int = 1,
    link: float = LINK,
    seed: int = 1,
    **knobs: object,
) -> ClusterSetup:
    """Return a cluster whose instances are all there from the start, unless a system says so."""
    settings: dict[str, object] = {
        "max_model_len": 9216,
        "max_num_seqs": 64,
        "max_batched_tokens": 448,
        "prefix_caching": False,
        "max_instances": nodes,
    }
    config = ModelConfig(name="m", **(settings | knobs))
    model = ModelSetup("m", profile or named("a800-8b"), tuple(arrivals), config)
    return ClusterSetup(
        system=system or System("static-full", "all", scales=False, initial="full"),
        models=(model,),
        nodes=nodes,
        link_bytes_per_s=link,
        disk_bytes_per_s=link / 10,
        host_bytes_per_s=link * 1.28,
        duration_s=arrivals[-1].at_s + 1.0,
        seed=seed,
        ingresses=ingresses,
        latencies=latencies or Latencies(),
    )


GROWING = System("live", "it grows from one", scales=True, initial="min")

AUTO: dict[str, object] = {
    "scaling": "auto",
    "ttft_target_s": 0.25,
    "tpot_target_s": 0.04,
    "scale_down_after_s": 4.0,
    "keep_s": 1.0,
}
"""Knobs of a model that scales by itself."""
