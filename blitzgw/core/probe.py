"""What nodes say to each other to measure a link, which belongs to no operation.

    asked node ── ProbeOrder ──► nodes of both ends     ProbeDone, from each end
               ── ProbeCancel ─►

`ProbeWish` and `ProbeFacts` are what an operator asks for, and is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.operation import EdgeOrder
from blitzgw.core.transfer import TrafficClass


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """Open the ends of an edge that measures what a link carries, of those that are here.

    `edge.rate_bytes_per_s` is what to send at most, 0: as fast as it goes; its blobs follow from
    `size_bytes`. After `seconds` it ends wherever it is.
    """

    edge: EdgeOrder
    size_bytes: int
    seconds: float
    lane: TrafficClass
    seed: int = field(default=0, repr=False)
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """An end of a probe is over, for a `reason` where it has failed; the rest is of `EdgeClosed`.

    `sent`: it was the sending end.
    """

    probe: str
    sent: bool
    reason: str = ""
    payload_bytes: int = 0
    seconds: float = 0.0
    yielded_s: float = 0.0
    delayed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeCancel:
    """End a probe; nobody waits for it."""

    probe: str


@dataclass(frozen=True, slots=True)
class ProbeWish:
    """What is to be measured. Workers are `node/device`; no network: the fastest they share.

    `rate_bytes_per_s` 0: as fast as it goes.
    """

    source: str
    target: str
    size_bytes: int
    seconds: float
    lane: TrafficClass = TrafficClass.WEIGHTS
    network: str | None = None
    rate_bytes_per_s: float = 0.0
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What a link has carried, by the target's clock, and what that has cost (`EdgeClosed`)."""

    network: str
    payload_bytes: int
    seconds: float
    yielded_s: float = 0.0
    delayed_s: float = 0.0


ProbeMessage = ProbeOrder | ProbeDone | ProbeCancel
