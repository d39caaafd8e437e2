"""Gossip's own event loop: performs what membership decides, and lets nothing starve its timers.

A loop of its own in a thread of its own, because a node whose main loop is busy for half a second
must not seem dead to the others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop

from blitzgw.core.clock import Clock
from blitzgw.core.rumours import Packet, Status
from blitzgw.crypto.datagrams import Datagrams, Rejection
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError
from blitzgw.gossip.alarm import Alarm
from blitzgw.gossip.crossing import News, ToGossip
from blitzgw.gossip.events import (
    Address,
    AnswerSync,
    Departed,
    Effect,
    Event,
    FinishSync,
    LeaveRequested,
    MemberChanged,
    MemberForgotten,
    PacketArrived,
    SeedsFound,
    SendPacket,
    StartSync,
    StateChanged,
    StatePublished,
    TimePassed,
)
from blitzgw.gossip.seeds import Seeds
from blitzgw.gossip.sockets import DatagramSocket
from blitzgw.gossip.streams import Exchanges, Listener
from blitzgw.gossip.terms import Decider, GossipSettings, GossipStatistics
from blitzgw.wire import dump, parse

log = logging.getLogger(__name__)

MAX_FAULTS_LOGGED = 32
"""Faults in handling what peers sent that are logged with their trace; later ones are counted."""

SNAPSHOT_S = 1.0
"""How old membership's figures may be."""


