"""Is it there? Pings, helpers' pings, and the verdict at the end of each probe.

0          ping_timeout               probe_interval      all times local health
|---------------|------------------------|
PING            PING_REQUEST to helpers  no ACK: suspect
                |----- nack_timeout -----|   at a helper: NACK if it got no ACK by then
"""

from __future__ import annotations

from blitzgw.core.rumours import Packet, PacketKind, Status
from blitzgw.gossip.agenda import Action, Timer
from blitzgw.gossip.beliefs import Beliefs
from blitzgw.gossip.desk import Desk
from blitzgw.gossip.events import Address, PacketArrived
from blitzgw.gossip.members import BOOT_MAX_CHARS, Member, is_address

RELAYS_MAX = 256
"""Pings under way on behalf of others. A healthy cluster has a few; above, somebody floods."""

TURN_SHARE = 0.9
"""Of two members each pings so many intervals after the other one's ping, so that they take turns:
early enough for its ping to arrive before the other one's time is up."""


class Probe:
    """A member that has been pinged and not yet answered. `graced`: a stall has prolonged it."""

    __slots__ = ("graced", "helpers", "member", "n_nacks", "seq", "timer")

    def __init__(self, seq: int, member: Member) -> None:
        self.seq = seq
        self.member = member
        self.helpers: list[Member] = []
        self.n_nacks = 0
        self.graced = False
        self.timer: Timer | None = None


class Relay:
    """A ping on behalf of another member, who knows it as `seq`."""

    __slots__ = ("boot", "seq", "target", "timer", "to")

    def __init__(self, boot: str, to: Address, seq: int, target: str) -> None:
        self.boot = boot
        self.to = to
        self.seq = seq
        self.target = target
        self.timer: Timer | None = None


