"""What a simulated cluster serves: models with their terms, and when how many requests come.

Everything is drawn from a seed. Loads are in instances' worth: what so many instances can serve
when they do nothing else. In the faulty part all models together want more than there is at times;
in the steady part at the end they get by with some of the devices, and requests come at equal
distances, so that whatever goes up and down then does so by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import log

from blitzgw.core.scale import ScaleMode
from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.survey import ModelDefinition

PREFILL_TOKENS_PER_S = 4000.0
"""Of one instance; a request is about a second of it, so that few requests make much load."""

DECODE_STEP_S = 0.02
"""Of one instance, whatever its batch is."""

SLOTS = 16
"""Requests that an instance has in its KV at once."""

KV_TOKENS = 120_000
"""Of an instance: that is not what requests wait for, mostly."""

LAYERS = 4
"""Of each model: few blobs, so that a transfer takes few events."""

PHASE_S = (3.0, 14.0)
"""How long a model's load stays what it is."""

STEADY_SHARE = 0.5
"""Of all devices that the loads of the steady part need, all together."""


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start_s` on requests come at `rate_per_s`, after a burst of so many at once."""

    start_s: float
    rate_per_s: float
    burst: int = 0


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model, what its operator wants, and its load. Prompts are of equal length."""

    definition: ModelDefinition
    terms: ScaleTerms
    prompt_tokens: int
    output_tokens: int
    phases: tuple[Phase, ...]
    steady_s: float
    """From here on requests come at equal distances."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    @property
    def prefill_s(self) -> float:
        """How long an instance is busy with a prompt."""
        return self.prompt_tokens / PREFILL_TOKENS_PER_S

    def arrivals(self, rng: random.Random, until_s: float) -> Iterator[float]:
        """Yield when requests come, in order."""
        ends = [phase.start_s for phase in self.phases[1:]] + [until_s]
        for phase, end_s in zip(self.phases, ends, strict=True):
            yield from [phase.start_s] * phase.burst
            if phase.rate_per_s <= 0:
                continue
            now = phase.start_s
            while True:
                gap = 1.0 if phase.start_s >= self.steady_s else -log(1 - rng.random())
                now += gap / phase.rate_per_s
                if now >= end_s:
                    break
                yield now


def draw_models(
    rng: random.Random, count: int, devices: int, steady_s: float
) -> tuple[SimModel, ...]:
    """Return models for a cluster of so many devices, with their loads from 0 on.

    They are `count`, or fewer in a small cluster: half the devices. Steady loads are a whole number
    of instances' worth and a half, so that none is at the edge of needing another one.
    """
    count = max(2, min(count, devices // 2))
    share, spare, left = devices / count, devices // 4, STEADY_SHARE * devices
    models = []
    for number in range(count):
        terms = _terms(rng, share, spare)
        spare -= terms.min_instances
        most = min(left, terms.max_instances or devices)
        wishful = rng.choice((0, 1, 1, 2, round(share)))
        whole = max(w for w in range(wishful + 1) if w <= most)
        left -= whole
        models.append(_model(rng, number, terms, share, max(0.0, whole - 0.5), steady_s))
    return tuple(models)


def _terms(rng: random.Random, share: float, spare: int) -> ScaleTerms:
    least = min(spare, rng.choice((0, 0, 0, 1, 1, 2)))
    most = rng.choice((0, 0, max(2, least, round(share * rng.uniform(0.7, 2.5)))))
    return ScaleTerms(
        mode=ScaleMode.AUTO.value,
        ttft_s=rng.choice((2.0, 4.0, 6.0)),
        tpot_s=0.1,
        min_instances=least,
        max_instances=most,
        patience_s=rng.choice((0.5, 1.0, 1.5)),
        idle_to_zero_s=0.0 if least else rng.choice((4.0, 6.0, 10.0)),
        keep_s=rng.choice((0.0, 2.0, 6.0)),
        priority=rng.choice((0, 0, 1, 2, 5)),
    )


def _model(
    rng: random.Random, number: int, terms: ScaleTerms, share: float, worth: float, steady_s: float
) -> SimModel:
    name = f"m{number}"
    size = rng.uniform(1e9, 6e9)
    layer = int(size / (LAYERS + 1))
    definition = ModelDefinition(
        name, f"d{number}".ljust(64, "0"), f"f{number}".ljust(64, "0"),
        (layer // 2, *(layer,) * LAYERS, layer // 2),
    )  # fmt: skip
    prompt_tokens = rng.choice((2000, 4000, 4000, 6000))
    per_instance = PREFILL_TOKENS_PER_S / prompt_tokens
    phases = [*_phases(rng, share, steady_s, per_instance)]
    phases.append(Phase(steady_s, worth * per_instance))
    return SimModel(
        definition, terms, prompt_tokens, rng.choice((10, 30, 60)), tuple(phases), steady_s
    )


def _phases(
    rng: random.Random, share: float, until_s: float, per_instance: float
) -> Iterator[Phase]:
    now = 0.0
    while now < until_s:
        worth = share * rng.choice((0.0, 0.0, 0.0, 0.1, 0.3, 0.6, rng.uniform(0.5, 2.5)))
        burst = int(share * rng.uniform(1, 5)) if rng.random() < 0.2 else 0
        yield Phase(now, worth * per_instance, burst)
        now += rng.uniform(*PHASE_S)
