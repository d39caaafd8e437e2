"""Who is there: what is believed of each member, who lives at which address, whose turn it is."""

from __future__ import annotations

import functools
import math
import operator
import zlib
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from blitzgw.core.rumours import Digest, Rumour, Status
from blitzgw.gossip.agenda import Timer
from blitzgw.gossip.events import Address
from blitzgw.gossip.suspicion import Suspicion

MEMBERS_MAX = 4096
"""Above, a node is one of a flood of inventions; a cell of a cluster is smaller by far."""

NAME_MAX_CHARS = 255
"""Of a host name, by DNS; of a node's name it is plenty."""

BOOT_MAX_CHARS = 64
"""Boot ids are random hexadecimal; 32 digits are usual."""

NUMBER_MAX = 1 << 53
"""Of counts and seconds from peers: exact in every language, and safe to add up and send on."""

CENSUS_MAX = (1 << 32) - 1
"""Of a member's mark, and so of a census: 32 bits of its boot id's checksum."""

LIVING: frozenset[Status] = frozenset((Status.ALIVE, Status.SUSPECT))
"""The statuses of members that are believed to run."""


class Randomness(Protocol):
    """What membership needs of a `random.Random`, which is passed in."""

    def random(self) -> float:
        """Return a number within [0, 1)."""

    def randrange(self, stop: int, /) -> int:
        """Return a whole number within [0, stop)."""

    def shuffle(self, x: Any, /) -> None:
        """Put a list into random order."""


class Member:
    """One process. `since_s` is when its status last changed.

    `mark` is its part in the census. `differs` is the digest of its own state that it sent and we
    lack, and `held` what we held then, both None while there is nothing to catch up with;
    `sync_at_s` and `sync_spacing_s` say when it may be synced for that reason next. `gap` is what
    our sum lacked of its when versions were last equal, since `gap_s`; 0: nothing. `told_at_s` is
    when it was last told of its death, `turns` has a bit for each `Turns` that it is in.
    """

    __slots__ = (
        "differs",
        "gap",
        "gap_s",
        "held",
        "mark",
        "rumour",
        "since_s",
        "suspicion",
        "sync_at_s",
        "sync_spacing_s",
        "timer",
        "told_at_s",
        "turns",
    )

    def __init__(self, rumour: Rumour, now: float) -> None:
        self.rumour = rumour
        self.mark = zlib.crc32(rumour.boot.encode())
        self.since_s = now
        self.suspicion: Suspicion | None = None
        self.timer: Timer | None = None
        self.differs: Digest | None = None
        self.held: Digest | None = None
        self.gap = 0
        self.gap_s = 0.0
        self.sync_at_s = 0.0
        self.sync_spacing_s = 0.0
        self.told_at_s = -math.inf
        self.turns = 0

    @property
    def boot(self) -> str:
        """Its boot id."""
        return self.rumour.boot

    @property
    def address(self) -> Address:
        """Where peers reach it."""
        return self.rumour.host, self.rumour.port

    @property
    def living(self) -> bool:
        """Whether it is believed to run."""
        return self.rumour.status in LIVING


class Turns:
    """Goes round the members of certain statuses in a random order, a new one in each round.

    Who does not qualify any more is taken out when its turn comes: O(1) for each member. `mark` is
    the bit of `Member.turns` that says who is in: each of the thousands of sets would cost more.
    """

    def __init__(self, mark: int, statuses: Collection[Status], rng: Randomness) -> None:
        self._mark = mark
        self._statuses = statuses
        self._rng = rng
        self._list: list[Member] = []
        self._next = 0

    def add(self, member: Member) -> None:
        """Give a member a turn at a random place of the round; nothing if it has one."""
        if member.turns & self._mark:
            return
        member.turns |= self._mark
        place = int(self._rng.random() * (len(self._list) + 1))
        self._list.insert(place, member)
        self._next += place < self._next

    def next(self) -> Member | None:
        """Return whose turn it is; None if nobody qualifies."""
        members = self._list
        while members:
            if self._next >= len(members):
                self._rng.shuffle(members)
                self._next = 0
            member = members[self._next]
            if member.rumour.status in self._statuses:
                self._next += 1
                return member
            members[self._next] = members[-1]
            members.pop()
            member.turns &= ~self._mark
        return None

    def several(self, count: int, but: Member | None = None) -> list[Member]:
        """Return the next `count` different members except one; fewer where there are not so many.

        One that comes up twice, because a round ended, loses its second turn.
        """
        chosen: list[Member] = []
        for _ in range(2 * count + 1):
            if len(chosen) == count:
                break
            member = self.next()
            if member is None:
                break
            if member is not but and member not in chosen:
                chosen.append(member)
        return chosen

    def check_integrity(self, members: Sequence[Member]) -> None:
        """Raise AssertionError unless each of `members` that qualifies has exactly one turn."""
        listed = set(self._list)
        assert len(self._list) == len(listed)
        assert all(member.turns & self._mark for member in listed)
        assert 0 <= self._next <= len(self._list)
        for member in members:
            assert (member in listed) == bool(member.turns & self._mark)
            assert member in listed or member.rumour.status not in self._statuses


