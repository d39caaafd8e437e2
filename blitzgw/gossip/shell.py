"""Gossip as the node sees it: a thread that keeps up membership, whatever else the node does.

node's event loop                                    gossip's thread
publish, link_broke ──► ToGossip ──(one call)──► GossipLoop ──► Membership
on_effects ◄──(one call)── ToNode ◄────────────── effects for the node
on_link ◄──── a connection for a peer link, handshake done
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from blitzgw.configfile.cluster import split_address
from blitzgw.core.clock import Clock
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.gossip.crossing import News, ToGossip, ToNode
from blitzgw.gossip.events import Address, Departed
from blitzgw.gossip.loop import GossipLoop
from blitzgw.gossip.seeds import Seeds
from blitzgw.gossip.sockets import bind_both
from blitzgw.gossip.terms import Decider, GossipSettings, GossipStatistics

log = logging.getLogger(__name__)

MAX_LINKS_WAITING = 256
"""Connections that may wait for the node's event loop; peers whose link is refused try again."""

STOP_S = 5.0
"""Longest wait for the thread's end: it is in the middle of one event at most."""

OnEffects = Callable[[list[News]], None]
OnLink = Callable[[socket.socket, Session, str], None]
OnFailure = Callable[[BaseException], None]


class GossipThread:
    """Runs membership in a thread of its own; everything here is for the node's event loop.

    `make` gets the address that peers will use and returns the membership. `on_effects` is told
    members, state and departure in order, merged where the node was slow; `on_link` gets a
    connected socket, its session and the peer's boot id, and owns them. `on_failure` is told once
    if the thread ends by itself, with what it raised. All three are called from the node's event
    loop and must not block.
    """

    def __init__(
        self,
        settings: GossipSettings,
        keyring: Keyring,
        clock: Clock,
        make: Callable[[Address], Decider],
        *,
        on_effects: OnEffects,
        on_link: OnLink,
        on_failure: OnFailure,
    ) -> None:
        self._settings, self._keyring, self._clock, self._make = settings, keyring, clock, make
        self._on_effects, self._on_link, self._on_failure = on_effects, on_link, on_failure
        self._to_gossip, self._to_node = ToGossip(), ToNode()
        self._main: asyncio.AbstractEventLoop | None = None
        self._core: GossipLoop | None = None
        self._thread: threading.Thread | None = None
        self._departed, self._gone = asyncio.Event(), asyncio.Event()
        self._links_lock = threading.Lock()
        self._links_waiting = 0
        self._stopped = False

    async def start(self) -> int:
        """Bind and begin; return the port, which is the same for UDP and TCP.

        Raises OSError where the address cannot be had, ValueError for a seed that cannot be
        meant. To be called once; `stop` ends what it began.
        """
        if self._thread is not None:
            raise RuntimeError("gossip was started already")
        settings = self._settings
        udp, tcp, port = bind_both(settings.host, settings.port)
        try:
            own = (settings.advertise[0] or settings.host, settings.advertise[1] or port)
            names = [(host, seed or port) for host, seed in map(split_address, settings.join)]
            self._main = asyncio.get_running_loop()
            self._core = GossipLoop(
                settings,
                self._make(own),
                (udp, tcp),
                lambda tell: Seeds(names, {own, (settings.host, port)}, self._clock, tell),
                self._keyring,
                self._clock,
                self._put,
                self._hand_over,
            )
            self._core.loop.call_soon(self._take)  # what was published before
            self._thread = threading.Thread(target=self._run, name="gossip", daemon=True)
            self._thread.start()
        except BaseException:
            udp.close()
            tcp.close()
            if self._core is not None:
                self._core.loop.close()
                self._core = None
            raise
        log.info("gossip_listening host=%s port=%s boot=%s", settings.host, port, settings.boot)
        return port

    def publish(self, entries: Mapping[str, bytes | None]) -> None:
        """Change entries of this node's state; None removes one. From any thread."""
        if self._to_gossip.publish(entries):
            self._call(self._take)

    def link_broke(self, boot: str) -> None:
        """Have a member looked after at once, because its peer link broke. From any thread."""
        if self._to_gossip.link_broke(boot):
            self._call(self._take)

    async def leave(self, patience_s: float) -> bool:
        """Tell the others that this node goes; return whether that was done in time.

        What was published before goes out before. Returns at once where gossip does not run.
        """
        if self._core is None or self._gone.is_set():
            return False
        self._call(self._take)
        self._call(self._core.leave)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s * self._settings.dilation):
                await self._departed.wait()
        return self._departed.is_set()

    async def stop(self) -> None:
        """End the thread and close its sockets, without telling the others. Can be called twice.

        Nothing is called back afterwards.
        """
        self._stopped = True
        if self._core is None or self._thread is None:
            return
        self._call(self._core.end)
        try:
            async with asyncio.timeout(STOP_S):
                await self._gone.wait()
        except TimeoutError:
            log.warning("gossip_does_not_end after_s=%s", STOP_S)
            return
        self._thread.join(STOP_S)  # its last act was to say that it is gone

    def statistics(self) -> GossipStatistics | None:
        """Return the figures; None before the start. From any thread."""
        return None if self._core is None else self._core.statistics()

    # On gossip's thread.

    def _run(self) -> None:
        assert self._core is not None
        failure: BaseException | None = None
        try:
            self._core.run()
        except BaseException as e:  # the thread's outermost frame: whatever it is, it is told
            log.exception("gossip_failed")
            failure = e
        self._call_main(self._ended, failure)

    def _take(self) -> None:
        assert self._core is not None
        self._core.take(self._to_gossip)

    def _put(self, news: News) -> None:
        if self._to_node.put(news):
            self._call_main(self._deliver)

    def _hand_over(self, sock: socket.socket, session: Session) -> None:
        with self._links_lock:
            full = self._links_waiting >= MAX_LINKS_WAITING
            self._links_waiting += not full
        if full or not self._call_main(self._take_link, sock, session):
            sock.close()

    # On the node's event loop.

    def _deliver(self) -> None:
        news = self._to_node.take()
        if any(isinstance(item, Departed) for item in news):
            self._departed.set()
        if news and not self._stopped:
            self._on_effects(news)

    def _take_link(self, sock: socket.socket, session: Session) -> None:
        with self._links_lock:
            self._links_waiting -= 1
        if self._stopped:
            sock.close()
            return
        try:
            self._on_link(sock, session, session.peer_boot)
        except BaseException:
            sock.close()
            raise

    def _ended(self, failure: BaseException | None) -> None:
        self._gone.set()
        if failure is not None and not self._stopped:
            self._on_failure(failure)

    def _call(self, callback: Callable[[], None]) -> None:
        """Have something called on gossip's thread; where that has ended, nothing happens."""
        if self._core is not None:
            with contextlib.suppress(RuntimeError):
                self._core.loop.call_soon_threadsafe(callback)

    def _call_main(self, callback: Callable[..., None], *args: Any) -> bool:
        """Have something called on the node's event loop; return False where that is closed."""
        assert self._main is not None
        try:
            self._main.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return False
        return True
