"""The parent's end of a worker: its process, its socket, and the news of its death.

    start ──► running ──► (end of connection) ──► exiting ──► gone, `on_death` once
                  └── close() ─────────────────────►┴──────► gone, silently

The connection's end is the only sign of death that is watched: the kernel closes the socket of a
process that exits or is killed, and no other process holds that end. No engine is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

from blitzgw.core.clock import Clock
from blitzgw.core.messages import Start
from blitzgw.errors import ProtocolError, WorkerLost
from blitzgw.wire import FrameBuffer, pack

MAX_UNSENT_BYTES = 64 << 20
"""Bytes that may wait for a worker: the largest step. One that lets more pile up is not alive."""

EXIT_GRACE_S = 2.0
"""How long a worker may take to exit once its connection has ended; a GPU's context is slow."""

EXIT_POLL_S = 0.005
"""How often an exiting process is looked at."""

REAP_S = 10.0
"""Longest wait after SIGKILL, which only a driver stuck in the kernel can exceed."""

HURRIED_REAP_S = 1.0
"""The same for a caller that was cancelled: the event loop stands still meanwhile."""

_STDERR = 2

OnMessage = Callable[[Any], None]
OnDeath = Callable[[WorkerLost], None]


class WorkerHandle(asyncio.Protocol):
    """One worker process. Made by `start`; whoever made it calls `close`, whatever happened."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        clock: Clock,
        on_message: OnMessage,
        on_death: OnDeath,
    ) -> None:
        self.pid = process.pid
        self._process, self._clock = process, clock
        self._on_message, self._on_death = on_message, on_death
        self._frames = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        self._closing = False
        self._undertaker: asyncio.Task[None] | None = None

    @staticmethod
    async def start(
        start: Start,
        clock: Clock,
        *,
        on_message: OnMessage,
        on_death: OnDeath,
    ) -> WorkerHandle:
        """Start a worker with its first message; its `Hello` comes through `on_message` once warm.

        `on_message` and `on_death` are called from the event loop and must not block. `on_death`
        is called at most once, and never after `close`. Raises OSError when no process can be had.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                process = _spawn(theirs)
            except OSError:
                ours.close()
                raise
        handle = WorkerHandle(process, clock, on_message, on_death)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: handle, sock=ours)
        except BaseException:
            if handle._transport is not None:
                handle._transport.abort()
            ours.close()
            _kill(process)
            raise
        handle.post(start)
        return handle

    def post(self, message: Any) -> None:
        """Send a message without waiting. A dead worker's are dropped: its owner is told anyway.

        Raises ProtocolError for a message above its limit. A worker that has left more than
        MAX_UNSENT_BYTES unread is killed.
        """
        frame = pack(message)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.kill(f"left more than {MAX_UNSENT_BYTES} bytes unread")

    def kill(self, reason: str) -> None:
        """Kill the process; its death is reported with this reason."""
        self._reason = self._reason or reason
        if self._process.returncode is None:
            self._process.kill()
        if self._transport is not None:
            self._transport.abort()

    async def close(self, grace_s: float = EXIT_GRACE_S) -> None:
        """End the connection, wait until the process is gone, after `grace_s` kill it.

        Can be called twice. When cancelled, it kills at once.
        """
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        await self._buried(grace_s)
        if self._undertaker is not None:
            await asyncio.wait({self._undertaker})  # bounded: it waits for the same exit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand on the messages that are complete; kill a worker that talks nonsense."""
        try:
            messages = self._frames.feed(data)
        except ProtocolError as error:
            self.kill(f"broke the protocol: {error}")
            return
        for message in messages:
            if self._closing:
                return
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See the process off, then report."""
        if not self._closing:
            self._undertaker = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        await self._buried(EXIT_GRACE_S)
        if not self._closing:
            self._closing = True
            why = self._reason or "ended its connection"
            self._on_death(WorkerLost(f"worker {self.pid} {why}; {self._exit_status()}"))

    async def _buried(self, grace_s: float) -> None:
        """Wait for the exit, at most `grace_s`, then kill; either way nothing is left behind."""
        try:
            if not await self._gone_within(grace_s):
                self._process.kill()
                await self._gone_within(REAP_S)
        except asyncio.CancelledError:
            _kill(self._process)
            raise

    async def _gone_within(self, patience_s: float) -> bool:
        deadline = self._clock.now() + patience_s
        while self._process.poll() is None:
            if self._clock.now() >= deadline:
                return False
            await self._clock.sleep(EXIT_POLL_S)
        return True

    def _exit_status(self) -> str:
        status = self._process.returncode
        if status is None:
            return "it does not exit"
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"


SPIN_COUNT = "2000"
"""Turns that a thread of the worker spins at a barrier before it sleeps, about 40 µs. The default
is milliseconds: on cores shared with this process, spinning keeps the one waited for from running
(measured: prefill of 512 tokens 188 ms instead of 841 with both cores contended)."""


def _spawn(sock: socket.socket) -> subprocess.Popen[bytes]:
    """Start the process in a session of its own, out of reach of a terminal's ^C.

    Its standard output is our standard error, where its log lines belong.
    """
    fd = sock.fileno()
    command = [sys.executable, "-m", "blitzgw.worker", "--fd", str(fd)]
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        command,
        stdin=subprocess.DEVNULL,
        stdout=_STDERR,
        pass_fds=(fd,),
        env={"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ},
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process unless it has gone, and reap it: milliseconds, at most HURRIED_REAP_S."""
    if process.poll() is not None:
        return
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(HURRIED_REAP_S)
