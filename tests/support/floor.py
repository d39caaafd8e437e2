"""The least that streaming can cost on aiohttp: a push loop, and nothing behind it.

One callback per tick writes chunks formatted beforehand to each transport. No tokens, no text, no
bounds: what a gateway costs beyond this is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop
from aiohttp import web

from tests.support.gateway import CONTENT

ROOT = Path(__file__).resolve().parent.parent.parent
BACKLOG = 1024
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8"}


class Pump:
    """Writes `ticks` chunks to each stream, one a tick, and then the number that a client reads."""

    def __init__(self, ticks: int, size_bytes: int, tick_s: float) -> None:
        head = b"%x\r\n" % size_bytes + CONTENT
        self._chunk = head + b"x" * (size_bytes - len(head) - 2) + b"\r\n"
        self._opening = CONTENT + b"x" * size_bytes
        self._ticks, self._tick_s = ticks, tick_s
        self._now = 0
        self._running = False
        self._open: dict[asyncio.Transport, asyncio.Future[None]] = {}
        self._ends: defaultdict[int, list[asyncio.Transport]] = defaultdict(list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stream to one client."""
        await request.read()
        response = web.StreamResponse(headers=HEADERS)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(self._opening)
        loop, transport = asyncio.get_running_loop(), cast("asyncio.Transport", request.transport)
        self._open[transport] = done = loop.create_future()
        self._ends[self._now + self._ticks].append(transport)
        if not self._running:
            self._running = True
            loop.call_later(self._tick_s, self._tick)
        try:
            await done
        finally:
            self._open.pop(transport, None)
        await response.write_eof(b'"completion_tokens":%d,' % self._ticks)
        return response

    def _tick(self) -> None:
        self._now += 1
        for transport in self._open:
            if not transport.is_closing():
                transport.write(self._chunk)
        for transport in self._ends.pop(self._now, ()):
            done = self._open.pop(transport, None)
            if done is not None:
                done.set_result(None)
        self._running = bool(self._open)
        if self._running:
            asyncio.get_running_loop().call_later(self._tick_s, self._tick)


async def _serve(sock: socket.socket, pump: Pump) -> None:
    server = web.Server(pump.answer, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=BACKLOG).start()
    sys.stdout.write("\n")
    sys.stdout.flush()
    await asyncio.Event().wait()  # until it is killed


@contextlib.contextmanager
def pumping(ticks: int, size_bytes: float, tick_s: float) -> Iterator[tuple[int, int]]:
    """Run a pump in a process; yield its process id and port. No event loop may run here."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as sock:
        numbers = [sock.fileno(), ticks, round(size_bytes), tick_s]
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, numbers)],
            pass_fds=[sock.fileno()],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it has begun: what its start takes is not of interest
            yield process.pid, sock.getsockname()[1]
        finally:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    fd, *sizes, pause = sys.argv[1:]
    uvloop.run(_serve(socket.socket(fileno=int(fd)), Pump(*map(int, sizes), float(pause))))
