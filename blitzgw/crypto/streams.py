"""Secured TCP connections over non-blocking sockets, on any asyncio event loop.

Nothing is read beyond the handshake, so its socket can be handed to another event loop
(`loop.create_connection(..., sock=sock)`), and the session with it: no byte is lost between.
All time-outs are in seconds of the wall: callers multiply by their clock's dilation.
"""

from __future__ import annotations

import asyncio
import socket

from blitzgw.crypto.handshake import (
    CLIENT_HELLO_BYTES,
    CONFIRMATION_BYTES,
    SERVER_HELLO_BYTES,
    ClientHandshake,
    Purpose,
    ServerHandshake,
)
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import LENGTH, Session, check_length

HANDSHAKE_S = 2.0
"""Longest handshake: a round trip and 0.2 ms of arithmetic, on a host that is busy."""

CHUNK_BYTES = 256 << 10
"""Most bytes asked of a socket at once: what is set aside for a record grows as it arrives."""


async def connect_secure(
    address: tuple[str, int],
    keyring: Keyring,
    local_boot: str,
    purpose: Purpose,
    timeout_s: float = HANDSHAKE_S,
) -> tuple[socket.socket, Session, str]:
    """Connect to (host, port) and shake hands; return the socket, its session, the peer's boot id.

    The socket is connected and non-blocking, and belongs to the caller. `timeout_s` bounds the
    whole of it. Raises OSError (TimeoutError among them) where the peer is out of reach or closes,
    ProtocolError where it does not hold a cluster key or is this process itself.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, address)
            session = await _shake_as_client(sock, keyring, local_boot, purpose)
    except BaseException:
        sock.close()
        raise
    return sock, session, session.peer_boot


async def accept_secure(
    sock: socket.socket, keyring: Keyring, local_boot: str, timeout_s: float = HANDSHAKE_S
) -> tuple[Session, Purpose]:
    """Shake hands over an accepted socket; `session.peer_boot` is then known to be authentic.

    A stranger gets no byte of an answer. Closes the socket whenever it raises: OSError
    (TimeoutError among them) or ProtocolError.
    """
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(timeout_s):
            return await _shake_as_server(sock, keyring, local_boot)
    except BaseException:
        sock.close()
        raise


async def send_record(sock: socket.socket, session: Session, payload: bytes) -> None:
    """Seal and send one record; bounded by the caller. Raises OSError."""
    await asyncio.get_running_loop().sock_sendall(sock, session.seal(payload))


async def receive_record(sock: socket.socket, session: Session, max_bytes: int) -> bytes:
    """Return the payload of the next record, of at most `max_bytes`; bounded by the caller.

    Reads nothing beyond it. Raises OSError, and ProtocolError for what is no such record.
    """
    head = await _receive(sock, LENGTH.size)
    size = check_length(head, max_bytes)
    return session.open(head, await _receive(sock, size))


async def _shake_as_client(
    sock: socket.socket, keyring: Keyring, local_boot: str, purpose: Purpose
) -> Session:
    loop = asyncio.get_running_loop()
    handshake = ClientHandshake(keyring, local_boot, purpose)
    await loop.sock_sendall(sock, handshake.hello)
    answer = await _receive(sock, SERVER_HELLO_BYTES)
    session, confirmation = handshake.finish(bytes(answer))
    await loop.sock_sendall(sock, confirmation)
    return session


async def _shake_as_server(
    sock: socket.socket, keyring: Keyring, local_boot: str
) -> tuple[Session, Purpose]:
    loop = asyncio.get_running_loop()
    handshake = ServerHandshake(keyring, local_boot)
    hello = await _receive(sock, CLIENT_HELLO_BYTES)
    await loop.sock_sendall(sock, handshake.answer(bytes(hello)))
    session = handshake.finish(bytes(await _receive(sock, CONFIRMATION_BYTES)))
    return session, handshake.purpose


async def _receive(sock: socket.socket, size_bytes: int) -> bytearray:
    loop = asyncio.get_running_loop()
    buffer = bytearray()
    while len(buffer) < size_bytes:
        chunk = await loop.sock_recv(sock, min(size_bytes - len(buffer), CHUNK_BYTES))
        if not chunk:
            raise ConnectionResetError("the peer has closed the connection")
        buffer += chunk
    return buffer
