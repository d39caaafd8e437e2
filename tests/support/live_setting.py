"""What a bench of live scaling plays: an 8B model behind 100 Gbit/s, in small, its ratios kept.

    layer_s     prompt tokens / TOKENS_PER_S / LAYERS         one layer of one prompt, undilated
    rate        layer's bytes / (load_over_compute · layer_s · dilation)      payload, on the wall
    KV, hidden  those of the 8B model · (the bench model's bytes / WEIGHTS_BYTES)

At 8 layer times for a layer, 16 GB cross 113 Gbit/s. Links, computing and every timer of the nodes
are slowed by one dilation; all seconds that are told are undilated.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support import netns
from tests.support.gateways import Terms

LAYERS = 32
TOKENS_PER_S = 15_000.0
"""Prompt tokens of an 8B model on one A800."""

FIXED_US = 250.0
"""A layer's weights are read once a step: 16 GB in 32 layers at 2 TB/s."""

WEIGHTS_BYTES = 16e9
KV_BYTES, HIDDEN_BYTES = 4096, 8192
"""A token's KV in one layer (8 heads of 128, K and V, bfloat16), and its hidden state (4096)."""

DILATION = 4.0
MAX_RATE_MBIT = 1000.0
"""What two busy cores carry without being the limit themselves: beyond it time is slowed more."""

PROMPT_TOKENS, BUDGET_TOKENS, CONTEXT = 2000, 2048, 2048
MAX_SEQUENCES = 64
KV_ROOM = "8GiB"
"""More than all sequences at once take of a model with heads of this size; pages that nobody
touches cost nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast everything goes. `dilation` 0: DILATION, or more where links would be too fast."""

    load_over_compute: float
    layer_bytes: int
    model_bytes: int
    mtu: int = 1500
    dilation: float = 0.0
    prompt_tokens: int = PROMPT_TOKENS

    @property
    def layer_s(self) -> float:
        """One layer of one prompt."""
        return self.prompt_tokens / TOKENS_PER_S / LAYERS

    @property
    def prompt_s(self) -> float:
        """One prompt on one instance alone."""
        return LAYERS * self.layer_s

    @property
    def slowed(self) -> float:
        """The dilation."""
        return self.dilation or max(DILATION, self._undilated_mbit / MAX_RATE_MBIT)

    @property
    def rate_mbit(self) -> float:
        """Of the shaped links, on the wall, with the headers that the shaping counts."""
        return self._undilated_mbit / self.slowed

    @property
    def load_s(self) -> float:
        """What the model's bytes take over a link that carries nothing else."""
        return self.model_bytes / self.layer_bytes * self.load_over_compute * self.layer_s

    def terms(self, *, traced: bool = False) -> Terms:
        """What nodes are told. No prefix is kept and no instance: rounds repeat what they do."""
        return Terms(self._device(), SETTINGS, self.slowed, traced)

    @property
    def _undilated_mbit(self) -> float:
        rate = self.layer_bytes / (self.load_over_compute * self.layer_s)
        return rate * 8 / 1e6 / netns.payload_share(self.mtu)

    def _device(self) -> str:
        """A full prompt takes exactly `layer_s`, the step's fixed part included."""
        token_us = 1e6 / TOKENS_PER_S / LAYERS - FIXED_US / PROMPT_TOKENS
        scale = self.model_bytes / WEIGHTS_BYTES
        cost = {
            "fixed_us": FIXED_US,
            "token_us": round(token_us, 6),
            "context_us": 0,
            "kv_bytes": round(KV_BYTES * scale),
            "hidden_bytes": round(HIDDEN_BYTES * scale),
        }
        text = ", ".join(f"{key} = {value}" for key, value in cost.items())
        return f'kind = "paced"\nkv_bytes = "{KV_ROOM}"\ncost = {{ {text} }}'


SETTINGS = f"""max_model_len = {CONTEXT}
max_num_seqs = {MAX_SEQUENCES}
max_batched_tokens = {BUDGET_TOKENS}
keep_s = 0.0
prefix_caching = false"""
