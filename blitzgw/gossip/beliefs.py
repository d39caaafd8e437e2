"""What to believe of what is said: SWIM's precedence, suspicion, refutation, supersession.

A claim is believed if its (incarnation, status) is above what is believed already. Only the member
itself raises its incarnation: by that it contradicts a claim.

    ALIVE 0 < SUSPECT 1 < DEAD 2 < LEFT 3

    ALIVE i  --SUSPECT i-->  SUSPECT i  --time is up, or DEAD i-->  DEAD i  --forgotten-->  gone
       ^                         |                                     |
       +------- ALIVE i+1 -------+-------------------------------------+

- A stranger is taken in as ALIVE or SUSPECT; the death of a stranger is no news.
- DEAD counts as SUSPECT for the living where it comes by a sync or from an accuser who is gone
  itself: it may be the word of somebody cut off, and they may speak up first.
- Where a younger process claims the same address, the older one cannot live any more: DEAD at once.
"""

from __future__ import annotations

from blitzgw.core.rumours import Rumour, Status
from blitzgw.gossip.desk import Desk
from blitzgw.gossip.events import MemberChanged, MemberForgotten
from blitzgw.gossip.members import LIVING, MEMBERS_MAX, Member, is_sound
from blitzgw.gossip.suspicion import Suspicion

INCARNATION_JUMP_MAX = 1 << 20
"""An incarnation grows by one with each refutation; one so far above what is known is made up, and
believing it would leave its owner no number to answer with."""


