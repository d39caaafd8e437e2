"""A wire over TCP: a blocking socket for threads, straight into and out of the buffers.

Blocking calls in threads move bulk data at two to three times the rate of an event loop's streams,
for half of the processor time: the kernel copies into the destination, once per megabyte.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from blitzgw.crypto.edges import EDGE_ANSWER_BYTES, EdgeDialler
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import STALL_S, ChannelLost

CONGESTION: Final = b"cubic"
"""Senders that pace themselves (BBR) reach a third of this on loopback and between containers."""

NOTSENT_LOWAT_BYTES = 256 << 10
"""How much a socket may hold that the network has not taken: what is more urgent waits for it where
both share a link. Less, and the writer wakes up too late to keep a fast link full."""

HELLO_S = 2.0
"""Patience for the handshake: two round trips, at either end."""


class TcpWire:
    """A base.Wire over a connected socket, which is its own from here on."""

    def __init__(
        self, sock: socket.socket, stall_s: float = STALL_S, path_s: float | None = None
    ) -> None:
        self._sock = sock
        self._stall_s = stall_s
        tune(sock, stall_s, stall_s if path_s is None else path_s)

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write all of it: bounded by the patience for each byte, not for the whole."""
        try:
            rest = self._sock.sendmsg(parts) if len(parts) > 1 else 0
            for part in parts:
                if rest >= len(part):
                    rest -= len(part)
                else:
                    self._sock.sendall(memoryview(part)[rest:])
                    rest = 0
        except OSError as e:
            raise self._lost(e) from e

    def read_into(self, view: memoryview) -> None:
        """Fill a buffer: bounded by the patience for each byte, not for the whole."""
        at = 0
        try:
            while at < len(view):
                n_read = self._sock.recv_into(view[at:], 0, socket.MSG_WAITALL)
                if n_read == 0:
                    raise ChannelLost("the peer has ended the connection")
                at += n_read
        except OSError as e:
            raise self._lost(e) from e

    def poll(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or the end; return whether there is."""
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
            return bool(poll.poll(timeout_s * 1000))
        except (OSError, ValueError) as e:
            raise ChannelLost("the connection is closed") from e

    def lost(self) -> bool:
        """Whether the peer has ended the connection, as far as the kernel knows."""
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def end(self) -> None:
        """End both streams; who reads or writes is woken, and what was written still goes."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End both streams and free the socket: no thread may be about to use its number."""
        self.end()
        self._sock.close()

    def _lost(self, error: OSError) -> ChannelLost:
        if isinstance(error, BlockingIOError):
            return ChannelLost(f"the peer has not moved for {self._stall_s:g} s")
        return ChannelLost(f"the connection is lost: {error.strerror or error}")


def tune(sock: socket.socket, stall_s: float, path_s: float) -> None:
    """Make a socket blocking and set its options; those that this kernel lacks are left.

    `stall_s` bounds each call, `path_s` how long bytes may go unacknowledged.
    """
    sock.setblocking(True)
    _prefer_cubic(sock)
    timeout = _timeval(stall_s)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, _option("TCP_NOTSENT_LOWAT", 25), NOTSENT_LOWAT_BYTES),
        (socket.IPPROTO_TCP, _option("TCP_USER_TIMEOUT", 18), int(path_s * 1000)),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, _option("TCP_KEEPIDLE", 4), max(1, int(stall_s / 2))),
        (socket.IPPROTO_TCP, _option("TCP_KEEPINTVL", 5), 1),
        (socket.IPPROTO_TCP, _option("TCP_KEEPCNT", 6), 3),
        (socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout),
        (socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout),
    ):
        with suppress(OSError):
            sock.setsockopt(level, option, value)


def dial(
    address: tuple[str, int], edge: str, key: bytes, timeout_s: float
) -> tuple[socket.socket, Session]:
    """Connect to the sender of an edge and shake hands.

    Raises ConnectionRefusedError where nobody listens, ChannelLost where the peer cannot be
    reached in time or does not know the edge (yet), ProtocolError where it answers wrongly.
    """
    handshake = EdgeDialler(edge, key)
    try:
        sock = socket.create_connection(address, timeout_s)
    except ConnectionRefusedError:
        raise
    except OSError as e:
        raise ChannelLost(f"cannot connect: {e.strerror or e}") from e
    try:
        sock.settimeout(HELLO_S)
        sock.sendall(handshake.hello)
        return sock, handshake.finish(_read(sock, EDGE_ANSWER_BYTES))
    except OSError as e:
        sock.close()
        raise ChannelLost(f"no answer to the hello: {e.strerror or e}") from e
    except (ChannelLost, ProtocolError):
        sock.close()
        raise


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ChannelLost("the peer does not know the edge")
        data += part
    return data


def _prefer_cubic(sock: socket.socket) -> None:
    option = _option("TCP_CONGESTION", 13)
    with suppress(OSError):
        if sock.getsockopt(socket.IPPROTO_TCP, option, 16).rstrip(b"\0") != CONGESTION:
            sock.setsockopt(socket.IPPROTO_TCP, option, CONGESTION)


def _option(name: str, number: int) -> int:
    """Return a socket option that this Python may not name; the number is Linux's."""
    return int(getattr(socket, name, number))


def _timeval(seconds: float) -> bytes:
    """Return a struct timeval: two native longs."""
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1e6))
