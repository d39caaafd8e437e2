"""What the loads of a model's instances say together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from blitzgw.core.scale import Demand
from blitzgw.core.view import LoadFacts


def busy(load: LoadFacts) -> bool:
    """Tell whether an instance has a request."""
    return load.running > 0 or load.waiting > 0 or load.queued_tokens > 0


def more_to_do(former: Demand, demand: Demand) -> bool:
    """Tell whether a node has more to do than it had, or knows at last how fast it does it."""
    if demand.arrived > former.arrived or demand.held > former.held:
        return True
    before = {load.instance: load for load in former.loads}
    return any(_more(before.get(load.instance), load) for load in demand.loads)


def _more(before: LoadFacts | None, load: LoadFacts) -> bool:
    return (
        before is None
        or load.queued_tokens > before.queued_tokens
        or load.running + load.waiting > before.running + before.waiting
        or load.kv_committed_tokens > before.kv_committed_tokens
        or (before.prefill_tokens_per_s is None and load.prefill_tokens_per_s is not None)
    )


def newest(*sources: Iterable[LoadFacts]) -> dict[str, LoadFacts]:
    """Return the newest load of each instance; of two equally new ones that of the later source."""
    found: dict[str, LoadFacts] = {}
    for loads in sources:
        for load in loads:
            other = found.get(load.instance)
            if other is None or load.number >= other.number:
                found[load.instance] = load
    return found


def pace_figures(load: LoadFacts) -> tuple[float | None, int]:
    """Return what of a load tells how fast its instance is, and how much it holds."""
    return load.prefill_tokens_per_s, load.kv_tokens


def robust_mean(values: Sequence[float]) -> float | None:
    """Return the mean of those that are within a factor of two of the median; None of nothing.

    An instance that has just begun, or is throttled, does not speak for the others.
    """
    if not values:
        return None
    middle = median(values)
    return fmean([each for each in values if middle / 2 <= each <= middle * 2] or [middle])


def prefill_rate(loads: Iterable[LoadFacts]) -> float | None:
    """Return the prompt tokens per second of one instance; None where none has measured it."""
    rates = [load.prefill_tokens_per_s for load in loads]
    return robust_mean([rate for rate in rates if rate is not None and _positive(rate)])


def kv_tokens(loads: Iterable[LoadFacts]) -> int:
    """Return what the KV of one instance holds, in tokens; 0 where none has told."""
    return int(robust_mean([float(load.kv_tokens) for load in loads if load.kv_tokens > 0]) or 0)


@dataclass(slots=True)
class Together:
    """Loads added up. `promised_tokens` is KV.

    An instance that does not tell what it has promised tells what it uses.
    """

    queued_tokens: int = 0
    waiting: int = 0
    running: int = 0
    promised_tokens: int = 0

    @property
    def busy(self) -> bool:
        """Whether there is a request."""
        return self.running > 0 or self.waiting > 0 or self.queued_tokens > 0

    def committed_tokens(self, held: int, held_tokens: int) -> int:
        """Return the KV promised to all requests, and to those that are held, in tokens.

        A held request is expected to need what one that an instance has needs on average, its own
        prompt at least.
        """
        requests = self.running + self.waiting
        each = self.promised_tokens / requests if requests else 0.0
        return self.promised_tokens + max(held_tokens, int(held * each))


def together(loads: Iterable[LoadFacts]) -> Together:
    """Add loads up."""
    queued = waiting = running = promised = 0
    for load in loads:
        queued += load.queued_tokens
        waiting += load.waiting
        running += load.running
        promised += load.kv_committed_tokens or _used(load)
    return Together(queued, waiting, running, promised)


def _used(load: LoadFacts) -> int:
    return int(min(1.0, load.kv_usage) * load.kv_tokens) if _positive(load.kv_usage) else 0


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
