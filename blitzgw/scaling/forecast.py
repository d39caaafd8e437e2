"""When what is queued now gets its first token: FIFO over what serves and what is coming.

The queue of W prompt tokens is worked off in order by all instances together, each at the rate R of
one; instance i joins after a_i seconds (0: it serves). By time t they have done

    D(t) = R · Σ_i max(0, t − a_i)

tokens, so that the request at quantile q of the queue has its first token at the t with D(t) = q·W.
That is the fluid approximation of a FIFO queue with several servers: it is exact to within the time
of one prompt. Requests that are held have waited already: `waited_s` is added. It is the same
estimate by which the router places requests (router/choice.py: queued tokens over rate), over the
whole model, and what ALGORITHMS.md section 4 calls the SLO signal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.figures import Figures

UNBOUNDED_S = 3600.0
"""Stands for "no end in sight": finite, because it is sent and shown."""


HELPFUL_FRACTION = 0.5
"""Of its layers: from then on a helper and its home together do the work of two (ALGORITHMS.md,
section 3). What it does before that is not counted."""


def joins_s(serving: int, coming: Sequence[Coming], load_s: float) -> list[float]:
    """Return in how many seconds each instance works as one: 0 for those that serve.

    One that computes while it loads joins when it has half of its layers. One of which is not known
    when it is complete takes its part of `load_s`, what a loading takes.
    """
    return [0.0] * serving + [_joins_s(each, load_s) for each in coming]


def _joins_s(coming: Coming, load_s: float) -> float:
    lacking = min(1.0, max(0.0, 1.0 - coming.fraction))
    left = coming.left_s if coming.left_s >= 0 else load_s * lacking
    if not coming.computes:
        return left
    if lacking <= HELPFUL_FRACTION:
        return 0.0
    return left * (lacking - HELPFUL_FRACTION) / lacking


def work_off_s(tokens: float, tokens_per_s: float, joins_s: Sequence[float]) -> float:
    """Return when `tokens` are worked off by instances that join at these times, in seconds.

    Instances that never join are left out by the caller. `UNBOUNDED_S` where nobody works, or where
    it lasts longer than that.
    """
    if tokens <= 0:
        return 0.0
    joins = sorted([at if at > 0.0 else 0.0 for at in joins_s])
    if not joins or tokens_per_s <= 0:
        return UNBOUNDED_S
    left = tokens / tokens_per_s
    begins = max(1, bisect_right(joins, 0.0))  # with all that work already
    for k, at in enumerate(joins[begins - 1 :], begins - 1):
        until = joins[k + 1] if k + 1 < len(joins) else UNBOUNDED_S
        span = left / (k + 1)
        if at + span <= until:
            return min(UNBOUNDED_S, at + span)
        left -= (until - at) * (k + 1)
    return UNBOUNDED_S


def worked_tokens(seconds: float, tokens_per_s: float, joins_s: Sequence[float]) -> float:
    """Return what instances that join at these times can do within `seconds`, in tokens."""
    whole = max(0.0, seconds)
    return tokens_per_s * sum([max(0.0, seconds - at) if at > 0.0 else whole for at in joins_s])


def predicted_ttft_s(
    tokens: float,
    tokens_per_s: float,
    joins_s: Sequence[float],
    waited_s: float = 0.0,
    quantile: float = 0.9,
) -> float:
    """Return the predicted TTFT of the request at that quantile of the queue, in seconds.

    `waited_s` is how long what is queued has waited already. 0 for an empty queue.
    """
    if tokens <= 0:
        return 0.0
    return min(UNBOUNDED_S, waited_s + work_off_s(quantile * tokens, tokens_per_s, joins_s))


def foresee(figures: Figures, terms: ScaleTerms, serving: int, joins_s: Sequence[float]) -> Figures:
    """Complete figures with what they let expect, the predicted P90 TTFT and the pressure.

    Without a measured rate it is what the held ones have waited, and when the first instance is
    there. The pressure is the greatest of three ratios, each above 1 where a target is missed:
    predicted TTFT over its target, the measured P90 of TPOT over its target while something runs,
    and committed KV over what the serving instances have (what is above waits to be admitted).
    """
    predicted_s = 0.0
    rate = figures.prefill_tokens_per_s
    if rate is not None:
        predicted_s = predicted_ttft_s(figures.backlog_tokens, rate, joins_s, figures.held_s)
    elif figures.held or figures.backlog_tokens:
        predicted_s = figures.held_s + min(joins_s, default=UNBOUNDED_S)
    predicted_s = min(UNBOUNDED_S, predicted_s)
    ratios = [_ratio(predicted_s, terms.ttft_s)]
    if figures.running:
        ratios.append(_ratio(figures.tpot_s, terms.tpot_s))
    if serving and figures.kv_tokens:
        ratios.append(figures.committed_tokens / (serving * figures.kv_tokens))
    figures.predicted_ttft_s, figures.pressure = predicted_s, max(ratios)
    return figures


def _ratio(value_s: float, target_s: float) -> float:
    return value_s / target_s if target_s > 0 else 0.0
