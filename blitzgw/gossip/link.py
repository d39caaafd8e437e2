"""One authenticated, multiplexed connection between two boots, on the node's event loop.

    made ──► open ──► dropped (a reason is set, the transport aborted) ──► ended, told once

Every message travels in a record of its own. Tokens have a flow control of their own: while the
transport holds more than HIGH_WATER_BYTES, they are merged per request (outbox.py) instead of being
queued. Everything else is small or asked for (content is pulled chunk by chunk), so it is queued,
up to MAX_UNSENT_BYTES. A peer beyond that does not read, and the link is dropped. Load reports are
left out while the transport is full, and are no use of a link: they only keep those informed that
use it.

Life is counted in ticks, not in seconds: a tick that comes late because this process stood still
counts once, so a node never takes its own pause for another's silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from blitzgw.core.clock import Clock
from blitzgw.core.peer import Heartbeat, LoadReport, Lost, PlainTokens, Tokens
from blitzgw.core.request import PlainToken
from blitzgw.crypto.records import RecordReader, Session
from blitzgw.errors import ProtocolError
from blitzgw.gossip.outbox import Outbox
from blitzgw.wire import MESSAGES, PEER_MESSAGES, dump, parse, parse_plain

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often a link is looked after: the resolution of all its time-outs, and next to no work."""

BEAT_TICKS = 4
"""A heartbeat each second: a fifth of SILENT_TICKS, so that one slow answer means nothing."""

SILENT_TICKS = 20
"""5 s without a byte: longer than any pause of a working event loop, shorter than patience."""

HIGH_WATER_BYTES = 256 << 10
"""Unsent bytes from which on tokens are merged: one chunk of content, a thousand small frames."""

MERGED_BYTES = 256 << 10
"""Size of a frame of merged tokens: other messages get their turn between two of them."""

MAX_UNSENT_BYTES = 32 << 20
"""Bytes that may wait for a peer: more than the longest prompts of a burst. Beyond, it is gone."""

RISE = 1 / 8
"""How fast the round-trip time follows larger samples; it takes a smaller one at once, because a
busy event loop only ever adds to it."""

USER_TIMEOUT_MS = 10_000
"""When the kernel gives up unacknowledged data: after the heartbeats would have, and for links
whose other end has vanished while nothing is read here."""

MAX_RECORD_BYTES = 1 + max(limit for _, cls, limit in MESSAGES if cls in PEER_MESSAGES)
"""A tag and the largest body of a peer's message."""

_CONGESTION_NAME_BYTES = 16


OnPlain = Callable[[str, list[PlainToken]], None]


class LinkOwner(Protocol):
    """Who is told of a link: `Links`."""

    def link_made(self, link: PeerLink) -> None:
        """The transport is there."""

    def link_spoke(self, link: PeerLink, message: Any) -> None:
        """A message has arrived; heartbeats, which are answered already, are told as well."""

    def link_ended(self, link: PeerLink, reason: str) -> None:
        """The connection has ended; told once, and never from within a call of this class."""


