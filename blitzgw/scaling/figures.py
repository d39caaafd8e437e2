"""What is measured of one model, as the policy reads it.

These, and what else is made anew with every look at a model, are not frozen: that would take most
of the time of a look. They are left alone all the same once they are made.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Figures:
    """A model at one moment, over the whole cluster. Made by `Monitor.figures`.

    `backlog_tokens` (ALGORITHMS.md: Wp) are prompt tokens that no instance has computed yet: held,
    waiting, or of prompts under way; `held_tokens` are those of it that no instance has.
    `committed_tokens` (Kb) is the KV promised to requests, `kv_tokens` (K) the KV of one instance;
    0: not known. `prefill_tokens_per_s` (Rp) is the rate of one instance; None: never measured.
    """

    model: str
    backlog_tokens: int = 0
    committed_tokens: int = 0
    held: int = 0
    held_tokens: int = 0
    held_s: float = 0.0
    """For how long the first of the held requests has waited."""
    waiting: int = 0
    running: int = 0
    arrivals_per_s: float = 0.0
    """Requests, over the last `monitor.STEADY_S`."""
    sustained_tokens_per_s: float = 0.0
    """Prompt tokens to be computed that arrive and go on arriving; see `Arrivals.sustained`."""
    certain_tokens_per_s: float = 0.0
    """Of those, what is certain not to be chance."""
    steady_tokens_per_s: float = 0.0
    """The same over the last `monitor.STEADY_S`: what the model needs capacity for all the time."""
    recent_tokens_per_s: float = 0.0
    """The same over the last `monitor.RECENT_S`."""
    steady_requests: int = 0
    """How many requests that figure rests on."""
    prefill_tokens_per_s: float | None = None
    kv_tokens: int = 0
    batch_within: int = 0
    """Sequences that an instance can decode with steps within the target of TPOT; 0: not known."""
    tpot_s: float = 0.0
    """The P90 of what clients had of late for an output token, while something runs; 0: unknown."""
    idle_s: float = 0.0
    """Since the last request arrived or was under way."""
    predicted_ttft_s: float = 0.0
    """The predicted P90 TTFT of what is queued now (forecast.py); at most `UNBOUNDED_S`."""
    pressure: float = 0.0
    """How hard pressed: above 1 a target is missed, or will be."""

    @property
    def prompt_s(self) -> float:
        """How long an instance takes for a prompt of mean length; 0: not known."""
        return prompt_s(self.steady_tokens_per_s, self.arrivals_per_s, self.prefill_tokens_per_s)

    @property
    def requests(self) -> int:
        """Those that are held, wait or are under way: no more have a prompt to be computed."""
        return self.held + self.waiting + self.running

    @property
    def idle(self) -> bool:
        """Whether no request is held, waits or runs."""
        return not (self.requests or self.backlog_tokens)


def prompt_s(
    steady_tokens_per_s: float, arrivals_per_s: float, prefill_tokens_per_s: float | None
) -> float:
    """Return how long an instance takes for a prompt of mean length; 0: not known."""
    if not prefill_tokens_per_s or arrivals_per_s <= 0:
        return 0.0
    return steady_tokens_per_s / arrivals_per_s / prefill_tokens_per_s
