"""aiohttp's server, with this API's errors and limits on what its parser sees."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from blitzgw.api.limits import Limits
from blitzgw.api.respond import HttpError, error_object, error_response, internal_error

logger = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One connection. Overrides what would answer a malformed request in plain text."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it quotes what the client sent
    ) -> web.StreamResponse:
        """Return the JSON answer to what aiohttp itself refuses."""
        error = internal_error() if status >= 500 else _parser_error(exc, self.max_line_size)
        logger.info("bad_request status=%d cause=%s", error.status, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = error_response(error, {})
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """Makes connections, and counts them against the cap."""

    def __init__(self, handler: Any, limits: Limits) -> None:
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "max_line_size": limits.max_url,
            "max_field_size": limits.max_header_field,
            "max_headers": limits.max_headers,
            "keepalive_timeout": limits.keep_alive_s,
            "lingering_time": limits.linger_s,
        }
        super().__init__(handler, handler_cancellation=True, **self._options)
        self._loop_here = asyncio.get_running_loop()
        self._max_connections = limits.max_connections
        self.open_connections = 0

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=self._loop_here, **self._options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; one too many is told so and closed."""
        super().connection_made(handler, transport)
        self.open_connections += 1
        if self.open_connections > self._max_connections:
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Stop counting a connection."""
        self.open_connections -= 1
        super().connection_lost(handler, exc)


def _parser_error(error: BaseException | None, max_url: int) -> HttpError:
    if isinstance(error, LineTooLong):
        if error.args[1] == max_url:
            return HttpError(414, "url_too_long", f"the URL exceeds {max_url} bytes")
        return HttpError(431, "headers_too_large", "a header is too long")
    if isinstance(error, BadHttpMessage) and "Too many headers" in str(error):
        return HttpError(431, "headers_too_large", "too many headers")
    return HttpError(400, "malformed_http", "malformed HTTP request")


def _too_many() -> bytes:
    error = HttpError(
        503, "too_many_connections", "too many connections", "ServiceUnavailableError"
    )
    body = error_object(error)
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        b"x-blitzgw-error-code: too_many_connections\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


_TOO_MANY = _too_many()
