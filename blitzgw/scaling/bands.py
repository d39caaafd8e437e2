"""How many instances a load needs: bands, between whose ends a number of instances is right.

ALGORITHMS.md section 4. All of a band is in instances, not yet rounded: `low` are the fewest that
do, `high` the most that are of use, and `aim` is what to jump to where there are fewer than `low`.
With R the prompt tokens per second of one instance, T the target of TTFT, W the seconds that one
instance would need for the queue (Wp / R), A the arriving prompt tokens in instances (tokens per
second / R), L the seconds until an instance ordered now serves:

prefill     W/hi … W/lo, hi = 0.7 T, lo = 0.5 T, aim at 0.6 T. A request that comes now has its
            first token after W/n and about half of its own prompt (its predecessors end one after
            the other); 0.3 T is for that, for noticing, and for the decoding in between. A bound
            that is shorter than one prompt takes would be kept by no number of instances: hi is no
            less than the time of a prompt of mean length, and lo five sevenths of hi. And fewer are
            enough only if one prompt more would not be too much for them: (W + prompt)/hi.
            Nor are more of use to a queue than it has requests: a prompt is computed by one.
growing     While A is more than what serves can do, the queue grows until the new ones are there.
            What they will find is W_L = max(0, W + A·L − what is done until then), and they are
            enough if no more than hi of it is left after half of the time in which yet another one
            could be there: n·(L/2 + hi) ≥ W_L + A·L/2. So a burst is answered for what it is going
            to be, and once: after the answer only what is certain of A can ask for more.
utilisation A/0.95 … A/0.7 over the last seconds, aim at 0.8: a queue is short by chance close to
            full use, and with fewer instances it would not be. 0.7 leaves the waiting time of a
            queue (which goes with 1/(1 − utilisation)) at a third of what it is at 0.9. It makes
            for growth only if enough requests have been counted.
decode      Kb/0.95 … Kb/0.75 over K: committed KV over that of one instance, aim at 0.85.
tpot        running/B … running/0.8 B, aim at 0.9: B is the batch whose steps take the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.forecast import worked_tokens

HI, MIDDLE, LO = 0.7, 0.6, 0.5
"""Of the TTFT target that may be backlog; see above, and ALGORITHMS.md section 4."""

KV_HI, KV_MIDDLE, KV_LO = 0.95, 0.85, 0.75
"""Of the KV of an instance that may be committed; ALGORITHMS.md section 4."""

USE_HI, USE_MIDDLE, USE_LO = 0.95, 0.8, 0.7
"""Of the time that instances may be computing prompts."""

BATCH_HI, BATCH_MIDDLE, BATCH_LO = 1.0, 0.9, 0.8
"""Of the batch whose decode steps take the target of TPOT."""

SOON = 0.5
"""Of a loading, in which new instances are to work off what they find. At 1 the first requests of a
burst wait for two loadings. At 0 instances come for all that waits at once, and hardly any has been
seen to be answered sooner than at a half: it is the evidence that comes too late."""

ENOUGH_REQUESTS = 50
"""Of which a steady rate is right to within some 20 %, at lengths that vary as much as they mean:
less than what lies between `USE_LO` and `USE_HI`."""

UNMEASURED = "no rate measured: one instance, to measure it"
"""In place of a formula."""


@dataclass(slots=True)
class Band:
    """How many instances one thing asks for; `formula` returns how that was worked out, in words.

    Nobody asks it of a look by which nothing is decided: of hundreds one.
    """

    name: str
    low: float
    aim: float
    high: float
    formula: Callable[[], str]


@dataclass(slots=True)
class Outlook:
    """What the band of prefill has to know besides the figures.

    `joins_s` is when each instance works, ordered ones included; `load_s` (L) when one that is
    ordered now does. `answering`: the present queue has been answered, by what is coming.
    """

    joins_s: Sequence[float]
    load_s: float
    answering: bool


def drain_s(figures: Figures, terms: ScaleTerms) -> float:
    """Return hi, in seconds: the backlog per instance above which more are needed."""
    return max(HI * terms.ttft_s, figures.prompt_s, 1e-3)


def prefill(figures: Figures, terms: ScaleTerms, outlook: Outlook) -> Band:
    """Return what the queue asks for. Without a measured rate: one, as soon as there is one."""
    rate = figures.prefill_tokens_per_s
    backlog = figures.backlog_tokens
    if rate is None:
        some = 1.0 if backlog or figures.held or figures.waiting else 0.0
        return Band("prefill", some, some, 0.0, lambda: UNMEASURED)
    hi = drain_s(figures, terms)
    middle, lo = hi * MIDDLE / HI, hi * LO / HI
    inflow = figures.sustained_tokens_per_s / rate
    if outlook.answering:
        inflow = figures.certain_tokens_per_s / rate
    queue_s = backlog / rate
    work_s, later_s = work_ahead_s(queue_s, inflow, outlook), outlook.load_s
    most = figures.requests or math.inf
    then = most + _requests_within(later_s + middle, inflow, figures)
    soon_s = SOON * later_s
    grown, aim = min(then, work_s / (soon_s + hi)), work_s / (soon_s + middle)
    aim = min(then, max(aim, inflow / USE_MIDDLE))
    high = min(most + 1, max(queue_s / lo, (queue_s + figures.prompt_s) / hi))

    def growing() -> str:
        return f"growing ({work_s:.3g} s)/({soon_s:.3g} s + hi {hi:.3g} s) = {grown:.2f}"

    if outlook.answering:
        return Band("growing", grown, aim, high, growing)
    low, middling = min(most, queue_s / hi), min(most, queue_s / middle)

    def formula() -> str:
        share = f"({backlog} tokens)/({rate:.3g} tokens/s)/(hi {hi:.3g} s) = {queue_s / hi:.2f}"
        useful = f", of use to {most} requests" if low == most else ""
        return f"prefill {share}{useful}" + (f", {growing()}" if aim > middling else "")

    return Band("prefill", low, max(aim, middling), high, formula)


def _requests_within(seconds: float, inflow: float, figures: Figures) -> float:
    """Return how many requests come within a time if so many instances are kept busy by them.

    Infinitely many where it is not known how long a prompt takes.
    """
    if inflow <= 0:
        return 0.0
    return inflow * seconds / figures.prompt_s if figures.prompt_s > 0 else math.inf


def work_ahead_s(queue_s: float, inflow: float, outlook: Outlook) -> float:
    """Return W_L + A·L/2, in seconds of one instance: what is left for those ordered now."""
    done_s = worked_tokens(outlook.load_s, 1.0, outlook.joins_s)
    found_s = max(0.0, queue_s + inflow * outlook.load_s - done_s)
    return found_s + inflow * SOON * outlook.load_s


def utilisation(figures: Figures) -> Band | None:
    """Return what the steady rate of arrivals asks for; None: it is not known."""
    rate = figures.prefill_tokens_per_s
    if not rate or figures.steady_tokens_per_s <= 0:
        return None
    use = figures.steady_tokens_per_s / rate
    latest = max(use, figures.recent_tokens_per_s / rate)
    known = figures.steady_requests >= ENOUGH_REQUESTS
    return Band(
        "utilisation",
        use / USE_HI if known else 0.0,
        use / USE_MIDDLE,
        latest / USE_LO,
        lambda: (
            f"utilisation ({figures.steady_tokens_per_s:.3g} tokens/s)/({rate:.3g} tokens/s)/"
            f"{USE_HI:g} = {use / USE_HI:.2f}"
        ),
    )


def decode(figures: Figures) -> Band | None:
    """Return what committed KV asks for; None where the KV of an instance is not known."""
    if figures.kv_tokens <= 0:
        return None
    full = figures.committed_tokens / figures.kv_tokens
    return Band(
        "decode",
        full / KV_HI,
        full / KV_MIDDLE,
        full / KV_LO,
        lambda: (
            f"decode ({figures.committed_tokens} tokens)/({figures.kv_tokens} tokens)/{KV_HI:g} = "
            f"{full / KV_HI:.2f}"
        ),
    )


def tpot(figures: Figures) -> Band | None:
    """Return what the time of decode steps asks for; None where it is not known."""
    if figures.batch_within <= 0:
        return None
    full = figures.running / figures.batch_within
    return Band(
        "tpot",
        full / BATCH_HI,
        full / BATCH_MIDDLE,
        full / BATCH_LO,
        lambda: (
            f"tpot ({figures.running} running)/({figures.batch_within} within target) = {full:.2f}"
        ),
    )
