"""What membership has counted: for `inspect`, metrics and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


class Tally:
    """Counters since the start. `sent` is by kind of packet, `dropped` by reason."""

    __slots__ = (
        "deaths",
        "dropped",
        "refutations",
        "rumours_sent",
        "sent",
        "stalls",
        "suspicions",
        "syncs",
    )

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.rumours_sent = 0
        self.suspicions = 0
        self.refutations = 0
        self.deaths = 0
        self.stalls = 0


@dataclass(frozen=True, slots=True)
class MembershipStatistics:
    """Figures since the start, and the present members by status.

    `sent` counts packets by kind, `rumours_sent` the rumours and updates in them, `syncs` syncs by
    what came of them (started, answered, failed, offered), `dropped` what was not believed by
    reason. `refutations` are claims about this node that it contradicted, `suspicions` and
    `deaths` what came to be believed here of others. `stalls` counts late wake-ups of this
    process, `health` is 0 for a node without trouble.
    """

    members: Mapping[str, int]
    sent: Mapping[str, int]
    rumours_sent: int
    queued: int
    suspicions: int
    refutations: int
    deaths: int
    syncs: Mapping[str, int]
    dropped: Mapping[str, int]
    stalls: int
    health: int
    incarnation: int