class PeerLink(asyncio.Protocol):
    """A connection to the process that the session names; `dialled` here or accepted."""

    def __init__(self, session: Session, clock: Clock, owner: LinkOwner, *, dialled: bool) -> None:
        self.boot, self.dialled = session.peer_boot, dialled
        self.rtt_s: float | None = None
        self.idle_ticks = 0
        self.used = False
        self.merged_events = 0
        self.on_plain: OnPlain | None = None
        """Takes the boot id and plain tokens, which come with every step; None: as other messages.

        The owner sets it, and unsets it when nothing is to be heard any more.
        """
        self._session, self._clock, self._owner = session, clock, owner
        self._reader = RecordReader(session, MAX_RECORD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._outbox = Outbox()
        self._attached = self._paused = self._finished = False
        self._reason = ""
        self._ticks = self._silent_ticks = 0
        self._gone = asyncio.Event()

    @property
    def dropped(self) -> bool:
        """Whether it has been given up: what is sent now gets nowhere."""
        return bool(self._reason)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the peer to read, merged tokens among them."""
        if self._transport is None:
            return 0
        queued: int = self._transport.get_write_buffer_size()
        return queued + self._outbox.size_bytes

    async def attach(self, sock: socket.socket) -> None:
        """Put the link on a connected socket, which is the link's from now on.

        Not to be cancelled, nor is the transport aborted in between: until the loop has taken the
        socket over, two would close it. It takes two of the loop's turns.
        """
        try:
            sock.setblocking(False)
            tune(sock)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except OSError as error:
            sock.close()
            self.connection_lost(error)
            return
        self._attached = True
        if self._reason and self._transport is not None:
            self._transport.abort()

    def send(self, message: Any) -> None:
        """Send a message without waiting. Raises ProtocolError for one above its limit.

        What a dropped link is given is lost with it, as its owner will be told.
        """
        if self._paused and isinstance(message, PlainTokens | Tokens):
            events = message.events
            self.merged_events += len(events)
            self._used()
            self._outbox.add(events)
            self._check_unsent()
            return
        if isinstance(message, LoadReport):
            if not self._paused:  # else a later one will tell more
                self._write(dump(message))
            return
        data = dump(message)
        if self._outbox and isinstance(message, Lost):
            self._flush()  # tokens that are there are worth having before the rest is lost
        self.write(data)

    def write(self, data: bytes) -> None:
        """Send a message that `wire.dump` has encoded."""
        self._used()
        self._write(data)

    def beat(self) -> None:
        """Ask for a sign of life, which also measures the round trip."""
        self._write(dump(Heartbeat(self._clock.now())))

    def tick(self) -> None:
        """Look after the link; called every TICK_S."""
        self._ticks += 1
        self._silent_ticks += 1
        self.idle_ticks += 1
        if self._silent_ticks > SILENT_TICKS:
            self.drop(f"no sign of life for {SILENT_TICKS * TICK_S:.0f} s")
        elif self._ticks % BEAT_TICKS == 0:
            self.beat()

    def drop(self, reason: str) -> None:
        """Give the connection up at once; the first reason stands."""
        if self._reason:
            return
        self._reason = reason
        self._outbox = Outbox()
        if self._transport is not None and self._attached:
            self._transport.abort()

    def finish(self) -> None:
        """Send what waits and end our direction; the peer's end follows when it has read it."""
        if self._transport is None or self._reason or self._finished:
            return
        self._flush()
        self._finished = True
        with contextlib.suppress(OSError, RuntimeError):  # the connection may be ending by itself
            self._transport.write_eof()

    async def gone(self) -> None:
        """Wait until the connection has ended; after `drop` that is the loop's next turns."""
        await self._gone.wait()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._owner.link_made(self)

    def data_received(self, data: bytes) -> None:
        """Hand on the messages that are complete; drop a peer that talks nonsense."""
        self._silent_ticks = 0
        try:
            for record in self._reader.feed(data):
                if self._reason:
                    return
                on_plain = self.on_plain
                tokens = None if on_plain is None else parse_plain(record)
                if tokens is None or on_plain is None:
                    self._take(parse(record, PEER_MESSAGES))
                else:  # this runs for every step
                    self.used, self.idle_ticks = True, 0
                    on_plain(self.boot, tokens)
        except ProtocolError as error:
            self.drop(f"broke the protocol: {error}")
        except Exception:  # whatever it was about would hang; with the link it is tried elsewhere
            log.exception("peer_message_failed boot=%s", self.boot)
            self.drop("a message could not be handled")

    def pause_writing(self) -> None:
        """Begin to merge tokens."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what was merged, as far as there is room again."""
        self._paused = False
        while self._outbox and not self._paused and not self._reason:
            self._write(dump(Tokens(self._outbox.take(MERGED_BYTES))))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        if self._gone.is_set():
            return
        self._reason = self._reason or (f"broke: {exc}" if exc else "the peer closed it")
        self._gone.set()
        self._owner.link_ended(self, self._reason)

    def _take(self, message: Any) -> None:
        if isinstance(message, Heartbeat):
            if message.echo:
                self._measure(self._clock.now() - message.sent_s)
            else:
                self._write(dump(Heartbeat(message.sent_s, echo=True)))
        elif not isinstance(message, LoadReport):
            self._used()
        self._owner.link_spoke(self, message)

    def _measure(self, sample_s: float) -> None:
        if sample_s < 0:
            return  # not a time that was sent from here
        if self.rtt_s is None or sample_s < self.rtt_s:
            self.rtt_s = sample_s
        else:
            self.rtt_s += (sample_s - self.rtt_s) * RISE

    def _used(self) -> None:
        self.used = True
        self.idle_ticks = 0

    def _flush(self) -> None:
        while self._outbox and not self._reason:
            self._write(dump(Tokens(self._outbox.take(MERGED_BYTES))))

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._reason or self._finished:
            return
        self._transport.write(self._session.seal(data))
        if self._paused:
            self._check_unsent()

    def _check_unsent(self) -> None:
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            self.drop(f"left more than {MAX_UNSENT_BYTES} bytes unread")


def tune(sock: socket.socket) -> None:
    """Set a link's socket options where this system has them. Other families are left alone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    with contextlib.suppress(OSError, AttributeError):
        option = socket.TCP_CONGESTION
        present = sock.getsockopt(socket.IPPROTO_TCP, option, _CONGESTION_NAME_BYTES)
        if present.startswith(b"bbr"):  # it paces loopback and small round trips to a third
            sock.setsockopt(socket.IPPROTO_TCP, option, b"cubic")
