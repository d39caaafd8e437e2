"""What a router counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace


@dataclass(slots=True)
class Counts:
    """Since the start: requests taken up, and what befell them on their way.

    `placed` counts submissions that were taken, `declined` those that came back, `refused` requests
    that nobody took, `lost` attempts that failed, `moved` those that were given away or went down
    with a node before they had begun there.
    """

    requests: int = 0
    placed: int = 0
    declined: int = 0
    refused: int = 0
    lost: int = 0
    moved: int = 0

    def copy(self) -> Counts:
        """Return the counts as they stand."""
        return replace(self)


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """Figures of a router: requests `active`, those of them `held` by model, and what it knows.

    `splits` counts, by model, requests whose prompt was computed by more than one instance;
    `migrations` those that were moved, by model and how: with their `kv`, or to `recompute` it.
    """

    active: int
    held: dict[str, int]
    instances: int
    prefixes: int
    sessions: int
    counts: Counts
    splits: Counter[str]
    migrations: Counter[tuple[str, str]]
