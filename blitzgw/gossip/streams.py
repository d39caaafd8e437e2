"""Gossip's TCP side: whoever connects is made sure of, and exchanges of anti-entropy.

offer ──► answer ──► rest        one record each, then the initiator closes
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from blitzgw.core.rumours import SyncAnswer, SyncOffer, SyncRest
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.crypto.streams import (
    HANDSHAKE_S,
    accept_secure,
    connect_secure,
    receive_record,
    send_record,
)
from blitzgw.errors import BlitzError, ProtocolError
from blitzgw.gossip.events import (
    AnswerSync,
    Event,
    FinishSync,
    StartSync,
    SyncAnswered,
    SyncFailed,
    SyncFinished,
    SyncOffered,
)
from blitzgw.gossip.sockets import can_be_reached
from blitzgw.wire import MESSAGES, dump, parse

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 64
"""Connections whose peer is not known yet; each costs a socket and 1 KiB. The oldest gives way to
the next one: a member needs milliseconds, so a stranger that holds many cannot keep members out."""

ACCEPTS = 16
"""Connections taken per wake-up, so that a flood of them leaves time for packets and timers."""

ACCEPT_PAUSE_S = 0.5
"""Wait where no file descriptor can be had; trying at once again would only burn the processor."""

MAX_TAKEN = 8
"""Exchanges at a time that peers began: each may hold two messages of 16 MiB."""

MAX_BEGUN = 16
"""Exchanges at a time that were begun here: as many as membership begins."""

SYNC_S = 5.0
"""Longest exchange after the handshake, all three messages: what takes longer is tried again."""

_LIMITS = {cls: limit + 1 for _, cls, limit in MESSAGES}
"""Sizes of whole messages, their tags included."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Starts a task that gossip's loop owns: cancelled with it, and its exceptions end it."""


