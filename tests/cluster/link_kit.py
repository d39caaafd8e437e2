"""Ends of peer links in one event loop, over real sockets and with the real handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.peer import Abort, PlainTokens
from blitzgw.core.request import GenerationRequest, PlainToken, SamplingParams, TokenEvent
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.crypto.streams import accept_secure, connect_secure
from blitzgw.gossip.link import PeerLink
from blitzgw.gossip.links import Links

KEYRING = Keyring(["k" * 40])
LOW, HIGH = "00" * 8, "ff" * 8
FAST = 0.02
"""Dilation at which five seconds of silence take a tenth."""

LIMIT_S = 20.0


def both_loops(test: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Run a test on asyncio's loop and on uvloop's."""

    def run(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(test(), LIMIT_S))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    factories = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("factory", factories, ids=["asyncio", "uvloop"])(run)


async def until(condition: Callable[[], Any], limit_s: float = 8.0) -> None:
    """Wait until a condition holds; fail where it does not within `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


class Recorder:
    """A link listener that remembers."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.ups: list[str] = []
        self.losses: list[tuple[str, str]] = []
        self.busy = False
        self.react: Callable[[str, Any], None] | None = None
        self.mourn: Callable[[str], None] | None = None

    def on_plain(self, boot: str, tokens: list[PlainToken]) -> None:
        self.on_message(boot, PlainTokens(tokens))

    def on_message(self, boot: str, message: Any) -> None:
        self.messages.append(message)
        if self.react is not None:
            self.react(boot, message)

    def on_link_up(self, boot: str) -> None:
        self.ups.append(boot)

    def on_link_lost(self, boot: str, reason: str) -> None:
        self.losses.append((boot, reason))
        if self.mourn is not None:
            self.mourn(boot)

    def in_use(self, boot: str) -> bool:
        return self.busy


class End:
    """One process' end: a listening socket, and its links."""

    def __init__(self, boot: str, listener: Any = None, dilation: float = 1.0) -> None:
        self.boot = boot
        self.seen = listener or Recorder()
        self.clock = MonotonicClock(dilation)
        self.links = Links(boot, self.dial, self.clock, self.seen)
        self.delay_s = 0.0
        self.dials = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> End:
        self._spawn(self._accept())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.links.stop()
        await self.links.stop()
        for task in [*self._tasks]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._socket.close()

    def link(self, boot: str) -> PeerLink:
        """The established link to a peer."""
        link = self.links._peers[boot].link
        assert link is not None
        return link

    async def dial(self, address: tuple[str, int]) -> tuple[socket.socket, Session, str]:
        self.dials += 1
        return await connect_secure(address, KEYRING, self.boot, Purpose.LINK)

    def say(self, peer: End, number: int = 0) -> None:
        """Send a small message that can be told from others."""
        self.links.send(peer.boot, peer.address, Abort("r", number))

    def heard(self) -> list[int]:
        """The numbers of the messages that `say` has sent here."""
        return [m.attempt for m in self.seen.messages if isinstance(m, Abort)]

    def hush(self) -> None:
        """Accept no more connections."""
        for task in [*self._tasks]:
            task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._socket)
            self._spawn(self._welcome(sock))

    async def _welcome(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            session, _ = await accept_secure(sock, KEYRING, self.boot)
            try:
                await asyncio.sleep(self.delay_s)
            except asyncio.CancelledError:
                sock.close()
                raise
            self.links.accept(sock, session, session.peer_boot)


def event(request_id: str, *tokens: int, attempt: int = 0, **more: Any) -> TokenEvent:
    return TokenEvent(request_id, attempt, list(tokens), **more)


def request(request_id: str, attempt: int = 0, prompt: int = 10) -> GenerationRequest:
    return GenerationRequest(
        request_id, "m", tuple(range(prompt)), prompt, SamplingParams(100), attempt=attempt
    )
