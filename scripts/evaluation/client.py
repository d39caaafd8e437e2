"""One streamed request over one connection, which is made before the request is due.

    connected ──send──► head ──200──► events ──[DONE], or the message's end──► over
                         └──other status──► what the error says ─────────────► over

Written on asyncio's protocols, because aiohttp's client has no public way to connect, TLS included,
before a request is due. From then until the request is written it also takes 130 µs of CPU, over a
warm connection, where this takes 10 (measured; a streamed token takes 13 and 10). What is due at
the same moment as others is late by as much for each of them.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 1 << 16
"""Of a status line and headers; servers have a few hundred."""

MAX_LINE_BYTES = 1 << 22
"""Of an event: one with the ids of a long prompt has a few hundred thousand."""

MAX_ERROR_BYTES = 1 << 12
"""Of the body of an error: what is beyond is not read."""

SPLIT_HEADER = b"x-blitzgw-split"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask: `http://host:port`, with or without `/v1`.

    `connect` returns a connected socket instead of one of the host's own network, as from a
    network namespace. It is called in a thread, and bounds its time itself: `CONNECT_S` is due.
    """

    url: str
    connect: Callable[[], socket.socket] | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(f"{self.url!r} is no address such as http://127.0.0.1:8000")
        _ = parts.port  # raises ValueError for what is none

    def head(self, path: str, size_bytes: int, request_id: str, api_key: str) -> bytes:
        """Return the head of a request; `path` counts from `/v1`."""
        parts = urlsplit(self.url)
        base = parts.path.rstrip("/").removesuffix("/v1")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        return (
            f"POST {base}/v1{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n{key}"
            f"Connection: close\r\nContent-Length: {size_bytes}\r\n\r\n"
        ).encode()


class BadAnswer(Exception):
    """Bytes that are no answer, or one that is cut."""


class Call(asyncio.Protocol):
    """Reads one answer. `heard` gets each event's data and the `time.monotonic()` of its bytes.

    `over` ends when all is there, or raises BadAnswer.
    """

    def __init__(self, heard: Callable[[bytes, float], None]) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.error_body = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = heard
        self._buffer = bytearray()
        self._line = b""
        self._chunked = False
        self._left: int | None = None
        """Bytes of a chunk and its line's end, or of the body; None: until the connection ends."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        """Write the request; what does not fit into the socket follows by itself."""
        if not self.over.done():
            self._transport.write(request)

    def close(self) -> None:
        """Leave: what has not arrived is given up."""
        self._transport.abort()
        if not self.over.cancel() and not self.over.cancelled():
            self.over.exception()  # nobody has to hear of it any more

    def data_received(self, data: bytes) -> None:
        if self.over.done():
            return
        now_s = time.monotonic()
        self._buffer += data
        try:
            if self._read_head():
                self._read_body(now_s)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            self._end(BadAnswer(f"not understood: {error}"))
        except BadAnswer as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        whole = self.status and not self._chunked and self._left is None
        why = f": {exc}" if exc else ""
        self._end(None if whole and not exc else BadAnswer(f"the connection has ended{why}"))

    def _end(self, error: BadAnswer | None = None) -> None:
        if self.over.done():
            return
        if error:
            self.over.set_exception(error)
        else:
            self.over.set_result(None)

    def _read_head(self) -> bool:
        while not self.status:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                if len(head) > MAX_HEAD_BYTES:
                    raise BadAnswer("headers without end")
                return False
            self._buffer = rest
            first, *lines = bytes(head).split(b"\r\n")
            version, status, *_ = first.split(b" ", 2)
            if not version.startswith(b"HTTP/1."):
                raise BadAnswer(f"no HTTP/1: {first[:40]!r}")
            if int(status) >= 200:  # others come before the answer
                self._take_head(int(status), lines)
        return True

    def _take_head(self, status: int, lines: list[bytes]) -> None:
        self.status = status
        pairs = (line.partition(b":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._chunked = self.headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if self._chunked:
            self._left = 0
        elif (length := self.headers.get(b"content-length")) is not None:
            self._left = _size(length, 10)
        kind = self.headers.get(b"content-type", b"").lower()
        if status == 200 and not kind.startswith(b"text/event-stream"):
            raise BadAnswer("no stream of events")

    def _read_body(self, now_s: float) -> None:
        if self._chunked:
            self._read_chunks(now_s)
            return
        content, self._buffer = bytes(self._buffer), bytearray()
        if self._left is not None:
            content = content[: self._left]
            self._left -= len(content)
        self._take(content, now_s)
        if self._left == 0:
            self._end()

    def _read_chunks(self, now_s: float) -> None:
        buffer = self._buffer
        while buffer and not self.over.done():
            if not self._left:
                line, mark, rest = buffer.partition(b"\r\n")
                if not mark:
                    break
                size = _size(line.partition(b";")[0], 16)
                if not size:
                    self._end()
                    return
                self._left, buffer = size + 2, rest
            part = bytes(buffer[: self._left])
            del buffer[: self._left]
            data = part[: max(0, self._left - 2)]
            self._left -= len(part)
            self._take(data, now_s)
        self._buffer = buffer

    def _take(self, content: bytes, now_s: float) -> None:
        if self.status != 200:
            self.error_body = (self.error_body + content)[:MAX_ERROR_BYTES]
            return
        *lines, self._line = (self._line + content).split(b"\n")
        if len(self._line) > MAX_LINE_BYTES:
            raise BadAnswer("a line without end")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    self._end()
                    return
                self._heard(data, now_s)


def _size(text: bytes | bytearray, base: int) -> int:
    if (size := int(text, base)) < 0:
        raise ValueError(f"a size of {size}")
    return size


@functools.cache
def _context() -> ssl.SSLContext:
    """Return the context of all connections: to make one takes some 10 ms."""
    return ssl.create_default_context()


async def connect(endpoint: Endpoint, heard: Callable[[bytes, float], None]) -> Call:
    """Connect, TLS included. Raises BadAnswer. Whoever calls bounds the time."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(endpoint.url)
    secure = _context() if parts.scheme == "https" else None
    where: dict[str, Any] = {"host": parts.hostname, "port": parts.port or (443 if secure else 80)}
    try:
        if endpoint.connect:
            sock = await asyncio.to_thread(endpoint.connect)
            sock.setblocking(False)
            where = {"sock": sock, "server_hostname": parts.hostname if secure else None}
        _, call = await loop.create_connection(lambda: Call(heard), ssl=secure, **where)
    except OSError as error:
        raise BadAnswer(f"no connection: {error}") from None
    return call