class Prober:
    """Probes members in turn, and out of turn where asked to; answers others' pings."""

    def __init__(self, desk: Desk, beliefs: Beliefs) -> None:
        self._knobs = desk.knobs
        self._rng = desk.rng
        self._agenda = desk.agenda
        self._members = desk.members
        self._beliefs = beliefs
        self._post = desk.post
        self._health = desk.health
        self._tally = desk.tally
        self._probes: dict[int, Probe] = {}
        self._probed: dict[Member, Probe] = {}
        self._relays: dict[int, Relay] = {}
        self._seq = self._rng.randrange(1 << 32)
        self._timer: Timer | None = None

    def wake(self, now: float) -> None:
        """Begin to probe, at a random moment of the first interval; nothing if it goes on."""
        if self._timer is None:
            when = now + self._rng.random() * self._knobs.probe_interval_s
            self._timer = self._agenda.at(when, self._tick)

    def probe(self, member: Member, now: float) -> None:
        """Ping a member; it is suspected if no answer comes. Nothing if that is under way."""
        if member in self._probed or not member.living:
            return
        probe = Probe(self._next_seq(), member)
        self._probes[probe.seq] = self._probed[member] = probe
        self._ping(probe.seq, member)
        when = now + self._knobs.ping_timeout_s * self._health.factor
        probe.timer = self._agenda.at(when, self._ask_helpers, probe)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _ping(self, seq: int, member: Member) -> None:
        """Send a ping; a suspect hears of what it is accused first."""
        suspected = member.rumour.status is Status.SUSPECT
        about = member.rumour if suspected else None
        target = (member.boot, "", 0)
        self._post.send(PacketKind.PING, seq, member.boot, member.address, target, about)

    # Time.

    def _tick(self, _subject: None, now: float) -> None:
        self._timer = None
        member = self._members.to_probe.next()
        if member is None or not self._members.me.living:
            return  # alone, until who joins wakes it; or leaving
        self.probe(member, now)
        when = now + self._knobs.probe_interval_s * self._health.factor
        self._timer = self._agenda.at(when, self._tick)

    def _ask_helpers(self, probe: Probe, now: float) -> None:
        if self._postpone(probe, now, self._ask_helpers):
            return
        member = probe.member
        host, port = member.address
        probe.helpers = self._members.to_tell.several(self._knobs.helpers, but=member)
        for helper in probe.helpers:
            self._post.send(
                PacketKind.PING_REQUEST,
                probe.seq,
                helper.boot,
                helper.address,
                (member.boot, host, port),
            )
        rest_s = self._knobs.probe_interval_s - self._knobs.ping_timeout_s
        when = now + rest_s * self._health.factor
        probe.timer = self._agenda.at(when, self._judge, probe)

    def _judge(self, probe: Probe, now: float) -> None:
        """End a probe without an answer. Silent helpers say that the trouble may be here."""
        if self._postpone(probe, now, self._judge):
            return
        self._end(probe)
        silent = len(probe.helpers) - probe.n_nacks
        self._health.worsen(silent if probe.helpers else 1)
        if probe.member.living:
            self._beliefs.suspect(probe.member, now)
            self._accuse(probe.member)

    def _accuse(self, member: Member) -> None:
        """Tell a suspect at once, for it may answer at once."""
        if member.rumour.status is Status.SUSPECT:
            self._post.send(PacketKind.GOSSIP, 0, member.boot, member.address, about=member.rumour)

    def _postpone(self, probe: Probe, now: float, action: Action) -> bool:
        """Whether a stall of this process puts a probe's time-out off; once for each probe."""
        grace_until = self._health.grace_until_s
        if now >= grace_until or probe.graced:
            return False
        probe.graced = True
        probe.timer = self._agenda.at(grace_until, action, probe)
        return True

    def _end(self, probe: Probe) -> None:
        if probe.timer is not None:
            probe.timer.cancel()
        del self._probes[probe.seq]
        del self._probed[probe.member]

    def _give_up(self, key: int, _now: float) -> None:
        """Tell who asked that the target has not answered here either."""
        relay = self._relays.pop(key)
        target = (relay.target, "", 0)
        self._post.send(PacketKind.NACK, relay.seq, relay.boot, relay.to, target)

    # Packets.

    def on_ping(self, event: PacketArrived, sender: Member | None, now: float) -> None:
        """Answer a ping that is for this process and not for one that lived here before."""
        me = self._members.me
        packet = event.packet
        if packet.target not in {me.boot, ""}:
            self._tally.dropped["ping_for_another"] += 1
            self._post.send(PacketKind.GOSSIP, 0, event.boot, event.address, about=me.rumour)
            return
        about = None if sender is None or sender.living else sender.rumour
        self._post.send(PacketKind.ACK, packet.seq, event.boot, event.address, about=about)
        if sender is not None and self._members.n_others == 1:
            self._take_turns(sender, packet, now)

    def _take_turns(self, other: Member, packet: Packet, now: float) -> None:
        """Take a ping of the only other member for the answer to this node's next one.

        It has come here, and it would carry an accusation had the last answer not come back: whom
        nobody answers accuses before it pings again. This node's turn is next, a little earlier
        than the other one would ping again, and no later after a sign of life than without this.
        Who doubts itself pings rarely, would always be put off, and only answers end the doubt.
        """
        boot = self._members.me.boot
        doubted = other.rumour.status is not Status.ALIVE or other in self._probed
        doubted = doubted or self._health.score > 0
        if self._timer is None or doubted or any(claim.boot == boot for claim in packet.rumours):
            return
        self._timer.cancel()
        pause_s = TURN_SHARE * self._knobs.probe_interval_s
        self._timer = self._agenda.at(now + pause_s, self._tick)

    def on_ack(self, event: PacketArrived, _sender: Member | None, _now: float) -> None:
        """End the probe that this answers, or pass the answer on to who asked for it."""
        packet = event.packet
        probe = self._probes.get(packet.seq)
        if probe is not None:
            if self._is_answer(probe, event.boot, packet):
                self._end(probe)
                self._health.improve()
            return
        relay = self._relays.get(packet.seq)
        if relay is not None and relay.target == event.boot:
            del self._relays[packet.seq]
            if relay.timer is not None:
                relay.timer.cancel()
            target = (relay.target, "", 0)
            self._post.send(PacketKind.ACK, relay.seq, relay.boot, relay.to, target)

    def _is_answer(self, probe: Probe, boot: str, packet: Packet) -> bool:
        """Whether an ACK comes from the probe's member or, naming it, from a helper."""
        if boot == probe.member.boot:
            return True
        return packet.target == probe.member.boot and any(h.boot == boot for h in probe.helpers)

    def on_nack(self, event: PacketArrived, _sender: Member | None, _now: float) -> None:
        """Count a helper that answers, so that what is silent is the target and not the network."""
        probe = self._probes.get(event.packet.seq)
        if probe is not None and any(h.boot == event.boot for h in probe.helpers):
            probe.n_nacks = min(probe.n_nacks + 1, len(probe.helpers))

    def on_ping_request(self, event: PacketArrived, sender: Member | None, now: float) -> None:
        """Ping a third member for one that got no answer from it."""
        packet = event.packet
        if packet.target == self._members.me.boot:
            target = (packet.target, "", 0)
            self._post.send(PacketKind.ACK, packet.seq, event.boot, event.address, target)
            return
        member = self._members.get(packet.target)
        address = (packet.target_host, packet.target_port) if member is None else member.address
        known = sender is not None and len(packet.target) <= BOOT_MAX_CHARS
        if not known or len(self._relays) >= RELAYS_MAX or not is_address(*address):
            self._tally.dropped["ping_request"] += 1
            return
        relay = Relay(event.boot, event.address, packet.seq, packet.target)
        key = self._next_seq()
        self._relays[key] = relay
        suspected = member is not None and member.rumour.status is Status.SUSPECT
        about = member.rumour if member is not None and suspected else None
        target = (packet.target, "", 0)
        self._post.send(PacketKind.PING, key, packet.target, address, target, about)
        relay.timer = self._agenda.at(now + self._knobs.nack_timeout_s, self._give_up, key)

    def check_integrity(self) -> None:
        """Raise AssertionError if probes and those probed contradict each other."""
        assert len(self._probes) == len(self._probed)
        for seq, probe in self._probes.items():
            assert probe.seq == seq
            assert self._probed[probe.member] is probe
            assert probe.timer is not None
            assert probe.timer.action is not None
        assert len(self._relays) <= RELAYS_MAX
