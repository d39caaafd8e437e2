"""Whom to exchange everything with, and when: seeds, random members, the behind, the dead.

Rumours alone leave somebody out now and then; a sync leaves nothing out. Three messages:
offer (all members, all digests) · answer (the same, and what the offerer lacks) · rest.
"""

from __future__ import annotations

from typing import NamedTuple

from blitzgw.core.rumours import Digest, Rumour, SyncAnswer, SyncOffer, SyncRest
from blitzgw.gossip.agenda import Timer
from blitzgw.gossip.beliefs import Beliefs
from blitzgw.gossip.desk import Desk
from blitzgw.gossip.events import (
    Address,
    AnswerSync,
    FinishSync,
    SeedsFound,
    StartSync,
    SyncAnswered,
    SyncFailed,
    SyncFinished,
    SyncOffered,
)
from blitzgw.gossip.intake import Intake
from blitzgw.gossip.members import MEMBERS_MAX, Member, is_address

SEEDS_MAX = 64
"""Addresses to try; a list of names resolves to a few. Each is a connection at the start."""

SYNCS_MAX = 16
"""Exchanges under way that were begun here: each costs O(members) on both sides."""

JITTER = 0.25
"""Periods vary by that much either way, so that nodes started together do not act together."""


class Exchange(NamedTuple):
    """A sync that was begun here."""

    address: Address
    begun_s: float
    seed: Seed | None


class Seed:
    """An address that was given. `boot` is who answered there last, which may be this node."""

    __slots__ = ("address", "boot", "timer", "wait_s")

    def __init__(self, address: Address, wait_s: float) -> None:
        self.address = address
        self.boot = ""
        self.wait_s = wait_s
        self.timer: Timer | None = None


