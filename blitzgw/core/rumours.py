"""What nodes whisper to each other: the packets of gossip and the exchanges of anti-entropy.

Tuples rather than dataclasses, because a datagram is small and tuples travel without field names.
A node is identified by its boot id, which is new at every start; its name is for people.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Status(IntEnum):
    """What is believed of a member. Of equal incarnations the higher status prevails."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Rumour(NamedTuple):
    """A claim about a member: its status at an incarnation, which only the member itself raises.

    `started_s` is the member's start in seconds of the Unix epoch; `accuser` the boot id of who
    claims that it is suspect or dead, empty otherwise.
    """

    boot: str
    name: str
    host: str
    port: int
    started_s: int
    incarnation: int
    status: Status
    accuser: str = ""


class Update(NamedTuple):
    """One entry of a node's published state. `value` None: the entry is gone.

    `version` counts all changes of that node's state, so the higher one of a key is the newer.
    """

    boot: str
    key: str
    version: int
    value: bytes | None


class Digest(NamedTuple):
    """A node's state in brief: the highest version held, and the sum of all entries' versions.

    Two holders with equal digests hold the same entries: a key's version changes with its value.
    """

    boot: str
    version: int
    total: int


class PacketKind(IntEnum):
    """What a datagram is for."""

    PING = 0
    """Are you there? Answered with an ACK of the same `seq`."""
    ACK = 1
    NACK = 2
    """From a helper: `target` has not answered me in time, but I am here."""
    PING_REQUEST = 3
    """Ping `target` for me, and pass its answer on."""
    GOSSIP = 4
    """Nothing but rumours and updates."""


class Packet(NamedTuple):
    """One datagram. `digest` is of the sender's own state; `target` a boot id where one is meant.

    `target_host` and `target_port` tell a helper where to find the target of a PING_REQUEST.
    `census` is equal for two nodes that believe the same members to live; 0: not told.
    """

    kind: PacketKind
    seq: int
    digest: Digest
    target: str = ""
    target_host: str = ""
    target_port: int = 0
    rumours: tuple[Rumour, ...] = ()
    updates: tuple[Update, ...] = ()
    census: int = 0


class SyncOffer(NamedTuple):
    """Anti-entropy, first message: all that the initiator believes, and what state it holds."""

    members: tuple[Rumour, ...]
    digests: tuple[Digest, ...]


class SyncAnswer(NamedTuple):
    """Anti-entropy, second message: the same from the other side, and what the initiator lacks."""

    members: tuple[Rumour, ...]
    digests: tuple[Digest, ...]
    updates: tuple[Update, ...]


class SyncRest(NamedTuple):
    """Anti-entropy, third message: what the other side lacks."""

    updates: tuple[Update, ...]