class Members:
    """All members by boot id, this node among them, and the living ones by address."""

    def __init__(self, me: Rumour, rng: Randomness) -> None:
        self.me = Member(me, 0.0)
        self.by_boot: dict[str, Member] = {me.boot: self.me}
        self.at: dict[Address, Member] = {self.me.address: self.me}
        self.counts = [0] * len(Status)
        self.counts[me.status] = 1
        self.census = self.me.mark if self.me.living else 0
        """The marks of all living members, by exclusive or."""
        self.to_probe = Turns(1, LIVING, rng)
        self.to_tell = Turns(2, LIVING, rng)
        self.to_retry = Turns(4, (Status.DEAD,), rng)

    @property
    def n_living(self) -> int:
        """How many are believed to run, this node among them."""
        return self.counts[Status.ALIVE] + self.counts[Status.SUSPECT]

    @property
    def n_others(self) -> int:
        """How many others are believed to run."""
        return self.n_living - self.me.living

    @property
    def n_dead(self) -> int:
        """How many have died and are not yet forgotten."""
        return self.counts[Status.DEAD]

    def rumours(self) -> tuple[Rumour, ...]:
        """Return what is believed of everybody, this node first."""
        return tuple(member.rumour for member in self.by_boot.values())

    def get(self, boot: str) -> Member | None:
        """Return a member; None for a stranger."""
        return self.by_boot.get(boot)

    def add(self, rumour: Rumour, now: float) -> Member:
        """Take in a member that was not known."""
        member = self.by_boot[rumour.boot] = Member(rumour, now)
        self.counts[rumour.status] += 1
        if member.living:
            self.census ^= member.mark
        self._place(member)
        return member

    def believe(self, member: Member, rumour: Rumour, now: float) -> None:
        """Believe something else of a member from now on."""
        old, member.rumour = member.rumour, rumour
        if self.at.get((old.host, old.port)) is member:
            del self.at[old.host, old.port]
        if old.status != rumour.status:
            self.counts[old.status] -= 1
            self.counts[rumour.status] += 1
            member.since_s = now
            if (old.status in LIVING) != member.living:
                self.census ^= member.mark
        self._place(member)

    def forget(self, member: Member) -> None:
        """Know nothing of a member any more that does not live."""
        del self.by_boot[member.boot]
        self.counts[member.rumour.status] -= 1
        member.rumour = member.rumour._replace(status=Status.LEFT)  # no turn of any kind is left

    def _place(self, member: Member) -> None:
        if member.living:
            self.at[member.address] = member
        if member is self.me:
            return
        if member.living:
            self.to_probe.add(member)
            self.to_tell.add(member)
        elif member.rumour.status is Status.DEAD:
            self.to_retry.add(member)

    def check_integrity(self) -> None:
        """Raise AssertionError if counts, addresses or turns contradict the members."""
        everybody = list(self.by_boot.values())
        for status in Status:
            assert self.counts[status] == sum(m.rumour.status is status for m in everybody)
        for boot, member in self.by_boot.items():
            assert member.boot == boot
            assert not member.living or self.at[member.address] is member
            suspected = member.rumour.status is Status.SUSPECT
            assert (member.suspicion is not None) == suspected
        assert len(self.at) == self.n_living
        marks = [member.mark for member in everybody if member.living]
        assert self.census == functools.reduce(operator.xor, marks, 0)
        others = [member for member in everybody if member is not self.me]
        for turns in (self.to_probe, self.to_tell, self.to_retry):
            turns.check_integrity(others)


def is_sound(rumour: Rumour) -> bool:
    """Whether a claim is one that a member can make: its fields within their limits."""
    return (
        0 < len(rumour.boot) <= BOOT_MAX_CHARS
        and len(rumour.name) <= NAME_MAX_CHARS
        and is_address(rumour.host, rumour.port)
        and 0 <= rumour.started_s <= NUMBER_MAX
        and rumour.incarnation >= 0
        and len(rumour.accuser) <= BOOT_MAX_CHARS
    )


def is_address(host: str, port: int) -> bool:
    """Whether something can be sent there."""
    return 0 < len(host) <= NAME_MAX_CHARS and 0 < port <= 65535
