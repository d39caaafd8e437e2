"""The answer that a stream is: its head as bytes, ready before there is anything to send with it.

aiohttp formats headers and hands them to its writer when an answer begins: once a client's first
token is there, it would wait for that. Here the head is made while the device still computes, and
goes out in one write with the first text (sse.py), which aiohttp's writer has no part in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http import SERVER_SOFTWARE

from blitzgw.api.respond import read_in_time

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header may contain: it could end there, and another one begin."""


class EventResponse(web.StreamResponse):
    """What aiohttp is told of an answer that has gone past it: it is begun, and it is over."""

    def __init__(self, request: web.BaseRequest, *, closing: bool) -> None:
        super().__init__()
        self.framed = request.version >= HttpVersion11
        """HTTP/1.0 knows no chunks: there the end of the connection is the end of the stream."""
        self._stays = self.framed and not closing and bool(request.keep_alive)
        self._request = request

    @property
    def prepared(self) -> bool:
        """Nothing else can be answered any more."""
        return True

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on the connection."""
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> Any:  # noqa: ARG002  aiohttp's signature
        """Do nothing: the head has been sent."""
        return

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002  aiohttp's signature
        """Do nothing: the end has been sent."""
        return

    def head(self, headers: Mapping[str, str], now_s: int) -> bytes:
        """Return status line and headers; `now_s` is in seconds of the Unix epoch.

        Raises ValueError where one of them has a control character.
        """
        lines = ["HTTP/1.1 200 OK" if self.framed else "HTTP/1.0 200 OK"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self.framed:
            lines.append("Transfer-Encoding: chunked")
            if not self._stays:
                lines.append("Connection: close")
        lines += [f"Date: {_date(now_s)}", f"Server: {SERVER_SOFTWARE}"]
        if _FORBIDDEN.search("".join(lines)):
            raise ValueError("a header has a control character")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def drained(self) -> None:
        """Wait until the client has read nearly all; one that does not is cut off."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size():
            await read_in_time(self._request.writer.drain(), transport)


@lru_cache(1)
def _date(now_s: int) -> str:
    return formatdate(now_s, usegmt=True)
