"""Who is there and what they publish: SWIM with Lifeguard's refinements. A pure decider.

Members probe each other in turn (probing.py), believe or contradict what they hear (beliefs.py),
pass news on with every packet (post.py, rumourmill.py), and exchange everything now and then, for
rumours leave somebody out (syncing.py, statebook.py). A node alone is a cluster of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from blitzgw.core.rumours import PacketKind, Rumour, Status, SyncAnswer, SyncRest, Update
from blitzgw.gossip.agenda import Agenda, Timer
from blitzgw.gossip.beliefs import Beliefs
from blitzgw.gossip.desk import Desk
from blitzgw.gossip.events import (
    AnswerSync,
    Departed,
    Effect,
    Event,
    FinishSync,
    LeaveRequested,
    LinkBroke,
    PacketArrived,
    SeedsFound,
    StatePublished,
    SyncAnswered,
    SyncFailed,
    SyncFinished,
    SyncOffered,
    TimePassed,
)
from blitzgw.gossip.health import Health
from blitzgw.gossip.intake import Intake
from blitzgw.gossip.knobs import Knobs, retransmissions
from blitzgw.gossip.members import Member, Members, Randomness
from blitzgw.gossip.post import Post
from blitzgw.gossip.probing import Prober
from blitzgw.gossip.statebook import StateBook
from blitzgw.gossip.syncing import Syncs
from blitzgw.gossip.tally import MembershipStatistics, Tally

_Handler = Callable[[Any, float], None]


class Membership:
    """`handle` takes an event and returns what to do, in order.

    `me` is this process as others are to know it: ALIVE, at an address that peers reach, with a
    boot id that no other process has had.
    """

    def __init__(self, me: Rumour, knobs: Knobs, rng: Randomness) -> None:
        self._knobs = knobs
        me = me._replace(status=Status.ALIVE, accuser="")
        self._tally = tally = Tally()
        self._health = health = Health(knobs)
        self._agenda = agenda = Agenda()
        self._members = members = Members(me, rng)
        self._states = states = StateBook(me.boot)
        self._post = post = Post(knobs, members, states, tally)
        desk = Desk(knobs, rng, agenda, members, states, post, health, tally)
        self._beliefs = Beliefs(desk)
        self._intake = Intake(desk)
        self._prober = Prober(desk, self._beliefs)
        self._syncs = Syncs(desk, self._beliefs, self._intake)
        self._gossip: Timer | None = None
        self._gossip_at_s = -math.inf
        self._introduced = False
        self._departed = False
        self._handlers: dict[type, _Handler] = {
            TimePassed: self._on_time,
            PacketArrived: self._on_packet,
            SeedsFound: self._syncs.on_seeds,
            SyncOffered: self._syncs.on_offered,
            SyncAnswered: self._syncs.on_answered,
            SyncFinished: self._syncs.on_finished,
            SyncFailed: self._syncs.on_failed,
            StatePublished: self._on_published,
            LinkBroke: self._on_link_broke,
            LeaveRequested: self._on_leave,
        }
        self._packets: dict[PacketKind, Callable[[PacketArrived, Member | None, float], None]] = {
            PacketKind.PING: self._prober.on_ping,
            PacketKind.ACK: self._prober.on_ack,
            PacketKind.NACK: self._prober.on_nack,
            PacketKind.PING_REQUEST: self._prober.on_ping_request,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event at time `now` in seconds; return what to do.

        Raises ValueError, and changes nothing, for a `StatePublished` beyond the limits of
        statebook.py. After `Departed` only syncs are answered, with nothing.
        """
        if self._departed:
            return _farewell(event)
        self._post.out = []
        self._handlers[type(event)](event, now)
        self._arm(now)
        return self._post.out

    def deadline(self) -> float:
        """Return when `TimePassed` is due, in seconds; infinity if nothing is to be done."""
        return self._agenda.deadline()

    def members(self) -> tuple[Rumour, ...]:
        """Return what is believed of everybody, this node first."""
        return self._members.rumours()

    def entries(self, boot: str) -> Mapping[str, Update]:
        """Return what is held of a node's state by key; value None stands for what is gone."""
        state = self._states.states.get(boot)
        return {} if state is None else state.entries

    def statistics(self) -> MembershipStatistics:
        """Return the present figures."""
        tally, members = self._tally, self._members
        return MembershipStatistics(
            members={status.name: members.counts[status] for status in Status},
            sent=dict(tally.sent),
            rumours_sent=tally.rumours_sent,
            queued=len(self._post.rumours) + len(self._post.updates),
            suspicions=tally.suspicions,
            refutations=tally.refutations,
            deaths=tally.deaths,
            syncs=dict(tally.syncs),
            dropped=dict(tally.dropped),
            stalls=tally.stalls,
            health=self._health.score,
            incarnation=members.me.rumour.incarnation,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict each other; costs O(all)."""
        self._members.check_integrity()
        self._states.check_integrity()
        self._post.rumours.check_integrity()
        self._post.updates.check_integrity()
        self._prober.check_integrity()
        self._syncs.check_integrity()
        assert set(self._states.states) <= set(self._members.by_boot)
        assert 0 <= self._health.score <= self._knobs.health_max

    # Time.

    def _arm(self, now: float) -> None:
        """Keep going what others are needed for; introduce this node to the first of them."""
        if self._departed:
            return
        others = self._members.n_others
        if not others:
            self._introduced = False
        elif self._members.me.living:
            if not self._introduced:
                self._introduce()
            self._prober.wake(now)
        self._syncs.wake(now)
        if self._gossip is None and others and not self._post.idle:
            when = max(now, self._gossip_at_s + self._knobs.gossip_interval_s)
            self._gossip = self._agenda.at(when, self._on_gossip)

    def _introduce(self) -> None:
        """Tell of this node and its state: nobody could be told before."""
        self._introduced = True
        self._post.tell(self._members.me.rumour)
        for update in self._states.own.entries.values():
            self._post.tell_update(update)

    def _on_time(self, _event: TimePassed, now: float) -> None:
        if now - self._agenda.deadline() > self._knobs.stall_s:
            self._health.grace_until_s = now + self._knobs.ping_timeout_s
            self._health.worsen()
            self._tally.stalls += 1
        self._agenda.keep(now)
        self._arm(now)
        self._agenda.keep(now)  # what was learnt is told at once: the next deadline is later

    def _on_gossip(self, _subject: None, now: float) -> None:
        """Tell the next members the news; `_arm` puts down the next round while there is any."""
        self._gossip = None
        self._gossip_at_s = now
        for member in self._members.to_tell.several(self._knobs.gossip_fanout):
            if self._post.idle:
                break
            self._post.gossip(member)

    # Packets.

    def _on_packet(self, event: PacketArrived, now: float) -> None:
        packet = event.packet
        if event.boot == self._members.me.boot:
            self._tally.dropped["packet_of_mine"] += 1
            return
        for claim in packet.rumours:
            self._beliefs.hear(claim, now)
        if packet.updates:
            self._intake.take(packet.updates, synced=False)
        sender = self._members.by_boot.get(event.boot)
        if sender is None:
            self._syncs.meet(event.boot, event.address, now)
        elif sender.living:
            self._syncs.notice(sender, packet.digest, now)
            self._syncs.compare(sender, packet.census, now)
        answer = self._packets.get(packet.kind)
        if answer is not None:
            answer(event, sender, now)
        if sender is not None and not sender.living:
            self._tell_of_death(sender, event, now)

    def _tell_of_death(self, sender: Member, event: PacketArrived, now: float) -> None:
        """Let a sender contradict that it is gone; a ping's answer has told it already."""
        if event.packet.kind is PacketKind.PING:
            return
        if now - sender.told_at_s >= self._knobs.probe_interval_s:
            sender.told_at_s = now
            self._post.send(PacketKind.GOSSIP, 0, event.boot, event.address, about=sender.rumour)

    # State.

    def _on_published(self, event: StatePublished, _now: float) -> None:
        for update in self._states.publish(event.entries):
            self._post.tell_update(update)

    # Links and leaving.

    def _on_link_broke(self, event: LinkBroke, now: float) -> None:
        member = self._members.get(event.boot)
        if member is not None and member is not self._members.me:
            self._prober.probe(member, now)

    def _on_leave(self, _event: LeaveRequested, now: float) -> None:
        """Tell members twice, a gossip interval apart, and go a gossip interval later."""
        me = self._members.me
        if not me.living:
            return
        self._members.believe(me, me.rumour._replace(status=Status.LEFT), now)
        if not self._members.n_others:
            self._depart(None, now)
            return
        self._post.tell(me.rumour)
        self._say_goodbye(None, now)
        interval_s = self._knobs.gossip_interval_s
        self._agenda.at(now + interval_s, self._say_goodbye)
        self._agenda.at(now + 2 * interval_s, self._depart)

    def _say_goodbye(self, _subject: None, _now: float) -> None:
        count = max(self._knobs.gossip_fanout, retransmissions(self._members.n_others + 1))
        for member in self._members.to_tell.several(count):
            self._post.send(
                PacketKind.GOSSIP, 0, member.boot, member.address, about=self._members.me.rumour
            )

    def _depart(self, _subject: None, _now: float) -> None:
        self._departed = True
        self._agenda.clear()
        self._post.out.append(Departed())


def _farewell(event: Event) -> list[Effect]:
    """Answer what must be answered after the end."""
    if isinstance(event, SyncOffered):
        return [AnswerSync(event.exchange, SyncAnswer((), (), ()))]
    if isinstance(event, SyncAnswered):
        return [FinishSync(event.exchange, SyncRest(()))]
    return [Departed()] if isinstance(event, LeaveRequested) else []
