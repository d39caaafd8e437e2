"""What the policy is asked about, what it remembers and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.core.record import record
from blitzgw.scaling.autoevents import Coming


@dataclass(slots=True)
class Fleet:
    """What a model has, and what it may have.

    `present` are serving and coming ones; draining and kept ones can be revived and count for
    `devices`.
    """

    serving: int = 0
    draining: int = 0
    kept: int = 0
    coming: tuple[Coming, ...] = ()
    least: int = 0
    most: int = 0
    """No more instances than that; 0: as many as devices take."""
    devices: int = 0
    """Instances that there could be besides the present ones: free devices, draining, kept."""
    load_s: float = 1.0
    """How long an instance ordered now takes until it serves, as the last ones did."""
    fixed: int | None = None
    """An operator's wish: so many, whatever the figures and the bounds; None: as is decided."""

    @property
    def present(self) -> int:
        """Instances that serve or are coming."""
        return self.serving + len(self.coming)

    @property
    def ready_s(self) -> float:
        """How long an instance ordered now takes: one to be revived takes no time."""
        return 0.0 if self.kept or self.draining else max(0.0, self.load_s)


@record(frozen=True, slots=True)
class PolicyState:
    """What the policy remembers of its last verdicts; begin with `PolicyState()`.

    `fewer_since`: since when fewer instances would do, all the time; None: they would not. `fewest`
    is how many would have done, all of that time.
    `ordered` instances are to show until `ordered_until_s`. `answering`: a queue has been answered
    and is not worked off yet. The last step down was from `shrunk_from` instances at a steady rate
    of `shrunk_rate` tokens per second; `doubt` counts those that proved wrong.
    """

    fewer_since: float | None = None
    fewest: int = 0
    ordered: int = 0
    ordered_until_s: float = -math.inf
    grown_s: float = -math.inf
    answering: bool = False
    shrunk_from: int = 0
    shrunk_s: float = -math.inf
    shrunk_rate: float = 0.0
    doubt: int = 0
    doubted_s: float = -math.inf


@dataclass(slots=True)
class Verdict:
    """How many instances are wanted, and why.

    `wanted` is within the bounds of the fleet. `needed` is what the figures ask for, whatever the
    bounds: where it is above `wanted`, devices or `max_instances` are lacking. `action` and
    `reason` are those of `core.scale.DecisionFacts`: `hold` where nothing is to be done. `basis`
    returns its `formula` and `inputs`. `again_s` is when to ask again at the latest, on the clock
    of `now`; None: when figures change.
    """

    wanted: int
    needed: int
    action: str
    reason: str
    state: PolicyState
    again_s: float | None = None
    basis: Callable[[], tuple[str, dict[str, float]]] = lambda: ("", {})

    @property
    def changes(self) -> bool:
        """Whether there is something to be done."""
        return self.action != "hold"
