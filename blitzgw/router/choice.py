"""Pick an instance, or a refusal. Pure: what is known comes in as arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

from blitzgw.core.ports import InstancePort
from blitzgw.errors import Overloaded, Unavailable


def rank(instances: Sequence[InstancePort]) -> list[InstancePort]:
    """Return instances, the best first: the one with the fewest tokens before a new request.

    Equal ones stand in the order of their ids, so that the same state gives the same answer.
    """
    return sorted(instances, key=lambda port: (port.queued_tokens(), port.instance))


def kinder(
    known: Overloaded | Unavailable | None, other: Overloaded | Unavailable
) -> Overloaded | Unavailable:
    """Return the refusal to pass on: that capacity exists beats that none does, then the sooner."""
    return other if known is None else min(known, other, key=_hardness)


def _hardness(error: Overloaded | Unavailable) -> tuple[int, float]:
    wait_s = math.inf if error.retry_after_s is None else error.retry_after_s
    return error.status, wait_s  # 429 before 503
