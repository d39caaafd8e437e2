"""What membership is told, and what it answers with. Past tense in, imperative out.

Members are named by boot id, addresses are (host, port) as peers reach them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blitzgw.core.rumours import Packet, Rumour, SyncAnswer, SyncOffer, SyncRest, Update

Address = tuple[str, int]


# Events.


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The moment that `Membership.deadline()` named has come, or a later one."""


@dataclass(frozen=True, slots=True)
class SeedsFound:
    """Addresses where members may be: from configuration, names already resolved."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PacketArrived:
    """An authentic datagram of a process with that boot id, from that address."""

    boot: str
    address: Address
    packet: Packet


@dataclass(frozen=True, slots=True)
class SyncOffered:
    """A peer has begun anti-entropy; answered with one `AnswerSync` of the same `exchange`."""

    exchange: int
    offer: SyncOffer


@dataclass(frozen=True, slots=True)
class SyncAnswered:
    """A peer has answered the exchange that `StartSync` began; answered with one `FinishSync`."""

    exchange: int
    boot: str
    answer: SyncAnswer


@dataclass(frozen=True, slots=True)
class SyncFinished:
    """The initiator of an exchange has sent what was lacking here."""

    exchange: int
    rest: SyncRest


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """An exchange begun by `StartSync` did not work out."""

    exchange: int
    address: Address


@dataclass(frozen=True, slots=True)
class StatePublished:
    """The state of this node has changed: new values by key, None for what is gone."""

    entries: Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class LinkBroke:
    """The peer link to a member has broken: look after it at once."""

    boot: str


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The node is going: tell the others, then `Departed`."""


Event = (
    TimePassed
    | SeedsFound
    | PacketArrived
    | SyncOffered
    | SyncAnswered
    | SyncFinished
    | SyncFailed
    | StatePublished
    | LinkBroke
    | LeaveRequested
)


# Effects.


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Send a datagram to the process with that boot id at that address."""

    boot: str
    address: Address
    packet: Packet


@dataclass(frozen=True, slots=True)
class StartSync:
    """Connect and exchange everything; tell `SyncAnswered` or `SyncFailed` of it."""

    exchange: int
    address: Address
    offer: SyncOffer


@dataclass(frozen=True, slots=True)
class AnswerSync:
    """Send the second message of an exchange that a peer has begun."""

    exchange: int
    answer: SyncAnswer


@dataclass(frozen=True, slots=True)
class FinishSync:
    """Send the third message of an exchange that was begun here, and end it."""

    exchange: int
    rest: SyncRest


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Tell the node: a member is new, or is believed to be in another status, address or name."""

    member: Rumour


@dataclass(frozen=True, slots=True)
class MemberForgotten:
    """Tell the node: nothing is known of a member any more."""

    boot: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Tell the node: entries of another member's state are new or gone."""

    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Departed:
    """Tell the node: the others have been told that it leaves."""


Effect = (
    SendPacket
    | StartSync
    | AnswerSync
    | FinishSync
    | MemberChanged
    | MemberForgotten
    | StateChanged
    | Departed
)
