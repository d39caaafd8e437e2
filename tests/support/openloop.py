"""Open-loop load over keep-alive connections, and clients that nobody wishes for."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

from tests.support.gateway import CONTENT, END, KEPT_BYTES, chat, usage

CONNECT_S = 10.0
PATIENCE_S = 60.0
"""For what is under way when the last request has been sent."""

RECEIVE_BYTES = 4096
"""Of a slow reader's socket buffer, so that the kernel does not read for it."""


@dataclass
class Outcome:
    """One request, in seconds from when it was sent; `late_s` after it was due.

    `status` is 0 where no whole answer came. A stream is `cut` where it ends without all that was
    asked for.
    """

    late_s: float = 0.0
    status: int = 0
    first_s: float = 0.0
    over_s: float = 0.0
    cut: bool = False
    gaps_s: list[float] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.lost = False
        self._outcome: Outcome | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, n_tokens: int, outcome: Outcome) -> asyncio.Future[None]:
        """Send a request for so many tokens; the future is done with the answer."""
        self._outcome, self._n_tokens, self._tail = outcome, n_tokens, b""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent = self._last = time.perf_counter()
        self.transport.write(request)
        return self._over

    def data_received(self, data: bytes) -> None:
        outcome, now = self._outcome, time.perf_counter()
        if outcome is None:
            return
        if not outcome.status:
            outcome.status = int(data[9:12])
        self._tail = (self._tail + data)[-KEPT_BYTES:]
        if outcome.status != 200:
            head, _, body = self._tail.partition(b"\r\n\r\n")
            if len(body) >= _content_length(head):
                self._end(now)
            return
        if not outcome.first_s:
            if CONTENT not in self._tail:
                return
            outcome.first_s = now - self._sent
        else:
            outcome.gaps_s.append(now - self._last)
        self._last = now
        if data.endswith(END):
            outcome.cut = b"[DONE]" not in self._tail or (
                usage(self._tail, "completion_tokens") != self._n_tokens
            )
            self._end(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._outcome is not None:
            self._outcome.cut = self._outcome.status in (0, 200)
            self._end(time.perf_counter())

    def _end(self, now: float) -> None:
        assert self._outcome is not None
        self._outcome.over_s = now - self._sent
        self._outcome = None
        self._over.set_result(None)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 1 << 30


class Load:
    """Requests for `n_tokens` each to a port, each over the first connection that is free."""

    def __init__(self, port: int, prompt: str, n_tokens: int) -> None:
        self._port, self._n_tokens = port, n_tokens
        self._request = chat(prompt, n_tokens)
        self._idle: list[Connection] = []

    async def close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()

    async def warm(self, count: int) -> None:
        """Make connections beforehand, so that none is made while time counts."""
        self._idle += [await self._connect() for _ in range(count)]

    async def one(self, outcome: Outcome) -> None:
        """Ask once, and wait for the whole answer."""
        connection = self._idle.pop() if self._idle else await self._connect()
        while connection.lost:
            connection = self._idle.pop() if self._idle else await self._connect()
        await connection.ask(self._request, self._n_tokens, outcome)
        if not connection.lost:
            self._idle.append(connection)

    async def closed(self, clients: int, duration_s: float) -> list[Outcome]:
        """Let so many clients ask, each again as soon as it has been answered."""
        outcomes: list[Outcome] = []
        deadline = time.perf_counter() + duration_s

        async def client() -> None:
            while time.perf_counter() < deadline:
                outcome = Outcome()
                await self.one(outcome)
                if time.perf_counter() <= deadline:
                    outcomes.append(outcome)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return outcomes

    async def open(self, per_s: float, duration_s: float, seed: int) -> list[Outcome]:
        """Ask at random moments (Poisson), whatever has become of those before.

        What has not been answered PATIENCE_S after the last has been sent keeps the status 0, or
        is cut.
        """
        dice, asked = random.Random(seed), {}
        start = due = time.perf_counter()
        while (due := due + dice.expovariate(per_s)) - start <= duration_s:
            if (wait_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            outcome = Outcome(late_s=max(0.0, time.perf_counter() - due))
            asked[asyncio.ensure_future(self.one(outcome))] = outcome
        done, late = await asyncio.wait(asked, timeout=PATIENCE_S) if asked else ((), ())
        for task in late:
            task.cancel()
            asked[task].cut = asked[task].status == 200
        for task in done:
            task.result()
        return list(asked.values())

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        return connection


# Those that nobody wishes for. Each holds its connections until the context is left.


@contextlib.asynccontextmanager
async def idle(port: int, count: int) -> AsyncIterator[None]:
    """Connect, and say nothing."""
    async with _holding(port, [b""] * count):
        yield


@contextlib.asynccontextmanager
async def half_sent(port: int, count: int) -> AsyncIterator[None]:
    """Send the beginning of a header, or all headers and the beginning of a body."""
    request = chat("Hello", 4)
    body_at = request.index(b"\r\n\r\n") + 4
    pieces = [request[: body_at - 30], request[: body_at + 20]]
    async with _holding(port, [pieces[i % 2] for i in range(count)]):
        yield


@contextlib.asynccontextmanager
async def slow_readers(port: int, count: int, n_tokens: int) -> AsyncIterator[None]:
    """Ask for streams, and read one byte a second of each."""
    request = chat("Tell me everything.", n_tokens)
    async with _holding(port, [request] * count) as sockets:
        readers = [asyncio.ensure_future(_sip(one)) for one in sockets]
        try:
            yield
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


@contextlib.asynccontextmanager
async def _holding(port: int, sent: list[bytes]) -> AsyncIterator[list[socket.socket]]:
    loop, sockets = asyncio.get_running_loop(), []
    try:
        for data in sent:
            one = socket.socket()
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            one.setblocking(False)
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(one, ("127.0.0.1", port))
                await loop.sock_sendall(one, data)
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def _sip(one: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(one, 1):
            await asyncio.sleep(1.0)
