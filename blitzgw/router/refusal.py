"""What a client is told when nobody takes its request: the kindest of the refusals."""

from __future__ import annotations

import math

from blitzgw.errors import (
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
    TooLarge,
    Unavailable,
)

Refusal = Overloaded | Unavailable
"""What another instance may see differently."""

RETRY_AFTER_S = 10.0
"""What a client is told to wait where no instance's arrival is known: about a worker's restart."""

RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 120.0
"""Below, clients come back before anything has changed; above, they do not come back at all."""


def kinder(known: Refusal | None, other: Refusal) -> Refusal:
    """Return the refusal to pass on: that capacity exists beats that none does, then the sooner."""
    return other if known is None else min(known, other, key=_hardness)


def as_refusal(error: RequestError) -> Refusal | None:
    """Return what an instance's error says about that instance; None: it is the request's fault.

    What else can go wrong at one instance may go well at the next.
    """
    if isinstance(error, InvalidRequest | TooLarge):
        return None
    if isinstance(error, Overloaded | Unavailable):
        return error
    return Unavailable("an instance could not take the request", retry_after_s=RETRY_AFTER_MIN_S)


def bounded(refusal: Refusal) -> Refusal:
    """Return a refusal whose waiting time, where it names one, is one that clients obey."""
    wait_s = refusal.retry_after_s
    if wait_s is None or RETRY_AFTER_MIN_S <= wait_s <= RETRY_AFTER_MAX_S:
        return refusal
    wait_s = RETRY_AFTER_MAX_S if math.isnan(wait_s) else wait_s
    wait_s = min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
    return type(refusal)(refusal.message, param=refusal.param, retry_after_s=wait_s)


def sooner(refusal: Refusal, eta_s: float | None) -> Refusal:
    """Return a refusal that tells to come back when the next instance serves, in `eta_s` seconds.

    One by an instance that says when there is room keeps that time where it is the sooner one; a
    time that a node without instances has guessed does not count. None: nothing is expected.
    """
    if eta_s is None:
        return refusal
    guessed = refusal.status == Unavailable.status
    wait_s = eta_s if guessed else min(eta_s, refusal.retry_after_s or eta_s)
    return type(refusal)(refusal.message, param=refusal.param, retry_after_s=wait_s)


def unavailable(reason: str) -> Unavailable:
    """Return the refusal of a node that knows no instance for a request."""
    return Unavailable(reason, retry_after_s=RETRY_AFTER_S)


def redefined(model: str, *, begun: bool) -> RequestError:
    """Return what a request is told that no instance can go on with, its model being another now.

    One that has `begun` has sent tokens of the former definition: it cannot begin anew.
    """
    text = f"the definition of model {model} has changed"
    if begun:
        return GenerationFailed(f"{text} while it generated")
    return Unavailable(f"{text}; ask again", retry_after_s=RETRY_AFTER_MIN_S)


def _hardness(error: Refusal) -> tuple[int, float]:
    wait_s = math.inf if error.retry_after_s is None else error.retry_after_s
    return error.status, wait_s  # 429 before 503
