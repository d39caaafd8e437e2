"""The least that streaming can cost: a uvloop process that writes bytes to sockets, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
from collections.abc import Iterator
from typing import cast

import uvloop

from tests.support.gateway import END


class Pump:
    """Once `streams` clients have asked, writes a chunk to each of them in every tick."""

    def __init__(self, streams: int, ticks: int, chunk: bytes, tick_s: float) -> None:
        self._streams, self._ticks, self._chunk, self._tick_s = streams, ticks, chunk, tick_s
        self._transports: list[asyncio.Transport] = []

    def asked(self, transport: asyncio.Transport) -> None:
        self._transports.append(transport)
        if len(self._transports) == self._streams:
            self._tick(self._ticks)

    def _tick(self, left: int) -> None:
        for transport in self._transports:
            transport.write(self._chunk)
        if left > 1:
            asyncio.get_running_loop().call_later(self._tick_s, self._tick, left - 1)
            return
        for transport in self._transports:  # what the client checks at the end of an answer
            transport.write(b'"completion_tokens":%d,' % self._ticks + END)


class Connection(asyncio.Protocol):
    """Tells the pump of a client's request."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._pump.asked(self._transport)


def _run(sock: socket.socket, pump: Pump) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(pump), sock=sock)
        await server.serve_forever()  # until it is killed

    uvloop.run(serve())


@contextlib.contextmanager
def pumping(
    streams: int, ticks: int, size_bytes: float, tick_s: float
) -> Iterator[tuple[int, int]]:
    """Run a pump in a process; yield its process id and port. No event loop may run here."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        pump = Pump(streams, ticks, b"x" * round(size_bytes), tick_s)
        # forked: a script without .py cannot be imported by a spawned child
        process = multiprocessing.get_context("fork").Process(target=_run, args=(sock, pump))
        process.start()
        try:
            yield cast("int", process.pid), sock.getsockname()[1]
        finally:
            process.kill()
            process.join()
