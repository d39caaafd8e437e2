"""One HTTP request: who asks, under which id, since when; and its body, within limits."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass, field

from aiohttp import web

from blitzgw.api.limits import Limits
from blitzgw.api.respond import HttpError
from blitzgw.errors import InvalidRequest, TooLarge

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SESSION_ID = re.compile(r"[\x20-\x7e]{1,256}")


@dataclass(slots=True)
class Exchange:
    """A request on its way. `arrival` is in seconds of the injected clock.

    `unique_id` goes into the ids of generations: a client that sends an id twice, or somebody
    else's, must not reach another generation with it. `session` is what the client calls the
    conversation that this belongs to, or empty.
    """

    request: web.BaseRequest
    request_id: str
    unique_id: str
    arrival: float
    tenant: str = ""
    session: str = ""
    closing: bool = False
    """The connection is to be closed after the answer: the node is draining."""
    headers: dict[str, str] = field(default_factory=dict)


def open_exchange(request: web.BaseRequest, node: str, arrival: float) -> Exchange:
    """Begin to answer a request: take over its id, or make one."""
    given = request.headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        request_id, unique_id = given, f"{given}-{secrets.token_hex(4)}"
    else:
        request_id = unique_id = secrets.token_hex(16)
    headers = {"x-request-id": request_id, "x-blitzgw-node": node}
    session = request.headers.get("x-session-id", "")
    if not _SESSION_ID.fullmatch(session):
        session = ""  # it is only a hint
    return Exchange(request, request_id, unique_id, arrival, session=session, headers=headers)


def check_head(request: web.BaseRequest, limits: Limits) -> None:
    """Refuse a head that is too large or announces a body that cannot be taken."""
    raw = request.raw_headers
    if sum([len(name) + len(value) for name, value in raw]) > limits.max_header_total:
        raise HttpError(
            431, "headers_too_large", f"the headers exceed {limits.max_header_total} bytes"
        )
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise HttpError(415, "content_encoding", "compressed bodies are not accepted")
    if (request.content_length or 0) > limits.max_body:
        raise _too_large(limits)


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """Return the whole body of a POST; raises RequestError (400, 408, 413, 415).

    Only `application/json` is taken: a browser lets no foreign page send that.
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HttpError(415, "content_type", "Content-Type must be application/json")
    content = request.content
    if content.is_eof():  # most bodies arrive with their headers
        return _checked(content.read_nowait(), limits)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer has been sent yet
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read_all(request, limits)
    except TimeoutError:
        raise HttpError(408, "body_timeout", "the body did not arrive in time") from None
    except web.RequestPayloadError:
        raise InvalidRequest("the body is not framed correctly") from None


async def _read_all(request: web.BaseRequest, limits: Limits) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limits.max_body:
            raise _too_large(limits)
    return bytes(body)


def _checked(body: bytes, limits: Limits) -> bytes:
    if len(body) > limits.max_body:
        raise _too_large(limits)
    return body


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the body exceeds {limits.max_body} bytes")
