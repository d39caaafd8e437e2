"""What a model's scaling is told and tells: targets and bounds, demand, wishes, decisions.

config ──► ScaleTerms, with the definition (core/view.py ModelFacts)
every node ── Demand ──► the model's owner               ≤ 20 ms after a change
an operator ──► ScaleWish, the last one given holds      gossip
the owner ──► ScaleFacts                                 gossip
          ──► DecisionFacts                              asked for (`blitzgw inspect why`)
the owner of A ── Cede ──► the owner of B                a device of B for A
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from blitzgw.core.record import record
from blitzgw.core.view import LoadFacts, ScaleTerms

AUTOMATIC = -1
"""In place of a number of instances: as many as the policy decides."""


class ScaleMode(StrEnum):
    """Who decides how many instances a model has."""

    AUTO = "auto"
    """Its owner does, and acts."""
    ADVISE = "advise"
    """Its owner says what it would do, and does nothing."""
    MANUAL = "manual"
    """An operator does."""


GROWTH = 1.05
"""Ratio of the bounds of a bucket of latencies: quantiles are right to within 5 %."""

SHORTEST_S = 1e-4
"""The upper bound of the first bucket, in seconds."""

N_BUCKETS = 340
"""The last one ends at some 1,500 s and takes all that is longer."""


def bucket_of(seconds: float) -> int:
    """Return the bucket of a latency."""
    if seconds <= SHORTEST_S:
        return 0
    return min(N_BUCKETS - 1, math.ceil(math.log(seconds / SHORTEST_S, GROWTH)))


def upper_s(bucket: int) -> float:
    """Return the upper bound of a bucket, in seconds: what its latencies count as."""
    return SHORTEST_S * GROWTH**bucket


@record(frozen=True, slots=True)
class Demand:
    """What one node knows of a model; replaces what it has said of it before.

    `number` rises with every message of the sender. `held` requests, of `held_tokens` prompt
    tokens, wait at it for an instance, the first of them for `held_s`. `arrived` counts requests
    that its clients have made since it started, `refused` those that were refused for want of
    capacity. `loads` are those of its own instances of the model. The rest are latencies of its own
    clients since its last message, how many by bucket: time to first token from the request's
    arrival, time per output token of finished requests, and what they have waited to be scheduled.
    """

    model: str
    digest: str
    number: int
    held: int = 0
    held_tokens: int = 0
    held_s: float = 0.0
    arrived: int = 0
    refused: int = 0
    loads: tuple[LoadFacts, ...] = ()
    ttft: dict[int, int] = field(default_factory=dict)
    tpot: dict[int, int] = field(default_factory=dict)
    queue: dict[int, int] = field(default_factory=dict)
    arrived_tokens: int = 0
    """Of the prompts of those `arrived`, the tokens to be computed: what turns out to be cached is
    taken off with the first token, so that it may fall a little. 0 throughout: not told."""
    news_s: float = 0.0
    """How old the oldest change is that it is the first to tell of."""


@dataclass(frozen=True, slots=True)
class Cede:
    """Let go of an instance of `model`, for `taker` has less of what it needs.

    `priority` and `pressure` are the taker's: seconds of backlog over those allowed, above 1 where
    its target is missed. Whose is greater, priority first, has the device. Not answered: the device
    gets free, or it does not.
    """

    model: str
    taker: str
    priority: int
    pressure: float
    instances: int = 1


ScaleMessage = Demand | Cede


@dataclass(frozen=True, slots=True)
class DecisionFacts:
    """A decision about a model. `at_s` is Unix time.

    `action`: wake (from zero), grow, shrink, zero (to zero), cede, order (of an operator), mend
    (what was wanted already), hold. `acted` is False where it is advice. `inputs` are the figures
    that went into `formula`, by name, the unit last in the name; `reason` is one sentence.
    `operation` is what carries it out, empty: nothing yet, or not any more known.
    """

    model: str
    owner: str
    at_s: float
    action: str
    present: int
    wanted: int
    acted: bool
    reason: str
    formula: str = ""
    inputs: dict[str, float] = field(default_factory=dict)
    operation: str = ""


@dataclass(frozen=True, slots=True)
class WhyFacts:
    """Why a model has as many instances as it has: what its owner would say this very moment.

    `now` is the decision that the present figures give, `hold` mostly; `past` the last ones that
    changed something, the newest first. `quantiles` are those of the last window, in seconds, by
    name (`ttft_p50_s`, `ttft_p90_s`, `ttft_p99_s`, `tpot_…`, `queue_…`). `wish` is what an operator
    has said, `AUTOMATIC` as well; None: nothing, so that the configuration holds.
    """

    model: str
    owner: str
    mode: str
    terms: ScaleTerms
    wish: int | None
    now: DecisionFacts
    quantiles: dict[str, float] = field(default_factory=dict)
    past: tuple[DecisionFacts, ...] = ()
