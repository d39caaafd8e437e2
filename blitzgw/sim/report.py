"""The figures of a measurement, as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of several durations in seconds, the median, the 95th percentile and the longest."""

    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What a phase cost each node on average, and the busiest one, in bytes with all headers."""

    phase: str
    duration_s: float
    bytes_per_node_s: float
    busiest_bytes_s: float
    packets_per_node_s: float
    syncs_per_node_s: float
    false_suspicions: int
    false_failures: int


@dataclass
class Report:
    """All figures. None: not achieved within the phase's limit.

    `join_s` is when all knew all, `join_999_s` when 99.9 % of all pairs did.
    `partition_noticed` is the share of the pairs across the cut that believed each other dead when
    it healed.
    """

    nodes: int
    seed: int
    seeds: int
    loss: float
    probe_interval_s: float
    join_999_s: float | None = None
    join_s: float | None = None
    publish_bytes: int = 0
    publish: Quantiles | None = None
    kills: int = 0
    kills_known: int = 0
    first_suspicion: Quantiles | None = None
    first_detection: Quantiles | None = None
    known_to_all: Quantiles | None = None
    partition_minority: int = 0
    partition_s: float | None = None
    partition_noticed: float = 0.0
    merge_s: float | None = None
    false_suspicions: int = 0
    false_failures: int = 0
    virtual_s: float = 0.0
    packets: int = 0
    bytes: int = 0
    events: int = 0
    phases: list[PhaseCost] = field(default_factory=list)


def quantiles(durations_s: Sequence[float]) -> Quantiles | None:
    """Return the quantiles of some durations (nearest rank); None of no durations."""
    if not durations_s:
        return None
    ordered = sorted(durations_s)

    def at(share: float) -> float:
        return rounded(ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)])

    return Quantiles(at(0.5), at(0.95), rounded(ordered[-1]))


def rounded(duration_s: float) -> float:
    """Return a duration in seconds to a tenth of a millisecond: the network knows no more."""
    return round(duration_s, 4)