class Beliefs:
    """Applies claims to the members. Effects go to the post."""

    def __init__(self, desk: Desk) -> None:
        self._knobs = desk.knobs
        self._agenda = desk.agenda
        self._members = desk.members
        self._states = desk.states
        self._post = desk.post
        self._health = desk.health
        self._tally = desk.tally

    def hear(self, claim: Rumour, now: float, *, synced: bool = False, quiet: bool = False) -> None:
        """Believe a claim or not. `synced`: it came by a sync; `quiet`: do not pass it on."""
        member = self._members.by_boot.get(claim.boot)
        if member is None:
            self._of_stranger(claim, now, quiet)
            return
        if member is self._members.me:
            self._about_me(claim)
            return
        if claim.status is Status.DEAD and member.living and (synced or self._is_gone(claim)):
            claim = claim._replace(status=Status.SUSPECT)
        held = member.rumour
        if claim.incarnation < held.incarnation or (
            claim.incarnation == held.incarnation and claim.status <= held.status
        ):
            if member.suspicion is not None and claim.incarnation == held.incarnation:
                self._confirm(member, claim, now)
            return
        if self._objection(claim, held.incarnation, member) is None:
            self._believe(member, claim, now, quiet)

    def suspect(self, member: Member, now: float) -> None:
        """Accuse a member of not answering."""
        claim = member.rumour._replace(status=Status.SUSPECT, accuser=self._members.me.boot)
        self.hear(claim, now)

    def bury(self, member: Member, now: float) -> None:
        """Take a member for dead, and say so."""
        claim = member.rumour._replace(status=Status.DEAD, accuser=self._members.me.boot)
        self._believe(member, claim, now, quiet=False)

    # About others.

    def _objection(self, claim: Rumour, known: int, member: Member | None) -> str | None:
        """Return why a claim that would be news is not believed, and count it; None if it is."""
        reason = None
        if not is_sound(claim):
            reason = "unsound_rumour"
        elif claim.incarnation > known + INCARNATION_JUMP_MAX:
            reason = "incarnation_jump"
        elif claim.status in LIVING:
            holder = self._members.at.get((claim.host, claim.port))
            if holder is self._members.me or (
                holder is not None
                and holder is not member
                and claim.started_s < holder.rumour.started_s
            ):
                reason = "address_taken"
        if reason is not None:
            self._tally.dropped[reason] += 1
        return reason

    def _is_gone(self, claim: Rumour) -> bool:
        """Whether an accuser does not live itself: its word may be that of one cut off."""
        accuser = self._members.by_boot.get(claim.accuser)
        return accuser is not None and not accuser.living

    def _of_stranger(self, claim: Rumour, now: float, quiet: bool) -> None:
        if claim.status not in LIVING:
            return
        if len(self._members.by_boot) >= MEMBERS_MAX:
            self._tally.dropped["too_many_members"] += 1
            return
        if self._objection(claim, 0, None) is not None:
            return
        self._supersede(claim, None, now)
        member = self._members.add(_signed(claim), now)
        member.sync_spacing_s = self._knobs.sync_spacing_s
        if claim.status is Status.SUSPECT:
            self._begin_suspicion(member, now)
        self._post.out.append(MemberChanged(member.rumour))
        if not quiet:
            self._post.tell(member.rumour)

    def _believe(self, member: Member, claim: Rumour, now: float, quiet: bool) -> None:
        held = member.rumour
        if claim.status in LIVING:
            self._supersede(claim, member, now)
        self._end_suspicion(member)
        claim = _signed(claim)
        self._members.believe(member, claim, now)
        if claim.status is Status.SUSPECT:
            self._begin_suspicion(member, now)
        elif claim.status not in LIVING:
            self._lay_out(member, held.status, now)
        if not quiet:
            self._post.tell(claim)
        if _visible(claim) != _visible(held):
            self._post.out.append(MemberChanged(claim))

    def _supersede(self, claim: Rumour, member: Member | None, now: float) -> None:
        """Bury whoever lived at the address that a younger process claims."""
        holder = self._members.at.get((claim.host, claim.port))
        if holder is not None and holder is not member:
            self.bury(holder, now)

    def _lay_out(self, member: Member, before: Status, now: float) -> None:
        """Arrange for a member that does not live any more to be forgotten."""
        if member.rumour.status is Status.DEAD:
            if before in LIVING:
                self._tally.deaths += 1
            after_s = self._knobs.forget_dead_s
        else:
            after_s = self._knobs.forget_left_s
        if member.timer is not None:
            member.timer.cancel()
        member.timer = self._agenda.at(now + after_s, self._forget, member)

    def _forget(self, member: Member, _now: float) -> None:
        if member.living:
            return
        self._members.forget(member)
        self._states.forget(member.boot)
        self._post.rumours.drop((member.boot, member.rumour.accuser))
        self._post.out.append(MemberForgotten(member.boot))

    # Suspicion.

    def _begin_suspicion(self, member: Member, now: float) -> None:
        n = self._members.n_living
        k = min(self._knobs.confirmations, max(0, n - 2))  # all but the suspect and its accuser
        suspicion = member.suspicion = Suspicion(
            member.rumour.accuser,
            now,
            k,
            self._knobs.suspicion_min_s(n),
            self._knobs.suspicion_max_s(n),
        )
        suspicion.timer = self._agenda.at(suspicion.deadline_s, self._expire, member)
        self._tally.suspicions += 1

    def _confirm(self, member: Member, claim: Rumour, now: float) -> None:
        """Count another accuser, and pass on what it says."""
        suspicion = member.suspicion
        if suspicion is None or claim.status is not Status.SUSPECT or not is_sound(claim):
            return
        if suspicion.confirm(claim.accuser):
            suspicion.cancel()
            when = max(now, suspicion.deadline_s)
            suspicion.timer = self._agenda.at(when, self._expire, member)
            self._post.tell(member.rumour._replace(accuser=claim.accuser))

    def _expire(self, member: Member, now: float) -> None:
        suspicion = member.suspicion
        if suspicion is None:
            return
        grace_until = self._health.grace_until_s
        if now < grace_until and not suspicion.graced:
            suspicion.graced = True
            suspicion.timer = self._agenda.at(grace_until, self._expire, member)
            return
        self.bury(member, now)

    def _end_suspicion(self, member: Member) -> None:
        """Stop suspecting, and drop what is still to be told about what was believed."""
        accusers = {member.rumour.accuser}
        if member.suspicion is not None:
            member.suspicion.cancel()
            accusers = member.suspicion.accusers
            member.suspicion = None
        self._post.hush(member.boot, accusers)

    # About this node.

    def _about_me(self, claim: Rumour) -> None:
        """Contradict a claim that this node does not live; once it has left, it says no more."""
        me = self._members.me
        held = me.rumour
        if held.status is not Status.ALIVE:
            return
        if claim.incarnation > held.incarnation + INCARNATION_JUMP_MAX:
            self._tally.dropped["incarnation_jump"] += 1
        elif claim.incarnation > held.incarnation or (
            claim.incarnation == held.incarnation and claim.status is not Status.ALIVE
        ):
            me.rumour = held._replace(incarnation=claim.incarnation + 1)
            self._post.tell(me.rumour)
            self._tally.refutations += 1
            self._health.worsen()
        elif claim.status is not Status.ALIVE and (me.boot, "") not in self._post.rumours:
            self._post.tell(held)  # somebody has missed the refutation


def _signed(claim: Rumour) -> Rumour:
    """Return a claim with an accuser only where it accuses."""
    if claim.accuser and claim.status not in (Status.SUSPECT, Status.DEAD):
        return claim._replace(accuser="")
    return claim


def _visible(rumour: Rumour) -> tuple[str, str, int, Status]:
    """Return what the node is told about."""
    return rumour.name, rumour.host, rumour.port, rumour.status
