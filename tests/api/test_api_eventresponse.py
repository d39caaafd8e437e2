"""The head of a stream: ready before its text, and right when that comes."""

from __future__ import annotations

import pytest
from aiohttp import HttpVersion
from aiohttp.test_utils import make_mocked_request

from blitzgw.api.eventresponse import EventResponse


def response(version: tuple[int, int] = (1, 1), *, closing: bool = False) -> EventResponse:
    request = make_mocked_request("POST", "/v1/completions", version=HttpVersion(*version))
    return EventResponse(request, closing=closing)


def test_a_head_has_what_http_asks_for():
    lines = response().head({"x-request-id": "a"}, 0).decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[-2:] == ["", ""]
    assert {"x-request-id: a", "Transfer-Encoding: chunked"} < set(lines)
    assert "Date: Thu, 01 Jan 1970 00:00:00 GMT" in lines
    assert not any(line.startswith("Connection") for line in lines)


def test_a_connection_that_closes_says_so():
    closing = response(closing=True)
    assert b"\r\nConnection: close\r\n" in closing.head({}, 0)
    assert not closing.keep_alive
    assert response().keep_alive


def test_http_1_0_knows_no_chunks():
    old = response((1, 0))
    head = old.head({}, 0)
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in head
    assert not old.framed
    assert not old.keep_alive


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "\0", "\x7f"])
def test_a_header_ends_where_it_should(value):
    with pytest.raises(ValueError, match="control character"):
        response().head({"x-blitzgw-node": value}, 0)
