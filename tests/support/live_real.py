"""A burst onto real compute: SmolLM2 on two nodes, each with its share of the processors.

For correctness and behaviour, in a table of its own: two cores are no two GPUs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.weights.cache import resolve
from blitzgw.weights.info import resolve_model
from tests.support.gateways import Terms
from tests.support.live_bench import VOCABULARY, LiveBench, Wish
from tests.support.live_client import prompts
from tests.support.multicast_bench import Findings

MODEL = "smollm2-135m"
CONTEXT = 1024
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 8
RATE_MBIT, CORES = 400.0, 1.0

DEVICE = """kind = "cpu"
threads = 1
kv_bytes = "1GiB\""""
SETTINGS = f"""keep_s = 0.0
dtype = "float32"
max_model_len = {CONTEXT}
max_batched_tokens = 512
prefix_caching = false"""

SLOWEST_S = 4.0
"""Of a prompt on a share of a busy core: how long clients wait follows from it, nothing else."""


@dataclass(frozen=True, slots=True)
class RealPace:
    """Time as it is. `prompt_s` and with it the ratio are known once they have been measured."""

    layer_bytes: int
    model_bytes: int
    layers: int
    mtu: int = 1500
    rate_mbit: float = RATE_MBIT
    prompt_tokens: int = PROMPT_TOKENS
    prompt_s: float = SLOWEST_S
    slowed: float = 1.0

    @property
    def layer_s(self) -> float:
        """One layer of one prompt."""
        return self.prompt_s / self.layers

    @property
    def load_s(self) -> float:
        """What the model's bytes take over a link."""
        return self.model_bytes * 8 / (self.rate_mbit * 1e6)

    @property
    def load_over_compute(self) -> float:
        """A layer's time on the link, in times of computing it."""
        return round(self.layer_bytes * 8 / (self.rate_mbit * 1e6) / self.layer_s, 1)

    def terms(self, *, traced: bool = False) -> Terms:
        """Return what nodes are told."""
        return Terms(DEVICE, SETTINGS, 1.0, traced)


class RealBench(LiveBench):
    """The same questions, asked of the real model."""

    compute = "real"
    outputs = OUTPUT_TOKENS

    def prepare(self) -> None:
        """Find the model, or fetch it."""
        self.model = resolve(MODEL)
        shape = resolve_model(MODEL, self.model, Dtype.FLOAT32, CONTEXT).spec.shape
        sizes = [one.size_bytes for one in blob_layouts(shape, Dtype.FLOAT32)]
        layer = statistics.fmean(sizes[1:-1])
        self.layers = shape.n_layers
        self.repace(RealPace(round(layer), sum(sizes), shape.n_layers, self.wish.mtu))
        self.prompts = prompts(self.wish.burst, PROMPT_TOKENS, VOCABULARY)

    def calibrate(self) -> None:
        """Measure how long a prompt takes: what the ratio is told by."""
        with self.cluster(1) as made:
            alone = self.alone(made)
        self.repace(replace(self.pace, prompt_s=max(alone.completions_s) / len(self.prompts)))

    def describe(self) -> str:
        """Say what is measured."""
        pace = self.pace
        return (
            f"real: {MODEL} in float32 on nodes of {self.wish.cores:g} processors each, links of"
            f" {pace.rate_mbit:.0f} Mbit/s; {self.wish.burst} prompts of {PROMPT_TOKENS} tokens,"
            f" {OUTPUT_TOKENS} tokens each; {pace.prompt_s:.2f} s for one on one instance, a layer"
            f" loads in {pace.load_over_compute:g} × the time that it computes for a prompt"
        )


def real(wish: Wish, progress: Any) -> RealBench:
    """A bench of the real model."""
    return RealBench(replace(wish, cores=wish.cores or CORES), progress)


def record(bench: RealBench) -> Findings:
    """Measure what one instance takes, then every policy."""
    bench.calibrate()
    return bench.policies()