class Syncs:
    """Begins and answers exchanges. Effects go to the post."""

    def __init__(self, desk: Desk, beliefs: Beliefs, intake: Intake) -> None:
        self._knobs = desk.knobs
        self._rng = desk.rng
        self._agenda = desk.agenda
        self._members = desk.members
        self._beliefs = beliefs
        self._intake = intake
        self._states = desk.states
        self._post = desk.post
        self._tally = desk.tally
        self._exchanges: dict[int, Exchange] = {}
        self._n_begun = 0
        self._seeds: dict[Address, Seed] = {}
        self._stranger = ""
        self._stranger_wait_s = desk.knobs.sync_patience_s
        self._odd_one = ""
        self._odd_census = 0
        self._odd_wait_s = desk.knobs.sync_patience_s
        self._turn: Timer | None = None
        self._retry: Timer | None = None

    # When.

    def wake(self, now: float) -> None:
        """Keep the periodic syncs going while there is somebody to sync with."""
        if self._turn is None and self._members.n_others:
            self._turn = self._agenda.at(now + self._period_s(), self._sync_random)
        if self._retry is None and self._members.n_dead:
            when = now + self._jittered(self._knobs.dead_retry_s)
            self._retry = self._agenda.at(when, self._retry_dead)

    def _period_s(self) -> float:
        return self._jittered(self._knobs.sync_every_s(self._members.n_living))

    def _jittered(self, period_s: float) -> float:
        return period_s * (1 - JITTER + 2 * JITTER * self._rng.random())

    def _sync_random(self, _subject: None, now: float) -> None:
        self._turn = None
        for member in self._members.to_tell.several(1):
            self._begin(member.address, now)

    def _retry_dead(self, _subject: None, now: float) -> None:
        self._retry = None
        member = self._members.to_retry.next()
        if member is not None and member.address not in self._members.at:
            self._begin(member.address, now)

    def _begin(self, address: Address, now: float, seed: Seed | None = None) -> bool:
        """Start an exchange; return False where too many are under way."""
        if len(self._exchanges) >= SYNCS_MAX:
            oldest = next(iter(self._exchanges))
            if now - self._exchanges[oldest].begun_s < self._knobs.sync_interval_s:
                return False
            del self._exchanges[oldest]
        self._n_begun += 1
        self._exchanges[self._n_begun] = Exchange(address, now, seed)
        self._tally.syncs["started"] += 1
        offer = SyncOffer(self._members.rumours(), self._states.digests())
        self._post.out.append(StartSync(self._n_begun, address, offer))
        return True

    # Seeds.

    def on_seeds(self, event: SeedsFound, now: float) -> None:
        """Try new addresses at once, and again for as long as no member lives there."""
        wanted = dict.fromkeys(a for a in event.addresses if is_address(*a))
        wanted.pop(self._members.me.address, None)
        if len(wanted) > SEEDS_MAX:
            self._tally.dropped["too_many_seeds"] += len(wanted) - SEEDS_MAX
        kept = list(wanted)[:SEEDS_MAX]
        for address in [a for a in self._seeds if a not in kept]:
            seed = self._seeds.pop(address)
            if seed.timer is not None:
                seed.timer.cancel()
        for address in kept:
            if address not in self._seeds:
                self._seeds[address] = seed = Seed(address, self._knobs.seed_retry_s)
                self._try_seed(seed, now)

    def _try_seed(self, seed: Seed, now: float) -> None:
        wait_s = self._knobs.sync_interval_s
        if self._is_member(seed):
            seed.wait_s = self._knobs.seed_retry_s
        else:
            self._begin(seed.address, now, seed)
            wait_s = seed.wait_s
            seed.wait_s = min(2 * wait_s, self._knobs.sync_interval_s)
        seed.timer = self._agenda.at(now + self._jittered(wait_s), self._try_seed, seed)

    def _is_member(self, seed: Seed) -> bool:
        """Whether a living member is there, under that address or another one."""
        member = self._members.get(seed.boot)
        return seed.address in self._members.at or (member is not None and member.living)

    # Those that know what is not known here.

    def notice(self, member: Member, digest: Digest, now: float) -> None:
        """Compare what a member says that its own state is with what is held of it."""
        state = self._states.states.get(member.boot)
        version, total = (0, 0) if state is None else (state.version, state.total)
        if digest.version == version and digest.total == total:
            if member.differs is not None or member.sync_at_s or member.gap:
                member.differs, member.sync_at_s, member.gap = None, 0.0, 0
                member.sync_spacing_s = self._knobs.sync_spacing_s
            return
        if digest.version < version or digest.boot != member.boot:
            return  # an old packet, or nonsense
        lasts = digest.version == version and self._lasts(member, digest.total - total, now)
        if member.differs is None and (state is None or not state.full):
            member.differs = digest
            member.held = None if lasts else self._states.digest_of(member.boot)
            self._agenda.at(now + self._knobs.sync_patience_s, self._check, member)

    def _lasts(self, member: Member, gap: int, now: float) -> bool:
        """Whether the same is lacking as a while ago, whatever else has come since.

        Rumours of a member that publishes all the time never cease, and do not bring an entry that
        they have left out, or that no packet can carry.
        """
        if gap != member.gap:
            member.gap, member.gap_s = gap, now
        return now - member.gap_s >= self._knobs.sync_spacing_s

    def _check(self, member: Member, now: float) -> None:
        """Sync a member whose state rumours have not brought nearer meanwhile."""
        held = self._states.digest_of(member.boot)
        if member.differs is None or not member.living or held == member.differs:
            member.differs = None
            return
        if member.held not in (None, held):
            member.differs = None  # rumours do bring it; the next packet tells how far
        elif now < member.sync_at_s:
            self._agenda.at(member.sync_at_s, self._check, member)
        elif self._is_syncing(member):
            member.differs = None  # what is under way brings it
        else:
            member.differs = None
            self._begin(member.address, now)
            member.sync_at_s = now + member.sync_spacing_s
            member.sync_spacing_s = min(2 * member.sync_spacing_s, self._knobs.sync_interval_s)

    def compare(self, member: Member, census: int, now: float) -> None:
        """Take note of who believes other members to be alive than this node does.

        One at a time: a sync follows if that lasts while nothing changes here, for then a rumour
        has been missed. While syncs do not help, they come ever more rarely.
        """
        if census == self._members.census:
            if self._odd_one == member.boot:
                self._odd_one, self._odd_wait_s = "", self._knobs.sync_patience_s
        elif census and not self._odd_one:
            self._odd_one, self._odd_census = member.boot, self._members.census
            self._agenda.at(now + self._odd_wait_s, self._agree, member)

    def _agree(self, member: Member, now: float) -> None:
        boot, self._odd_one = self._odd_one, ""
        if boot != member.boot or not member.living or self._odd_census != self._members.census:
            return
        if self._is_syncing(member):
            return
        if self._begin(member.address, now):
            self._odd_wait_s = min(2 * self._odd_wait_s, self._knobs.sync_interval_s)

    def _is_syncing(self, member: Member) -> bool:
        return any(under_way.address == member.address for under_way in self._exchanges.values())

    def meet(self, boot: str, address: Address, now: float) -> None:
        """Take note of a packet from a stranger; the sync comes later, for rumours may be sooner.

        One stranger at a time, and ever more rarely while none of them becomes a member.
        """
        if not self._stranger and is_address(*address):
            self._stranger = boot
            self._agenda.at(now + self._stranger_wait_s, self._visit, (boot, address))

    def _visit(self, who: tuple[str, Address], now: float) -> None:
        boot, address = who
        self._stranger = ""
        if self._members.get(boot) is not None:
            self._stranger_wait_s = self._knobs.sync_patience_s
        elif self._begin(address, now):
            most_s = self._knobs.sync_interval_s
            self._stranger_wait_s = min(2 * self._stranger_wait_s, most_s)

    # Exchanges.

    def on_offered(self, event: SyncOffered, now: float) -> None:
        """Believe what a peer offers and answer with what it lacks."""
        self._tally.syncs["offered"] += 1
        self._hear(event.offer.members, now)
        updates = self._states.lacking(event.offer.digests)
        answer = SyncAnswer(self._members.rumours(), self._states.digests(), updates)
        self._post.out.append(AnswerSync(event.exchange, answer))

    def on_answered(self, event: SyncAnswered, now: float) -> None:
        """Believe the answer, and send what the other side lacks."""
        exchange = self._exchanges.pop(event.exchange, None)
        self._tally.syncs["answered"] += 1
        if exchange is not None and exchange.seed is not None:
            exchange.seed.boot = event.boot
        self._hear(event.answer.members, now)
        self._intake.take(event.answer.updates, synced=True)
        rest = SyncRest(self._states.lacking(event.answer.digests))
        self._post.out.append(FinishSync(event.exchange, rest))

    def on_finished(self, event: SyncFinished, _now: float) -> None:
        """Take what was lacking here."""
        self._intake.take(event.rest.updates, synced=True)

    def on_failed(self, event: SyncFailed, _now: float) -> None:
        """Forget an exchange; whatever caused it comes round again."""
        if self._exchanges.pop(event.exchange, None) is not None:
            self._tally.syncs["failed"] += 1

    def _hear(self, claims: tuple[Rumour, ...], now: float) -> None:
        """Believe claims. Who was alone has learnt what all the others know: that is no news."""
        if len(claims) > MEMBERS_MAX:
            self._tally.dropped["too_many_members"] += len(claims) - MEMBERS_MAX
        quiet = not self._members.n_others
        for claim in claims[:MEMBERS_MAX]:
            self._beliefs.hear(claim, now, synced=True, quiet=quiet)

    def check_integrity(self) -> None:
        """Raise AssertionError if a limit is exceeded or a seed has no next time."""
        assert len(self._exchanges) <= SYNCS_MAX
        assert len(self._seeds) <= SEEDS_MAX
        for address, seed in self._seeds.items():
            assert seed.address == address
            assert seed.timer is not None
            assert seed.timer.action is not None
