"""Pick an instance for a request. Pure: what is known comes in as arguments.

The figures of other nodes' instances are some time old, and every node decides by its own copy. If
each took the best instance, all would take the same one until its next figures arrive: therefore
the choice falls among all that could be the best, by what is cached there, by the session, or by
two random choices (Mitzenmacher, "How useful is old information?", IEEE TPDS 11(1), 2000).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

import xxhash

from blitzgw.core.ports import Outlook
from blitzgw.router.fleet import Seat

PRIOR_TOKENS_PER_S = 1000.0
"""The prefill rate of a model before any instance of it has been measured. Of the right order for
a small model on a CPU; being the same for all, it only weighs queues against distances."""

SLACK_SHARE = 0.1
"""Predictions this much apart, relatively, are the same: measured rates vary by that."""

SLACK_S = 0.02
"""Predictions this much apart are the same: about a step of the batch that runs there."""


MAX_DOUBT_S = 0.2
"""For figures older than this they are not doubted more: a peer repeats them several times in that
time while they change, and does not where they stay as they are."""


class Dice(Protocol):
    """The one thing that is wanted of a `random.Random`."""

    def random(self) -> float:
        """Return a number within [0, 1)."""


@dataclass(slots=True, eq=False)
class Prospect:
    """What a request may expect of an instance.

    `predicted_s` is the time to its first token; of its prompt, `cached_tokens` are believed to be
    there already; the figures are `age_s` old. They are exact where the instance is this node's.
    """

    seat: Seat
    predicted_s: float
    cached_tokens: int
    age_s: float
    exact: bool

    @property
    def instance(self) -> str:
        """The instance's id."""
        return self.seat.port.instance


def predicted_ttft_s(outlook: Outlook, uncached_tokens: int, tokens_per_s: float) -> float:
    """Return the time to first token that an instance promises, in seconds.

    (queued tokens + uncached prompt tokens) / prefill rate + distance. Decoding is left out: the
    measured rate is that of prefill beside whatever decodes.
    """
    return (outlook.queued_tokens + uncached_tokens) / tokens_per_s + outlook.distance_s


def usual_rate(outlooks: Iterable[Outlook]) -> float:
    """Return the prefill rate to expect of an instance without one: the mean of those known."""
    known = [rate for outlook in outlooks if (rate := outlook.prefill_tokens_per_s)]
    return sum(known) / len(known) if known else PRIOR_TOKENS_PER_S


def assess(
    seats: Iterable[Seat],
    prompt_tokens: int,
    cached: Mapping[int, int],
    *,
    reluctant: bool = False,
) -> list[Prospect]:
    """Return the prospects of a prompt at those instances that are open, or `reluctant`.

    `cached` tells, by serial, how many of its tokens are believed to be at an instance; the last
    token of a prompt is always computed.
    """
    outlooks = [(seat, seat.port.outlook()) for seat in seats]
    usual = 0.0
    prospects = []
    for seat, outlook in outlooks:
        if not outlook.open or outlook.reluctant != reluctant:
            continue
        rate = outlook.prefill_tokens_per_s
        if not rate:
            rate = usual = usual or usual_rate(other for _, other in outlooks)
        there = min(cached.get(seat.serial, 0), prompt_tokens - 1) if cached else 0
        predicted_s = predicted_ttft_s(outlook, prompt_tokens - there, rate)
        exact = not outlook.age_s and not outlook.distance_s
        prospects.append(Prospect(seat, predicted_s, there, outlook.age_s, exact))
    return prospects


def choose(prospects: Sequence[Prospect], session: str, dice: Dice) -> Prospect:
    """Return the prospect to take, of one or more.

    First those remain that could be the best: with b the best prediction, those within
    b × (1 + SLACK_SHARE) + SLACK_S + ages, which are the best's and their own, each no more than
    MAX_DOUBT_S. In `age` seconds an instance can be sent about as many seconds' work, or get rid of
    them, so its prediction is wrong by up to that. Of those, the ones with the most of the prompt
    in their caches are preferred, as long as that saves no less than the queue in front of it
    costs: their prediction is within the same bound without the ages. A session then goes where
    rendezvous hashing sends it, which all nodes agree upon; everything else to the better of two
    random ones.
    """
    if len(prospects) == 1:
        return prospects[0]
    best = min(prospects, key=_merit)
    limit_s = best.predicted_s * (1.0 + SLACK_SHARE) + SLACK_S
    loose_s = limit_s + min(best.age_s, MAX_DOUBT_S)
    near = [p for p in prospects if p.predicted_s <= loose_s + min(p.age_s, MAX_DOUBT_S)]
    pool = _attached(near, limit_s) or near
    if session:
        return max(pool, key=lambda p: rendezvous(session, p.instance))
    return _better_of_two(pool, dice)


def rendezvous(session: str, instance: str) -> int:
    """Return how much a session belongs to an instance: the same number on every node.

    The highest of all instances wins; one that goes moves only its own sessions (Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998).
    """
    digest: int = xxhash.xxh3_64_intdigest(f"{instance}\0{session}".encode())
    return digest


def _attached(near: Sequence[Prospect], limit_s: float) -> list[Prospect]:
    """Return those that have the most of the prompt and are still worth waiting for."""
    most = max(p.cached_tokens for p in near)
    if not most:
        return []
    return [p for p in near if p.cached_tokens == most and p.predicted_s <= limit_s]


def _better_of_two(pool: Sequence[Prospect], dice: Dice) -> Prospect:
    """Return the better of two random prospects, or one with exact figures that is as good.

    Exact are those of this node's instances: sending it there is no herd's doing, and saves a hop.
    """
    n = len(pool)
    if n == 1:
        return pool[0]
    first = int(dice.random() * n)
    second = (first + 1 + int(dice.random() * (n - 1))) % n
    winner = min(pool[first], pool[second], key=_merit)
    exact = [p for p in pool if p.exact]
    if exact:
        ours = min(exact, key=_merit)
        if ours.predicted_s <= winner.predicted_s * (1.0 + SLACK_SHARE):
            return ours
    return winner


_merit = attrgetter("predicted_s", "age_s")
