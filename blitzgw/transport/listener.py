"""Where receivers dial: one thread hears all strangers, and brings those that prove themselves.

A stranger may send the size of a hello, within tcp.HELLO_S, and is told nothing; there is room for
MAX_STRANGERS of them, and whoever comes when it is full takes the place of the oldest.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from blitzgw.core.transfer import DataNetwork
from blitzgw.crypto.edges import EDGE_HELLO_BYTES, name_in
from blitzgw.errors import ProtocolError
from blitzgw.transport.governor import Governor
from blitzgw.transport.parcel_sender import RoadSender
from blitzgw.transport.sender import Sender
from blitzgw.transport.tcp import HELLO_S, TcpWire

log = logging.getLogger(__name__)

MAX_STRANGERS = 64
"""Connections whose hello has not come yet. Receivers send theirs at once, so one that is pushed
out by so many others within a round trip is under attack, and dials again."""

BACKLOG = 128
"""Connections that the kernel accepts for us meanwhile; as many edges as a worker can have."""

_TICK_S: Final = 0.5


class Listener:
    """Listens on all networks of a worker. `find` gives the sender of an edge by its name."""

    def __init__(
        self,
        networks: Sequence[DataNetwork],
        governors: dict[str, Governor],
        find: Callable[[bytes], Sender | RoadSender | None],
    ) -> None:
        self._governors, self._find = governors, find
        self._selector = selectors.DefaultSelector()
        self._servers: list[socket.socket] = []
        self._strangers: dict[socket.socket, _Stranger] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        self._stopped = threading.Event()
        self.ports: dict[str, int] = {}
        try:
            for network in networks:
                self._listen(network)
        except BaseException:
            self._free()
            raise
        self._selector.register(self._wake_in, selectors.EVENT_READ, "")
        self.thread = threading.Thread(target=self._run, name="edges listen", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Listen no more; the thread frees everything."""
        self._stopped.set()
        with suppress(OSError):
            self._wake_out.send(b".")

    def _listen(self, network: DataNetwork) -> None:
        family = socket.AF_INET6 if ":" in network.host else socket.AF_INET
        both = network.host == "::" and socket.has_dualstack_ipv6()  # as control traffic does
        server = socket.create_server(
            (network.host, 0), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
        self._servers.append(server)
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ, network.name)
        self.ports[network.name] = server.getsockname()[1]

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                for key, _ in self._selector.select(_TICK_S):
                    self._serve(key)
                self._forget_late()
        except Exception:
            log.exception("edges_listener_failed")
        finally:
            self._free()

    def _serve(self, key: selectors.SelectorKey) -> None:
        sock = key.fileobj
        if not isinstance(sock, socket.socket) or sock is self._wake_in:
            return
        if sock in self._servers:
            self._accept(sock, key.data)
        elif sock in self._strangers:
            self._hear(sock)

    def _accept(self, server: socket.socket, network: str) -> None:
        try:
            sock, _ = server.accept()
        except BlockingIOError:
            return
        except OSError as e:  # no more file descriptors: let those waiting wait
            log.warning("edges_accept_failed error=%r", str(e))
            time.sleep(0.01)
            return
        sock.setblocking(False)
        if len(self._strangers) >= MAX_STRANGERS:
            self._drop(next(iter(self._strangers)))
        self._strangers[sock] = _Stranger(network)
        self._selector.register(sock, selectors.EVENT_READ, network)

    def _hear(self, sock: socket.socket) -> None:
        stranger = self._strangers[sock]
        try:
            data = sock.recv(EDGE_HELLO_BYTES - len(stranger.hello))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stranger.hello += data
        if not data:
            self._drop(sock)
        elif len(stranger.hello) == EDGE_HELLO_BYTES:
            self._admit(sock, stranger)

    def _admit(self, sock: socket.socket, stranger: _Stranger) -> None:
        """Hand a connection to its edge, or close it without a word."""
        try:
            sender = self._find(name_in(stranger.hello))
            if sender is None:
                raise ProtocolError("an edge that is not known here")
            answer, session = sender.gate.answer(stranger.hello)
            sock.send(answer)  # fits into the empty buffer of a new connection
        except (ProtocolError, OSError) as e:
            log.debug("edge_refused error=%r", str(e))
            self._drop(sock)
            return
        self._selector.unregister(sock)
        del self._strangers[sock]
        lane = self._governors[stranger.network].lane(sender.terms.lane)
        sender.offer(TcpWire(sock, path_s=sender.path_s), session, lane)

    def _forget_late(self) -> None:
        now = time.monotonic()
        for sock, stranger in list(self._strangers.items()):
            if now - stranger.since <= HELLO_S:
                return
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._strangers.pop(sock, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _free(self) -> None:
        for sock in [*self._strangers, *self._servers, self._wake_in, self._wake_out]:
            sock.close()
        self._strangers.clear()
        self._selector.close()


class _Stranger:
    """A connection whose hello is not complete."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.hello = b""
        self.since = time.monotonic()
