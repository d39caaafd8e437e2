"""JSON answers, and the one form that every error takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from typing import Any

import orjson
from aiohttp import web

from blitzgw.errors import RequestError

MAX_RETRY_AFTER_S = 120
"""The OpenAI SDK does not retry at all where it is told to wait longer."""


SEND_TIMEOUT_S = 60.0
"""How long the end of an answer may wait in the buffer for its client to read."""


class HttpError(RequestError):
    """An error of the protocol rather than of the request's meaning, such as 405 or 431."""

    def __init__(self, status: int, code: str, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind


def internal_error() -> HttpError:
    """Return what a client is told about a mistake of ours: nothing but that."""
    return HttpError(500, "internal_error", "internal error", "InternalServerError")


def error_object(error: RequestError) -> bytes:
    """Return the error as JSON: what a body holds, or one event of a stream."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": error.kind,
                "param": error.param,
                "code": error.status,
            }
        }
    )


def error_response(error: RequestError, headers: Mapping[str, str]) -> web.Response:
    """Return the answer to a request that cannot be served."""
    more = {**headers, "x-blitzgw-error-code": error.code}
    if error.retry_after_s is not None or error.status in (429, 503):
        wait_s = math.ceil(min(error.retry_after_s or 1.0, MAX_RETRY_AFTER_S))
        more["Retry-After"] = str(max(1, wait_s))
    if error.status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return json_bytes(error_object(error), more, error.status)


def json_response(value: Any, headers: Mapping[str, str]) -> web.Response:
    """Return a JSON answer."""
    return json_bytes(orjson.dumps(value), headers)


def json_bytes(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """Return an answer whose JSON is already written."""
    return web.Response(
        body=body, status=status, headers={**headers, "Content-Type": "application/json"}
    )


async def send_rest(
    response: web.StreamResponse, transport: asyncio.Transport | None, rest: bytes = b""
) -> None:
    """Send the end of an answer; a client that does not read it is cut off."""
    await read_in_time(response.write_eof(rest), transport)


async def read_in_time(sending: Awaitable[None], transport: asyncio.Transport | None) -> None:
    """Await what ends as a client reads; raises ConnectionResetError for one that is cut off."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await sending
    except TimeoutError:
        if transport is not None:
            transport.abort()
        raise ConnectionResetError("the client does not read") from None
