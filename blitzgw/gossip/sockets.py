"""The two sockets of gossip, UDP and TCP on one port, and the datagrams in and out of them."""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
from collections.abc import Callable

from blitzgw.gossip.events import Address

BATCH = 64
"""Datagrams taken per wake-up: 2 ms of work at most, then timers and connections get their turn."""

RECEIVE_BUFFER_BYTES = 1 << 20
"""Asked of the kernel: a burst of some hundred packets may arrive while this thread cannot run."""

MAX_DATAGRAM_BYTES = 65_536
"""What a UDP socket can deliver at most: nothing is cut off unseen."""

BACKLOG = 128
"""Connections that may wait to be accepted: a cluster that joins all at once."""

PORT_ATTEMPTS = 32
"""Tries to find a port that is free for UDP and TCP alike; each fails rarely."""

KNOWN_HOSTS = 4096
"""Addresses whose text has been looked at: more than a cluster has members."""

_MAPPED = "::ffff:"


def bind_both(host: str, port: int) -> tuple[socket.socket, socket.socket, int]:
    """Return (UDP socket, listening TCP socket, port), bound to one address; port 0: a free one.

    `host` is an IPv4 or IPv6 address; "::" takes both. Raises OSError where it cannot be bound.
    """
    for _ in range(PORT_ATTEMPTS if port == 0 else 1):
        listener = _bind(host, port, socket.SOCK_STREAM)
        found = int(listener.getsockname()[1])
        try:
            datagrams = _bind(host, found, socket.SOCK_DGRAM)
        except OSError as e:
            listener.close()
            if e.errno != errno.EADDRINUSE:
                raise
            continue
        return datagrams, listener, found
    raise OSError(errno.EADDRINUSE, f"{host}: UDP port {port or 'of any number'} is in use")


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        sock.setblocking(False)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


@functools.lru_cache(maxsize=KNOWN_HOSTS)
def address_version(host: str) -> int:
    """Return 4 or 6 for an IP address in text, 0 for anything else.

    What peers name as a host is asked of this first: the kernel's calls would look a name up, and
    stand still meanwhile.
    """
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def can_be_reached(address: Address) -> bool:
    """Whether that is an IP address and a port that something can be sent to."""
    return address_version(address[0]) != 0 and 0 < address[1] < 1 << 16


class DatagramSocket:
    """A non-blocking UDP socket: what arrives goes to `on_datagram`, what cannot be sent is lost.

    The counters are for reading from any thread.
    """

    def __init__(self, sock: socket.socket, on_datagram: Callable[[bytes, Address], None]) -> None:
        self.sock, self._on_datagram = sock, on_datagram
        self._maps = sock.family == socket.AF_INET6
        self.packets_in, self.packets_out = 0, 0
        self.bytes_in, self.bytes_out = 0, 0
        self.unsent = 0

    def drain(self) -> None:
        """Take what has arrived, BATCH datagrams at most: the event loop calls again for more."""
        for _ in range(BATCH):
            try:
                data, sender = self.sock.recvfrom(MAX_DATAGRAM_BYTES)
            except OSError:  # nothing left, or an ICMP message about something sent before
                return
            self.packets_in += 1
            self.bytes_in += len(data)
            host = sender[0]
            if self._maps and host.startswith(_MAPPED):
                host = host[len(_MAPPED) :]
            self._on_datagram(data, (host, sender[1]))

    def send(self, data: bytes, address: Address) -> None:
        """Send a datagram, or count it as unsent: gossip expects losses and makes up for them."""
        host, port = address
        if not can_be_reached(address):
            self.unsent += 1
            return
        if self._maps and address_version(host) == 4:
            host = _MAPPED + host
        try:
            self.sock.sendto(data, (host, port))
        except OSError:
            self.unsent += 1
            return
        self.packets_out += 1
        self.bytes_out += len(data)