class GossipLoop:
    """Everything that lives on gossip's event loop.

    Call `run` once, and the rest on `loop`; only `statistics` may be called from any thread.
    """

    def __init__(
        self,
        settings: GossipSettings,
        decider: Decider,
        sockets: tuple[socket.socket, socket.socket],
        seeds: Callable[[Callable[[tuple[Address, ...]], None]], Seeds],
        keyring: Keyring,
        clock: Clock,
        on_news: Callable[[News], None],
        on_link: Callable[[socket.socket, Session], None],
    ) -> None:
        boot, dilation = settings.boot, settings.dilation
        self._boot, self._decider, self._clock = boot, decider, clock
        self._alarm = Alarm(clock, dilation, self._on_due)
        self._on_news, self._on_link = on_news, on_link
        self._datagrams = Datagrams(keyring, boot)
        self._udp = DatagramSocket(sockets[0], self._on_datagram)
        self._listener = Listener(
            sockets[1], keyring, boot, dilation, self._spawn, self._on_session
        )
        self._exchanges = Exchanges(keyring, boot, dilation, self._spawn, self._tell_of_peer)
        self._seeds = seeds(lambda addresses: self._tell(SeedsFound(addresses)))
        self._others: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._now = clock.now()
        self._faults = 0
        self._figures, self._figures_s = decider.statistics(), self._now
        self._perform: dict[type[Effect], Callable[[Any], None]] = {
            SendPacket: self._send,
            StartSync: self._exchanges.start,
            AnswerSync: self._exchanges.answer,
            FinishSync: self._exchanges.finish,
            MemberChanged: self._note_member,
            MemberForgotten: self._forget_member,
            StateChanged: on_news,
            Departed: on_news,
        }
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(self._on_exception)
        self._end: asyncio.Future[None] = self.loop.create_future()

    def run(self) -> None:
        """Gossip until `end`, in this thread; raises what has gone wrong and cannot be contained.

        The sockets and the event loop are closed when it returns.
        """
        try:
            self.loop.run_until_complete(self._live())
        finally:
            self.loop.close()

    def end(self) -> None:
        """Let `run` return."""
        if not self._end.done():
            self._end.set_result(None)

    def take(self, waiting: ToGossip) -> None:
        """Tell membership what the node has said."""
        for event in waiting.take():
            if isinstance(event, StatePublished):
                self._publish(event.entries)
            else:
                self._tell(event)

    def leave(self) -> None:
        """Tell membership that this node is going."""
        self._tell(LeaveRequested())

    def statistics(self) -> GossipStatistics:
        """Return the figures of this moment; from any thread, since each is read in one go."""
        udp, exchanges, listener = self._udp, self._exchanges, self._listener
        return GossipStatistics(
            packets_in=udp.packets_in,
            packets_out=udp.packets_out,
            bytes_in=udp.bytes_in,
            bytes_out=udp.bytes_out,
            packets_unsent=udp.unsent,
            rejected={str(why): count for why, count in self._datagrams.rejected.copy().items()},
            connections_accepted=listener.accepted,
            connections_refused=listener.refused,
            syncs_done=exchanges.done,
            syncs_failed=exchanges.failed,
            faults=self._faults,
            membership=self._figures,
        )

    async def _live(self) -> None:
        try:
            self.loop.add_reader(self._udp.sock, self._udp.drain)
            self._listener.open()
            self._spawn(self._seeds.run())
            self._alarm.set(self._decider.deadline())
            await self._end  # not bounded: this is the thread's life
        finally:
            await self._close()

    def _publish(self, entries: Mapping[str, bytes | None]) -> None:
        """Publish entries; where that is too much, those that fit, one by one.

        They were merged: what one caller overdoes must not cost the others theirs.
        """
        try:
            self._tell(StatePublished(entries))
        except ValueError as e:
            if len(entries) == 1:
                log.warning("gossip_entry_refused key=%s error=%s", *entries, e)
                return
            for key, value in entries.items():
                self._publish({key: value})

    def _tell(self, event: Event) -> None:
        self._now = max(self._now, self._clock.now())
        for effect in self._decider.handle(event, self._now):
            self._perform[type(effect)](effect)
        if self._now - self._figures_s >= SNAPSHOT_S:
            self._figures, self._figures_s = self._decider.statistics(), self._now
        self._alarm.set(self._decider.deadline())

    def _tell_of_peer(self, event: Event) -> None:
        """Tell what a peer has sent.

        A defect that it hits must not take down every node at once, so that an exception ends
        here, counted and logged.
        """
        try:
            self._tell(event)
        except Exception:
            self._faults += 1
            if self._faults <= MAX_FAULTS_LOGGED:
                log.exception("gossip_fault event=%s", type(event).__name__)

    def _on_due(self, deadline: float) -> None:
        self._now = max(self._now, deadline)
        self._tell(TimePassed())

    def _on_datagram(self, data: bytes, sender: Address) -> None:
        try:
            boot, payload = self._datagrams.open(data)
        except ProtocolError:
            return  # counted
        try:
            packet = parse(payload, {Packet})
        except ProtocolError:
            self._datagrams.reject(Rejection.MALFORMED)
            return
        self._tell_of_peer(PacketArrived(boot, sender, packet))

    def _send(self, effect: SendPacket) -> None:
        try:
            data = self._datagrams.seal(effect.boot, dump(effect.packet))
        except (ProtocolError, OverflowError):  # a boot id or a number that a peer made up
            self._udp.unsent += 1
            return
        self._udp.send(data, effect.address)

    def _on_session(self, sock: socket.socket, session: Session, purpose: Purpose) -> None:
        if purpose is Purpose.SYNC:
            self._exchanges.take(sock, session)
        else:
            self._on_link(sock, session)

    def _note_member(self, effect: MemberChanged) -> None:
        member = effect.member
        if member.status in (Status.ALIVE, Status.SUSPECT):
            self._others.add(member.boot)
        else:
            self._others.discard(member.boot)
        self._told_of_others(effect)

    def _forget_member(self, effect: MemberForgotten) -> None:
        self._others.discard(effect.boot)
        self._told_of_others(effect)

    def _told_of_others(self, effect: News) -> None:
        self._seeds.set_alone(not self._others - {self._boot})
        self._on_news(effect)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exception := task.exception()) is not None:
            self._fail(exception)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what a callback has raised; asyncio would only log it."""
        exception = context.get("exception")
        if exception is None:
            loop.default_exception_handler(context)
        else:
            self._fail(exception)

    def _fail(self, exception: BaseException) -> None:
        if self._end.done():
            log.error("gossip_failed_late", exc_info=exception)
        else:
            self._end.set_exception(exception)

    async def _close(self) -> None:
        self.loop.remove_reader(self._udp.sock)
        self._udp.sock.close()
        self._listener.close()
        self._alarm.cancel()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)  # bounded: they are cancelled, and none holds on
