"""What is remembered of sequences that move between two complete instances.

`Departure` is the giving instance's record of one, `Arrival` the taking one's. At both ends its
course is held back while it belongs to nobody who may compute it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from blitzgw.core.live import pairing_of
from blitzgw.core.request import GenerationRequest
from blitzgw.scheduler.live.records import Passage
from blitzgw.scheduler.sequence import Sequence

MIN_LEFT = 4
"""Tokens that a sequence has left at least: others end before they could be anywhere else."""


class Stage(Enum):
    """How far a sequence that leaves has come."""

    ASKED = auto()
    COPYING = auto()
    STOPPED = auto()
    LAST = auto()
    GONE = auto()


# asked → copying (it decodes on) → stopped (samples in flight are awaited) → last (it is the other
# one's; the rest of its KV is being read) → gone (nothing is held of it but the road). Before
# `last` whatever happens ends the departure, and the sequence stays.


@dataclass(slots=True, eq=False)
class Departure(Passage):
    """A sequence that leaves. KV of `[0, sent)` has gone or is going; the other end has `room`.

    From `until_s` on no answer is expected. `taken`: all of it has arrived.
    """

    side: LeavingSide = field(kw_only=True)
    stage: Stage = Stage.ASKED
    room: int = 0
    sent: int = 0
    rounds: int = 0
    until_s: float = 0.0
    taken: bool = False


@dataclass(slots=True, eq=False)
class LeavingSide:
    """A pairing at the instance that gives sequences away: `budget` more may be chosen.

    `begun` with the order to; `stay` are the requests of which it has come to nothing.
    """

    id: str
    here: str
    there: str
    begun: bool = False
    budget: int = 0
    departures: dict[str, Departure] = field(default_factory=dict)
    stay: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Arrival(Passage):
    """A sequence that comes. It has `blocks`; of each layer, KV of `[0, reach)` has arrived.

    `moved` is how much there will be, once that is known. `parked`: its ingress has submitted it,
    and it is computed anew from `until_s` on; else it is forgotten then.
    """

    side: TakingSide = field(kw_only=True)
    asked: GenerationRequest = field(kw_only=True)
    blocks: tuple[int, ...] = ()
    reach: list[int] = field(default_factory=list)
    moved: int | None = None
    parked: bool = False
    told: bool = False
    """Whether the other end knows that everything is here."""
    until_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether all of its KV has arrived."""
        return self.moved is not None and min(self.reach) >= self.moved


@dataclass(slots=True, eq=False)
class TakingSide:
    """A road to an instance that takes sequences in: that of a pairing, or one back."""

    id: str
    here: str
    there: str
    tickets: dict[int, Arrival] = field(default_factory=dict)

    @property
    def pairing(self) -> str:
        """The pairing by which its other end is spoken to."""
        return pairing_of(self.id)

    @property
    def is_back(self) -> bool:
        """Whether what comes was served here before, by a pipeline."""
        return self.id != self.pairing


def left(seq: Sequence) -> int:
    """Return how many tokens a sequence may still have."""
    return seq.limit - len(seq.tokens)


def may_leave(side: LeavingSide, seq: Sequence) -> bool:
    """Tell whether a sequence that decodes can be given away by a pairing."""
    return (
        seq.role is None
        and left(seq) - seq.samples_in_flight >= MIN_LEFT
        and seq.id not in side.departures
        and seq.id not in side.stay
    )