class Listener:
    """Accepts connections, and passes on those whose peer holds a cluster key.

    `on_session(sock, session, purpose)` owns the socket. Counters may be read from any thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        keyring: Keyring,
        boot: str,
        dilation: float,
        spawn: Spawn,
        on_session: Callable[[socket.socket, Session, Purpose], None],
    ) -> None:
        self._sock, self._keyring, self._boot = sock, keyring, boot
        self._dilation, self._spawn, self._on_session = dilation, spawn, on_session
        self._shaking: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self.accepted, self.refused = 0, 0

    def open(self) -> None:
        """Begin to accept."""
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Accept no more; handshakes under way are their loop's to cancel."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                log.warning("gossip_accept_failed error=%s", e)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock)
                loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            self._make_room()
            task = self._spawn(self._shake(sock))
            self._shaking[task] = None
            task.add_done_callback(functools.partial(self._forget, sock))

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self.open()

    def _make_room(self) -> None:
        if len(self._shaking) >= MAX_HANDSHAKES:
            oldest, _ = self._shaking.popitem(last=False)
            oldest.cancel()
            self.refused += 1

    async def _shake(self, sock: socket.socket) -> None:
        try:
            session, purpose = await accept_secure(
                sock, self._keyring, self._boot, HANDSHAKE_S * self._dilation
            )
        except (OSError, BlitzError):  # not logged: any stranger could fill the log
            self.refused += 1
            return
        self.accepted += 1
        self._on_session(sock, session, purpose)

    def _forget(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """Take a handshake off the list; one cancelled before it began has left its socket."""
        self._shaking.pop(task, None)
        if task.cancelled():
            sock.close()


class Exchanges:
    """Runs exchanges of anti-entropy for `Membership`, whose effects complete them.

    `tell` hands it an event; the answering effect comes through `answer` or `finish`, mostly
    before `tell` returns. Exchanges that peers began have negative numbers.
    """

    def __init__(
        self,
        keyring: Keyring,
        boot: str,
        dilation: float,
        spawn: Spawn,
        tell: Callable[[Event], None],
    ) -> None:
        self._keyring, self._boot, self._dilation = keyring, boot, dilation
        self._spawn, self._tell = spawn, tell
        self._replies: dict[int, asyncio.Future[SyncAnswer | SyncRest]] = {}
        self._numbers = itertools.count(-1, -1)
        self._begun, self._taken = 0, 0
        self.done, self.failed = 0, 0

    def start(self, effect: StartSync) -> None:
        """Begin an exchange; its failure is told later, never from within this call."""
        self._spawn(self._initiate(effect))

    def answer(self, effect: AnswerSync) -> None:
        """Send the answer of an exchange; ignored where that has ended."""
        self._reply(effect.exchange, effect.answer)

    def finish(self, effect: FinishSync) -> None:
        """Send the last message of an exchange; ignored where that has ended."""
        self._reply(effect.exchange, effect.rest)

    def take(self, sock: socket.socket, session: Session) -> None:
        """Answer a peer that has connected for an exchange; the socket is closed at its end."""
        if self._taken >= MAX_TAKEN:
            self.failed += 1
            sock.close()
            return
        self._taken += 1
        task = self._spawn(self._serve(sock, session))
        task.add_done_callback(lambda _: self._served(sock))

    def _served(self, sock: socket.socket) -> None:
        self._taken -= 1
        sock.close()

    async def _initiate(self, effect: StartSync) -> None:
        try:
            if self._begun >= MAX_BEGUN or not can_be_reached(effect.address):
                raise ProtocolError("too many exchanges at a time, or no address")
            self._begun += 1
            try:
                await self._exchange(effect)
            finally:
                self._begun -= 1
        except (OSError, BlitzError) as e:
            self.failed += 1
            log.debug("gossip_sync_failed address=%s:%s error=%s", *effect.address, e)
            self._tell(SyncFailed(effect.exchange, effect.address))
        else:
            self.done += 1

    async def _exchange(self, effect: StartSync) -> None:
        sock, session, boot = await connect_secure(
            effect.address, self._keyring, self._boot, Purpose.SYNC, HANDSHAKE_S * self._dilation
        )
        with sock:
            async with asyncio.timeout(SYNC_S * self._dilation):
                await send_record(sock, session, dump(effect.offer))
                answer = await _receive(sock, session, SyncAnswer)
                event = SyncAnswered(effect.exchange, boot, answer)
                rest = await self._ask(effect.exchange, event)
                await send_record(sock, session, dump(rest))

    async def _serve(self, sock: socket.socket, session: Session) -> None:
        exchange = next(self._numbers)
        try:
            async with asyncio.timeout(SYNC_S * self._dilation):
                offer = await _receive(sock, session, SyncOffer)
                answer = await self._ask(exchange, SyncOffered(exchange, offer))
                await send_record(sock, session, dump(answer))
                rest = await _receive(sock, session, SyncRest)
        except (OSError, BlitzError) as e:
            self.failed += 1
            log.debug("gossip_sync_failed boot=%s error=%s", session.peer_boot, e)
            return
        self._tell(SyncFinished(exchange, rest))
        self.done += 1

    async def _ask(self, exchange: int, event: Event) -> SyncAnswer | SyncRest:
        """Tell an event and return what is to be sent; bounded by the exchange's time-out."""
        reply: asyncio.Future[SyncAnswer | SyncRest] = asyncio.get_running_loop().create_future()
        self._replies[exchange] = reply
        try:
            self._tell(event)
            return await reply
        finally:
            del self._replies[exchange]

    def _reply(self, exchange: int, message: SyncAnswer | SyncRest) -> None:
        reply = self._replies.get(exchange)
        if reply is not None and not reply.done():
            reply.set_result(message)


async def _receive(sock: socket.socket, session: Session, kind: type[Any]) -> Any:
    return parse(await receive_record(sock, session, _LIMITS[kind]), {kind})
