"""Is it me? A node that misses answers first doubts itself, and then takes more time to judge."""

from __future__ import annotations

import math

from blitzgw.gossip.knobs import Knobs


class Health:
    """Lifeguard's local health multiplier, and the grace after a stall of this process.

    The score is within [0, `health_max`]; 0 is a node without trouble. Until `grace_until_s` no
    answer is taken for missing: it may have arrived and not have been read yet.
    """

    def __init__(self, knobs: Knobs) -> None:
        self._max = knobs.health_max
        self.score = 0
        self.grace_until_s = -math.inf

    @property
    def factor(self) -> int:
        """How many times longer than usual intervals and time-outs of probes are."""
        return self.score + 1

    def worsen(self, by: int = 1) -> None:
        """Count answers that should have come, or a suspicion of this node."""
        self.score = min(self._max, self.score + by)

    def improve(self) -> None:
        """Count an answer in time."""
        self.score = max(0, self.score - 1)
