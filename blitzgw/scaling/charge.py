"""What an owner keeps of one model."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.scale import ScaleMode
from blitzgw.scaling.bulletin import Bulletin
from blitzgw.scaling.ceding import Asking
from blitzgw.scaling.monitor import LOAD_S, Monitor
from blitzgw.scaling.policy import PolicyState
from blitzgw.scaling.reckoning import Reckoning
from blitzgw.scaling.retrying import Retrying
from blitzgw.scaling.standing import Standing
from blitzgw.scaling.standstill import Standstill
from blitzgw.scaling.survey import ModelDefinition

OWNER_SETTLE_S = 0.3
"""From becoming owner to the first decision: nodes send their demands at once when the owner
changes, over links that may have to be opened first. Held requests do not wait for it."""

LOOK_S = 0.01
"""Between two looks at a model: hundreds of nodes may tell of it every 20 ms, and none of their
messages is worth more than this of delay."""

LOOK_INSTANCES = 32
"""A look at more takes longer in proportion, and so does the time between two looks: an owner has
other things to do."""

MAX_LOOK_S = 0.05
"""But no longer than that: so soon a queue over its bound is to be answered."""

PROGRESS_S = 0.1
"""Within which a model is looked at of which nodes tell that less is to be done: fewer instances
are a matter of patience, which is ten times that and more."""

TICK_S = 1.0
"""The longest between two looks: figures move with time, even if nobody says anything."""

COMING_TICK_S = 0.25
"""The longest while instances are coming: so often their time is told anew."""

MAX_LOAD_S = 600.0
"""What a loading is believed to take at most."""

LOAD_WEIGHT = 0.5
"""Of the last loading in what the next one is believed to take: sources and links differ."""


@dataclass(slots=True)
class Charge:
    """A model in an owner's charge, from `since_s` on; `since_unix_s` is the same in Unix time."""

    definition: ModelDefinition
    monitor: Monitor
    since_s: float
    since_unix_s: float
    settled_at: float
    state: PolicyState = field(default_factory=PolicyState)
    reckoning: Reckoning = field(default_factory=Reckoning)
    growing: Retrying = field(default_factory=Retrying)
    shrinking: Retrying = field(default_factory=Retrying)
    asking: Asking = field(default_factory=Asking)
    standstill: Standstill = field(default_factory=Standstill)
    bulletin: Bulletin = field(default_factory=Bulletin)
    mode: ScaleMode | None = None
    reason: str = ""
    """Of the last decision."""
    aim: int | None = None
    """How many were wanted at the last decision."""
    commanded: bool = False
    """Whether an operator has said something that has not been followed yet."""
    level_at: float | None = None
    """When an operator's cancelling has had its effect; nothing is decided before."""
    held_until: float = 0.0
    """A device has been let go: until then none is claimed."""
    ceded_s: float | None = None
    load_s: float = LOAD_S
    """What a loading takes, as the last ones did."""
    ready_by: float | None = None
    """When what was ordered last is expected, if nobody predicts it better."""
    serves_since_s: float | None = None
    """When the first of the instances that serve began to; None: none does."""
    look_s: float = LOOK_S
    """Between two looks, as many instances as there are."""
    looked_s: float | None = None
    viewed_s: float | None = None
    standing: Standing | None = None
    """What the model had when the view was followed last."""
    look_at: float | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.definition.name

    def look_soon(self, now: float, *, at_once: bool = False, progress: bool = False) -> None:
        """Have the model looked at: at once, or as soon as it may be looked at again.

        Of `progress` a little later.
        """
        at = now + PROGRESS_S if progress else now
        if not at_once and self.looked_s is not None:
            at = max(at, self.looked_s + self.look_s)
        self.look_at = at if self.look_at is None else min(self.look_at, at)

    def looked(self, instances: int, now: float) -> None:
        """Note a look at so many instances."""
        self.looked_s = now
        self.look_s = min(MAX_LOOK_S, LOOK_S * max(1.0, instances / LOOK_INSTANCES))

    def look_later(self, times: list[float | None], coming: bool, now: float) -> None:
        """Have the model looked at, at the first of these times that is yet to come."""
        ahead = [time for time in times if time is not None and time > now]
        ahead.append(now + (COMING_TICK_S if coming else TICK_S))
        self.look_at = max(min(ahead), now + self.look_s)

    def loaded(self, seconds: float) -> None:
        """Learn what a loading has taken."""
        seconds = min(max(0.0, seconds), MAX_LOAD_S)
        self.load_s += LOAD_WEIGHT * (seconds - self.load_s)
