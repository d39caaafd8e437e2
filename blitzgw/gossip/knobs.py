"""What membership's pace depends on: one interval that users set, and formulas for all else.

The figures are those that SWIM and Lifeguard were published with, and that their implementations
have settled on; intervals are a quarter of theirs, because a gateway wants to know sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PROBE_INTERVAL_S = 0.25
"""A death is known within about six intervals; a probe costs two small datagrams."""

RETRANSMIT_MULT = 4
"""Factor of `retransmissions`; more loses fewer rumours and sends more bytes."""

SUSPICION_MULT = 4
"""Factor of `suspicion_min_s`: how many probes' time a suspect has at least to speak up."""

SUSPICION_MAX_FACTOR = 6
"""A suspicion that nobody confirms lasts this many times as long as a confirmed one."""

SYNC_SCALE_MEMBERS = 32
"""Up to so many members everybody syncs at the full rate; each doubling adds one interval."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The pace of one node. Made by `Knobs.of`; tests and simulations may replace single ones.

    probe_interval_s   Time between two probes. Shorter finds deaths sooner, sends more packets.
    ping_timeout_s     ½ interval. When helpers are asked; above any round trip. Shorter asks more
                       often in vain, longer leaves helpers less time.
    nack_timeout_s     0.8 ping time-outs. When a helper says that it got no answer either; its
                       message must arrive before the probe's end.
    helpers            3 are asked to ping a silent member. More hide bad paths better and cost
                       packets where a member is really dead.
    gossip_interval_s  0.4 intervals. Time between two rounds of gossip while there is news.
                       Shorter spreads faster and with less in each packet.
    gossip_fanout      3 members hear each round. More spreads faster and sends more twice.
    gossip_burst       8 packets to each of them at most: with 1,400 bytes 11 KB. More spreads
                       large states faster and may overrun a receiver's socket buffer.
    packet_bytes       1,400 bytes of one datagram, unsealed: below the smallest usual MTU with
                       the seal and the headers. Larger ones are cut in pieces by the network, and
                       each piece can be lost.
    health_max         8. The probes of a node in trouble take up to 1 + 8 times as long. More
                       accuses less wrongly and finds less.
    confirmations      3 independent accusers shorten a suspicion to its minimum. Fewer decide
                       sooner and more often wrongly.
    stall_s            ¼ interval. A timer that is served later than that tells of a stall of this
                       process: nobody is accused then before what has arrived has been read.
    sync_interval_s    40 intervals between two syncs with random members (see `sync_every_s`).
                       Shorter repairs lost rumours sooner; a sync costs O(members).
    sync_patience_s    2 gossip intervals that a member's state may differ before it is synced:
                       rumours should have brought it by then.
    sync_spacing_s     4 intervals between two such syncs with one member, doubling while they do
                       not help, up to `sync_interval_s`.
    seed_retry_s       2 intervals until a seed that is not a member is tried again, doubling up
                       to `sync_interval_s`. Shorter joins sooner after a common start.
    dead_retry_s       20 intervals between two tries to reach one of the dead: how long a healed
                       partition goes unnoticed. Shorter heals sooner, connects more in vain.
    forget_dead_s      1,440 intervals that the dead are remembered and retried. Must outlast
                       every stale claim that they live; longer costs memory.
    forget_left_s      240 intervals for those that left by themselves: a few syncs.
    """

    probe_interval_s: float
    ping_timeout_s: float
    nack_timeout_s: float
    helpers: int
    gossip_interval_s: float
    gossip_fanout: int
    gossip_burst: int
    packet_bytes: int
    health_max: int
    confirmations: int
    stall_s: float
    sync_interval_s: float
    sync_patience_s: float
    sync_spacing_s: float
    seed_retry_s: float
    dead_retry_s: float
    forget_dead_s: float
    forget_left_s: float

    @classmethod
    def of(cls, probe_interval_s: float = PROBE_INTERVAL_S) -> Knobs:
        """Return all knobs for a probe interval in seconds; raises ValueError unless above 0."""
        if not 0 < probe_interval_s < math.inf:
            raise ValueError(f"a probe interval is a number of seconds, not {probe_interval_s}")
        return cls(
            probe_interval_s=probe_interval_s,
            ping_timeout_s=0.5 * probe_interval_s,
            nack_timeout_s=0.4 * probe_interval_s,
            helpers=3,
            gossip_interval_s=0.4 * probe_interval_s,
            gossip_fanout=3,
            gossip_burst=8,
            packet_bytes=1400,
            health_max=8,
            confirmations=3,
            stall_s=0.25 * probe_interval_s,
            sync_interval_s=40 * probe_interval_s,
            sync_patience_s=0.8 * probe_interval_s,
            sync_spacing_s=4 * probe_interval_s,
            seed_retry_s=2 * probe_interval_s,
            dead_retry_s=20 * probe_interval_s,
            forget_dead_s=1440 * probe_interval_s,
            forget_left_s=240 * probe_interval_s,
        )

    def suspicion_min_s(self, n: int) -> float:
        """Return how long a well-confirmed suspicion lasts among n living members, in seconds.

        4·max(1, log10 n) probe intervals: long enough for the accusation to reach the suspect and
        for its answer to come back. Shorter finds deaths sooner and buries the slow alive.
        """
        return SUSPICION_MULT * max(1.0, math.log10(max(1, n))) * self.probe_interval_s

    def suspicion_max_s(self, n: int) -> float:
        """Return how long a suspicion lasts that nobody else confirms: 6 times the minimum."""
        return SUSPICION_MAX_FACTOR * self.suspicion_min_s(n)

    def sync_every_s(self, n: int) -> float:
        """Return the time between two syncs among n living members, in seconds.

        max(1, log2(n / 32) + 1) sync intervals: what all of them send together grows less.
        """
        scale = math.log2(max(1, n) / SYNC_SCALE_MEMBERS) + 1
        return self.sync_interval_s * max(1.0, scale)


def retransmissions(n: int) -> int:
    """Return how often each of n living members passes a rumour on: 4·⌈log10(n + 1)⌉."""
    return RETRANSMIT_MULT * math.ceil(math.log10(n + 1))
