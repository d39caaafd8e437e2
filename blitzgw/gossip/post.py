"""Where packets are made: each carries the sender's digest and as much news as fits."""

from __future__ import annotations

from blitzgw.core.rumours import Digest, Packet, PacketKind, Rumour, Update
from blitzgw.gossip.events import Address, Effect, SendPacket
from blitzgw.gossip.knobs import Knobs, retransmissions
from blitzgw.gossip.members import CENSUS_MAX, Member, Members
from blitzgw.gossip.rumourmill import Load, Part, RumourMill, encoded_bytes
from blitzgw.gossip.statebook import StateBook
from blitzgw.gossip.tally import Tally
from blitzgw.wire import dump

ARRAY_HEADERS_BYTES = 8
"""Two arrays of more than 15 parts need up to 4 bytes more each than empty ones."""

WIRE_INT_MAX = (1 << 64) - 1
"""The largest number that the codec carries, and the longest when encoded."""

ANNOUNCEMENT = ("", "")
"""The key of what makes packets go out that carry nothing but the digest."""


class Post:
    """Collects effects; `out` holds those of the present event.

    Rumours go first, so that no amount of state keeps the news of a death waiting.
    """

    def __init__(self, knobs: Knobs, members: Members, states: StateBook, tally: Tally) -> None:
        self.out: list[Effect] = []
        self.rumours = RumourMill()
        self.updates = RumourMill()
        self._knobs = knobs
        self._members = members
        self._states = states
        self._tally = tally
        most = Digest(members.me.boot, WIRE_INT_MAX, WIRE_INT_MAX)
        bare = Packet(PacketKind.PING_REQUEST, WIRE_INT_MAX, most, "", "", 65535, census=CENSUS_MAX)
        self._room_bytes = knobs.packet_bytes - len(dump(bare)) - ARRAY_HEADERS_BYTES

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.rumours and not self.updates

    def tell(self, rumour: Rumour) -> None:
        """Pass a belief on from now on; a suspicion stands beside those of other accusers."""
        if self._members.n_others:
            self.rumours.put((rumour.boot, rumour.accuser), Part(rumour))

    def tell_update(self, update: Update) -> None:
        """Pass an entry on; one that no packet can carry is only announced, and travels by sync."""
        if not self._members.n_others:
            return
        part = Part(update)
        if part.size_bytes <= self._room_bytes:
            self.updates.put((update.boot, update.key), part)
        elif update.boot == self._members.me.boot:
            self.updates.drop((update.boot, update.key))
            self.updates.put(ANNOUNCEMENT, Part(None))

    def hush(self, boot: str, accusers: set[str]) -> None:
        """Pass on no more what those accusers say of a member."""
        for accuser in accusers:
            self.rumours.drop((boot, accuser))

    def send(
        self,
        kind: PacketKind,
        seq: int,
        boot: str,
        address: Address,
        target: tuple[str, str, int] = ("", "", 0),
        about: Rumour | None = None,
    ) -> None:
        """Send one packet with what news fits; `about` goes in first."""
        name, host, port = target
        rumours: tuple[Rumour, ...] = () if about is None else (about,)
        updates: tuple[Update, ...] = ()
        if self.rumours or self.updates:
            room = self._room_bytes - len(name.encode()) - len(host.encode())
            ((told, sent),) = self._load(room, 1, about).packed
            rumours, updates = tuple(told), tuple(sent)
        digest, census = self._states.digest, self._members.census
        packet = Packet(kind, seq, digest, name, host, port, rumours, updates, census)
        self._tally.sent[kind.name] += 1
        self._tally.rumours_sent += len(rumours) + len(updates)
        self.out.append(SendPacket(boot, address, packet))

    def gossip(self, member: Member) -> None:
        """Send a member all that is to be told, in several packets if need be."""
        digest, census = self._states.digest, self._members.census
        packed = self._load(self._room_bytes, self._knobs.gossip_burst, None).packed
        for rumours, updates in packed:
            news = tuple(rumours), tuple(updates)
            packet = Packet(PacketKind.GOSSIP, 0, digest, "", "", 0, *news, census)
            self._tally.rumours_sent += len(rumours) + len(updates)
            self.out.append(SendPacket(member.boot, member.address, packet))
        self._tally.sent["GOSSIP"] += len(packed)

    def _load(self, room_bytes: int, packets: int, about: Rumour | None) -> Load:
        load = Load(room_bytes, packets)
        if about is not None:
            load.add(about, encoded_bytes(about))
        limit = retransmissions(self._members.n_others + 1)
        self.rumours.draw(load, limit)
        self.updates.draw(load, limit)
        return load
