"""At most one link per pair of boots, opened when there is something to say.

    (nothing) ── send ──► dialling ── the peer speaks ──► up ──► lost: everything on it, told once
        └──────────── accept ──────────────────────────►─┘

The one that accepts a connection speaks first, and the one that dialled sends nothing before it has
heard that. So a dial that comes to nothing because the other side's is preferred has carried no
message, and what waited for it goes over the accepted link instead. Where both dial at once, the
dial of the lower boot id stands. Where a link is up and another is accepted, the peer must have
lost the first: the new one takes its place as soon as the peer says anything on it, which it does
not do on a connection that it has abandoned.

All that is sent to a peer between two losses shares one fate: `on_link_lost` ends it, and only what
is sent after that goes over a new link.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from blitzgw.core.clock import Clock, until_tick_s
from blitzgw.core.peer import Heartbeat
from blitzgw.crypto.records import Session
from blitzgw.errors import BlitzError
from blitzgw.gossip.conversation import Conversation
from blitzgw.gossip.events import Address
from blitzgw.gossip.link import TICK_S, PeerLink
from blitzgw.gossip.linkports import Dial, LinkListener, LinkStatistics
from blitzgw.wire import dump

log = logging.getLogger(__name__)

DIAL_TICKS = 8
"""2 s to connect, shake hands and be heard: many round trips, and short beside a client's patience
for the next attempt elsewhere."""

REDIAL_S = 0.1
"""Wait after a connection that the peer has closed unheard: its own dial is about to arrive."""

IDLE_TICKS = 240
"""60 s without use, after which a link is closed: a new one costs two round trips."""

IDLE_SLACK_TICKS = 20
"""By how much both ends' ideas of idleness may differ: the end, however rude, of a link that has
been idle for nearly IDLE_TICKS is no loss of anything."""

FINISH_S = 1.0
"""How long `stop` lets peers read what was sent: they are given their last tokens back in it."""


class Links:
    """The links of the process `local_boot`. Everything is called from its event loop."""

    def __init__(self, local_boot: str, dial: Dial, clock: Clock, listener: LinkListener) -> None:
        self._local, self._dial = local_boot, dial
        self._clock, self._listener = clock, listener
        self._peers: dict[str, Conversation] = {}
        self._links: set[PeerLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attaching: set[asyncio.Task[None]] = set()
        """Tasks that are not to be cancelled, and soon done."""
        self._ticker: asyncio.Task[None] | None = None
        self._stopped = False
        self._n_lost = 0

    def send(self, boot: str, address: Address | None, message: Any) -> None:
        """Send a message, over a new link if need be; without an address only over a present one.

        Never waits. What cannot be sent is lost with the link, of which the listener is told later,
        not from within this call. Raises ProtocolError for a message above its limit.
        """
        peer = self._peers.get(boot)
        if peer is None:
            if address is None or self._stopped:
                return
            peer = self._peers[boot] = Conversation(boot)
            peer.dial = _start(self._open(peer, address), self._tasks)
            self._look_after()
        if peer.failed:
            return
        if peer.link is not None:
            peer.link.send(message)
        elif not peer.wait(dump(message)):
            peer.failed = True
            asyncio.get_running_loop().call_soon(self._lose, peer, "too much waited for it to open")

    def accept(self, sock: socket.socket, session: Session, peer_boot: str) -> None:
        """Take a connection that a peer has made, its handshake done. The socket is ours now."""
        if self._stopped or peer_boot == self._local:
            sock.close()
            return
        self._attach(PeerLink(session, self._clock, self, dialled=False), sock)

    def drop(self, boot: str, reason: str, *, expected: bool = False) -> None:
        """Give up a link, open or being opened; the listener is told before this returns.

        An `expected` end, of a peer that has said goodbye, is no loss in logs and figures.
        """
        peer = self._peers.get(boot)
        if peer is not None:
            self._lose(peer, reason, expected=expected)

    def usable(self, boot: str) -> bool:
        """Whether what is sent now has a chance: False between a loss and the news of it."""
        peer = self._peers.get(boot)
        return not self._stopped and (peer is None or peer.usable)

    def connected(self) -> list[str]:
        """Return the boot ids of the peers whose link is up."""
        return [boot for boot, peer in self._peers.items() if peer.link is not None]

    def rtt_s(self, boot: str) -> float | None:
        """Return a peer's round-trip time in seconds; None while it is not known."""
        peer = self._peers.get(boot)
        return None if peer is None or peer.link is None else peer.link.rtt_s

    def statistics(self) -> LinkStatistics:
        """Return the present figures."""
        return LinkStatistics(
            up=sum(peer.link is not None for peer in self._peers.values()),
            dialling=sum(peer.link is None for peer in self._peers.values()),
            unsent_bytes=sum(link.unsent_bytes for link in self._links)
            + sum(peer.waiting_bytes for peer in self._peers.values()),
            merged_events=sum(link.merged_events for link in self._links),
            lost=self._n_lost,
        )

    async def stop(self) -> None:
        """Send what waits, within FINISH_S, and end all links; the listener hears nothing more.

        Can be called twice. When cancelled, links are cut at once.
        """
        self._stopped = True
        for link in self._links:
            link.on_plain = None
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        try:
            for link in [*self._links]:
                link.finish()
            await self._all_gone(FINISH_S)
        finally:
            for link in [*self._links]:
                link.drop("this node stops")
            self._peers.clear()
        if tasks or self._attaching:
            await asyncio.wait({*tasks, *self._attaching})  # bounded: cancelled, or soon done
        await self._ends()  # bounded: an aborted transport ends in the loop's next turns

    # What links tell.

    def link_made(self, link: PeerLink) -> None:
        """Find the place of a connection whose transport is there."""
        self._links.add(link)
        if self._stopped:
            link.drop("this node stops")
        elif not link.dialled:
            self._accepted(link)

    def link_spoke(self, link: PeerLink, message: Any) -> None:
        """Pass a message on; the first one of a connection may make it the peer's link."""
        peer = self._peers.get(link.boot)
        if peer is None or link is not peer.link:
            peer = self._promote(peer, link)
            if peer is None:
                link.drop("superseded")
                return
        if isinstance(message, Heartbeat) or self._stopped:
            return
        self._listener.on_message(link.boot, message)

    def link_ended(self, link: PeerLink, reason: str) -> None:
        """Draw the consequences of a connection's end."""
        self._links.discard(link)
        peer = self._peers.get(link.boot)
        if peer is None:
            return
        if link is peer.trial:
            peer.trial = None
            peer.settled.set()
        elif link is peer.candidate:
            peer.candidate = None
        elif link is peer.link:
            self._lose(peer, reason, quietly=self._is_idle(link))

    # Opening.

    async def _open(self, peer: Conversation, address: Address) -> None:
        """Dial until the peer is heard; DIAL_TICKS bounds it."""
        while True:
            try:
                sock, session, boot = await self._dial(address)
                if boot != peer.boot:
                    sock.close()
                    raise ConnectionRefusedError("another process is at its address")
                peer.settled.clear()
                peer.trial = PeerLink(session, self._clock, self, dialled=True)
                await asyncio.wait({self._attach(peer.trial, sock)})  # bounded: see there
            except (OSError, BlitzError) as error:
                peer.dial = peer.trial = None
                self._lose(peer, f"not reached: {error or type(error).__name__}")
                return
            await peer.settled.wait()
            if peer.link is not None:
                return
            await self._clock.sleep(REDIAL_S)

    def _attach(self, link: PeerLink, sock: socket.socket) -> asyncio.Task[None]:
        return _start(link.attach(sock), self._attaching)

    def _accepted(self, link: PeerLink) -> None:
        peer = self._peers.get(link.boot)
        if peer is None:
            peer = self._peers[link.boot] = Conversation(link.boot)
        if peer.link is not None or peer.failed:
            peer.put_aside(link)
        elif peer.dial is not None and self._local < link.boot:
            link.drop("this side's own dial stands")
        else:
            self._establish(peer, link)

    def _promote(self, peer: Conversation | None, link: PeerLink) -> Conversation | None:
        """Make a connection that has been heard the peer's link, if it may be; return the peer."""
        if peer is None or self._stopped:
            return None
        if link is peer.candidate:
            peer.candidate = None
            self._lose(peer, "replaced by a new link")
            peer = self._peers.setdefault(link.boot, Conversation(link.boot))
        elif link is not peer.trial:
            return None
        if peer.link is not None or peer.failed:
            return None
        self._establish(peer, link)
        return peer

    def _establish(self, peer: Conversation, link: PeerLink) -> None:
        peer.establish(link)
        link.on_plain = None if self._stopped else self._listener.on_plain
        self._look_after()
        log.info("peer_link_up boot=%s dialled=%s", peer.boot, link.dialled)
        self._listener.on_link_up(peer.boot)

    # Ending.

    def _lose(
        self, peer: Conversation, reason: str, *, quietly: bool = False, expected: bool = False
    ) -> None:
        """End all that is with a peer and tell the listener; harmless when done before.

        `quietly`: nothing was under way, and nobody need know.
        """
        if self._peers.get(peer.boot) is not peer:
            return
        del self._peers[peer.boot]
        peer.abandon(reason)
        told = peer.used and not quietly and not self._stopped
        if told and not expected:
            self._n_lost += 1
            log.warning("peer_link_lost boot=%s reason=%s", peer.boot, reason)
        else:
            log.info("peer_link_closed boot=%s reason=%s", peer.boot, reason)
        if told:
            self._tell_lost(peer.boot, reason)
        if peer.candidate is not None:
            self._accepted(peer.candidate)

    def _tell_lost(self, boot: str, reason: str) -> None:
        try:
            self._listener.on_link_lost(boot, reason)
        except Exception:  # other links must not suffer
            log.exception("peer_link_loss_failed boot=%s", boot)

    async def _all_gone(self, patience_s: float) -> None:
        """Wait until the links have ended, at most `patience_s`."""
        loop = asyncio.get_running_loop()
        limit = loop.create_task(self._clock.sleep(patience_s))
        ends = loop.create_task(self._ends())
        try:
            await asyncio.wait({ends, limit}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ends.cancel()
            limit.cancel()
            await asyncio.wait({ends, limit})  # at once

    async def _ends(self) -> None:
        """Wait until the links have ended; the caller bounds it."""
        for link in [*self._links]:
            await link.gone()

    # Time.

    def _look_after(self) -> None:
        if self._ticker is None and not self._stopped:
            self._ticker = _start(self._tick(), self._tasks)

    async def _tick(self) -> None:
        while True:  # unbounded on purpose: until `stop`
            await self._clock.sleep(until_tick_s(self._clock.now(), TICK_S))
            for peer in [*self._peers.values()]:
                try:
                    self._tick_peer(peer)
                except Exception:  # other links must not suffer
                    log.exception("peer_link_tick_failed boot=%s", peer.boot)

    def _tick_peer(self, peer: Conversation) -> None:
        if peer.link is not None:
            self._tick_link(peer, peer.link)
            return
        peer.ticks += 1
        if peer.ticks > DIAL_TICKS:
            self._lose(peer, f"not reached within {DIAL_TICKS * TICK_S:.0f} s")

    def _tick_link(self, peer: Conversation, link: PeerLink) -> None:
        link.tick()
        if link.dropped:
            return  # its end is on its way
        idle = link.dialled and link.idle_ticks >= IDLE_TICKS
        if idle and not self._listener.in_use(peer.boot):
            self._lose(peer, "idle", quietly=True)
        elif peer.candidate is not None:
            peer.candidate.tick()  # one that is never heard ends by itself

    def _is_idle(self, link: PeerLink) -> bool:
        long = link.idle_ticks >= IDLE_TICKS - IDLE_SLACK_TICKS
        return long and not self._listener.in_use(link.boot)


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """Start a task that `tasks` holds until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
