"""Memberships to feed by hand, and a small network of them in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from itertools import count
from typing import Any, TypeVar
from zlib import crc32

from blitzgw import wire
from blitzgw.core.rumours import (
    Digest,
    Packet,
    PacketKind,
    Rumour,
    Status,
    SyncAnswer,
    SyncOffer,
    SyncRest,
    Update,
)
from blitzgw.gossip import events as e
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership

T = TypeVar("T")
KNOBS = Knobs.of()
RUNS = (Status.ALIVE, Status.SUSPECT)
NOTHING = Digest("", 0, 0)


def rumour(boot: str, status: Status = Status.ALIVE, incarnation: int = 0, **more: Any) -> Rumour:
    """Return a claim about a process at an address of its own."""
    port = 1024 + crc32(boot.encode()) % 60_000
    fields = {"name": f"node-{boot}", "host": "10.0.0.1", "port": port, "started_s": 100} | more
    return Rumour(boot=boot, incarnation=incarnation, status=status, **fields)


def address(boot: str) -> e.Address:
    """Return where `rumour(boot)` lives."""
    r = rumour(boot)
    return r.host, r.port


def membership(boot: str = "me", seed: int = 1, knobs: Knobs = KNOBS, **more: Any) -> Membership:
    """Return a node alone."""
    return Membership(rumour(boot, **more), knobs, random.Random(seed))


def packet(
    kind: PacketKind = PacketKind.GOSSIP,
    seq: int = 0,
    rumours: Iterable[Rumour] = (),
    updates: Iterable[Update] = (),
    digest: Digest = NOTHING,
    **more: Any,
) -> Packet:
    """Return a packet; its digest is empty unless given."""
    return Packet(kind, seq, digest, rumours=tuple(rumours), updates=tuple(updates), **more)


def arrived(boot: str, what: Packet) -> e.PacketArrived:
    """Return the arrival of a packet, its empty digest made the sender's."""
    if what.digest is NOTHING:
        what = what._replace(digest=Digest(boot, 0, 0))
    return e.PacketArrived(boot, address(boot), what)


def acquainted(*boots: str, me: str = "me", knobs: Knobs = KNOBS, seed: int = 1) -> Membership:
    """Return a node at time 0 that believes those to be alive and has no news to tell."""
    m = membership(me, knobs=knobs, seed=seed)
    members = tuple(rumour(boot) for boot in boots)
    m.handle(e.SyncAnswered(0, boots[0], SyncAnswer(members, (), ())), 0.0)
    assert {r.boot for r in m.members()} == {me, *boots}
    return m


def tell(m: Membership, *claims: Rumour, now: float = 0.0, by: str = "") -> list[e.Effect]:
    """Tell a node claims in a packet from a member (the first that it knows unless given)."""
    by = by or m.members()[1].boot
    return m.handle(arrived(by, packet(rumours=claims)), now)


