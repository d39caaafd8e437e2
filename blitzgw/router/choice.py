"""Pick an instance. Pure: what is known comes in as arguments."""

from __future__ import annotations

from collections.abc import Sequence

from blitzgw.core.ports import InstancePort


def rank(instances: Sequence[InstancePort]) -> list[InstancePort]:
    """Return instances, the best first: the one with the fewest tokens before a new request.

    Equal ones stand in the order of their ids, so that the same state gives the same answer.
    """
    return sorted(instances, key=lambda port: (port.queued_tokens(), port.instance))
