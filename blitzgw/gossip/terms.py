"""What gossip's thread is given, what it runs, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blitzgw.gossip.events import Address, Effect, Event


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Where gossip listens, how peers reach it, and where it looks for them.

    `host` is the IP address to bind, `port` 0 any free one. `advertise` is an IP address; empty,
    the bound one; its port 0: the bound one. `join` are seeds as in the configuration; one without
    a port has the bound one. `dilation` is the clock's.
    """

    boot: str
    host: str = "127.0.0.1"
    port: int = 0
    advertise: Address = ("", 0)
    join: tuple[str, ...] = ()
    dilation: float = 1.0


class Decider(Protocol):
    """`Membership`, as far as it is needed here."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take an event, return what is to be done."""

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due; None or infinity: not before something else happens."""

    def statistics(self) -> Any:
        """Return a frozen picture of its figures."""


@dataclass(frozen=True, slots=True)
class GossipStatistics:
    """Counts since the start. `rejected` is by `Rejection`; `membership` about a second old.

    `connections_refused` are handshakes that failed or were crowded out, `faults` exceptions while
    something that a peer sent was handled: each of those is a defect.
    """

    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    packets_unsent: int
    rejected: dict[str, int]
    connections_accepted: int
    connections_refused: int
    syncs_done: int
    syncs_failed: int
    faults: int
    membership: Any