def only(effects: Iterable[e.Effect], kind: type[T]) -> list[T]:
    """Return the effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def packets(effects: Iterable[e.Effect], kind: PacketKind) -> list[e.SendPacket]:
    """Return the packets of one kind that are sent."""
    return [s for s in only(effects, e.SendPacket) if s.packet.kind is kind]


def status(m: Membership, boot: str) -> Status | None:
    """Return what a node believes of another."""
    return next((r.status for r in m.members() if r.boot == boot), None)


def run_until(m: Membership, until_s: float) -> list[e.Effect]:
    """Let time pass for a node whose packets nobody gets."""
    effects: list[e.Effect] = []
    while m.deadline() <= until_s:
        effects += m.handle(e.TimePassed(), m.deadline())
        m.check_integrity()
    return effects


def exchange(a: Membership, b: Membership, now: float) -> list[e.Effect]:
    """Sync two nodes over a perfect connection; return what else came of it."""
    out: list[e.Effect] = []
    offer = SyncOffer(a.members(), _digests(a))
    effects = b.handle(e.SyncOffered(7, offer), now)
    (answer,) = only(effects, e.AnswerSync)
    out += effects
    effects = a.handle(e.SyncAnswered(7, b.members()[0].boot, answer.answer), now)
    (rest,) = only(effects, e.FinishSync)
    out += effects + b.handle(e.SyncFinished(7, rest.rest), now)
    return [x for x in out if not isinstance(x, (e.AnswerSync, e.FinishSync))]


def _digests(m: Membership) -> tuple[Digest, ...]:
    held = []
    for r in m.members():
        versions = [u.version for u in m.entries(r.boot).values()]
        if versions:
            held.append(Digest(r.boot, max(versions), sum(versions)))
    return tuple(held)


class Network:
    """Memberships in virtual time. Everything sent goes through the codec, as it would.

    Datagrams take 1 to `1 + jitter_ms` ms and are lost with probability `loss`; syncs take three
    times that and fail where the address is dead or cut off. `cut` is a pair of sets of boots
    that do not reach each other.
    """

    def __init__(self, seed: int = 0, loss: float = 0.0, jitter_ms: float = 2.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.jitter_ms = jitter_ms
        self.now = 0.0
        self.nodes: dict[str, Membership] = {}
        self.at: dict[e.Address, str] = {}
        self.cut: tuple[set[str], set[str]] = (set(), set())
        self.sent: list[tuple[float, str, e.SendPacket]] = []
        self.told: list[tuple[float, str, e.Effect]] = []
        self._queue: list[tuple[float, int, str, e.Event]] = []
        self._number = count()
        self._exchanges: dict[int, tuple[str, int, str]] = {}
        self._asleep: dict[str, float] = {}
        self._answered: dict[tuple[str, int], int] = {}

    def start(self, boot: str, *seeds: str, knobs: Knobs = KNOBS, **more: Any) -> Membership:
        """Start a node and give it seeds by boot."""
        m = membership(boot, seed=self.rng.randrange(1 << 30), knobs=knobs, **more)
        self.nodes[boot] = m
        me = m.members()[0]
        self.at[me.host, me.port] = boot
        if seeds:
            self.handle(boot, e.SeedsFound(tuple(address(s) for s in seeds)))
        return m

    def crash(self, boot: str) -> None:
        """End a process without a word."""
        del self.nodes[boot]
        self.at = {where: who for where, who in self.at.items() if who != boot}

    def stall(self, boot: str, duration_s: float) -> None:
        """Let a process do nothing for a while; what arrives waits for it, timers first."""
        self._asleep[boot] = self.now + duration_s

    def handle(self, boot: str, event: e.Event) -> None:
        """Give a node an event now and perform what it answers."""
        m = self.nodes.get(boot)
        if m is not None:
            for effect in m.handle(event, self.now):
                self._perform(boot, effect)

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        end = self.now + duration_s
        while True:
            boot = min(self.nodes, key=self._due, default="")
            due_s = self._due(boot) if boot else end
            if self._queue and self._queue[0][0] < min(due_s, end):
                when, _, to, event = heapq.heappop(self._queue)
                if self._asleep.get(to, 0.0) > when:
                    self._post_at(self._asleep[to] + 1e-6, to, event)
                    continue
                self.now = max(self.now, when)
                self.handle(to, event)
            elif due_s < end:
                self.now = max(self.now, due_s)
                self.handle(boot, e.TimePassed())
            else:
                self.now = end
                return

    def check(self) -> None:
        """Raise AssertionError if any node's books are wrong."""
        for m in self.nodes.values():
            m.check_integrity()

    def converged(self) -> bool:
        """Whether all nodes believe each other to be alive, nobody else, and hold equal states."""
        everybody = set(self.nodes)
        for m in self.nodes.values():
            if {r.boot for r in m.members() if r.status is Status.ALIVE} != everybody:
                return False
            if any(r.status is Status.SUSPECT for r in m.members()):
                return False
            if any(m.entries(b) != origin.entries(b) for b, origin in self.nodes.items()):
                return False
        return True

    def time_to(self, goal: Any, limit_s: float) -> float:
        """Run until a goal is met; return how long that took, at a resolution of 20 ms."""
        begun = self.now
        while not goal():
            assert self.now - begun < limit_s, "not within the limit"
            self.run(0.02)
        return self.now - begun

    def _due(self, boot: str) -> float:
        return max(self.nodes[boot].deadline(), self._asleep.get(boot, 0.0))

    def _reaches(self, a: str, b: str) -> bool:
        left, right = self.cut
        return not ((a in left and b in right) or (a in right and b in left))

    def _delay_s(self) -> float:
        return (1 + self.rng.random() * self.jitter_ms) / 1000

    def _post_at(self, when: float, to: str, event: e.Event) -> None:
        heapq.heappush(self._queue, (when, next(self._number), to, event))

    def _perform(self, boot: str, effect: e.Effect) -> None:
        if isinstance(effect, e.SendPacket):
            self._send(boot, effect)
        elif isinstance(effect, e.StartSync):
            self._start_sync(boot, effect)
        elif isinstance(effect, e.AnswerSync):
            initiator, number, _ = self._exchanges[effect.exchange]
            answer = _coded(effect.answer, SyncAnswer)
            event = e.SyncAnswered(number, boot, answer)
            self._post_at(self.now + self._delay_s(), initiator, event)
            key = (initiator, number)
            self._answered[key] = effect.exchange
        elif isinstance(effect, e.FinishSync):
            exchange = self._answered.pop((boot, effect.exchange))
            _, _, other = self._exchanges.pop(exchange)
            event = e.SyncFinished(exchange, _coded(effect.rest, SyncRest))
            self._post_at(self.now + self._delay_s(), other, event)
        else:
            self.told.append((self.now, boot, effect))

    def _send(self, boot: str, effect: e.SendPacket) -> None:
        self.sent.append((self.now, boot, effect))
        data = wire.dump(effect.packet)
        assert len(data) <= KNOBS.packet_bytes
        to = self.at.get(effect.address)
        if to is None or not self._reaches(boot, to) or self.rng.random() < self.loss:
            return
        me = self.nodes[boot].members()[0]
        event = e.PacketArrived(boot, (me.host, me.port), wire.parse(data, {Packet}))
        self._post_at(self.now + self._delay_s(), to, event)

    def _start_sync(self, boot: str, effect: e.StartSync) -> None:
        to = self.at.get(effect.address)
        if to is None or not self._reaches(boot, to) or self.rng.random() < self.loss:
            event: e.Event = e.SyncFailed(effect.exchange, effect.address)
            self._post_at(self.now + self._delay_s(), boot, event)
            return
        number = next(self._number)
        self._exchanges[number] = (boot, effect.exchange, to)
        event = e.SyncOffered(number, _coded(effect.offer, SyncOffer))
        self._post_at(self.now + self._delay_s(), to, event)


def _coded(message: Any, kind: type[T]) -> T:
    coded: T = wire.parse(wire.dump(message), {kind})
    return coded
