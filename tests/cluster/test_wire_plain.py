"""Plain tokens are read without the message around them, to the same end."""

from __future__ import annotations

import msgspec
import pytest

from blitzgw.core.peer import Abort, PlainTokens, Tokens
from blitzgw.core.request import TokenEvent
from blitzgw.errors import ProtocolError
from blitzgw.wire import PEER_MESSAGES, dump, parse, parse_plain


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 1000, 70_000])
def test_the_tokens_are_those_of_the_message(count):
    message = PlainTokens([(f"request-{i}", i % 3, i) for i in range(count)])
    data = dump(message)
    assert parse_plain(data) == message.tokens == parse(data, PEER_MESSAGES).tokens


@pytest.mark.parametrize("message", [Abort("r", 1), Tokens([TokenEvent("r", 0, [1])])])
def test_others_are_left_to_parse(message):
    assert parse_plain(dump(message)) is None


def test_nothing_is_none():
    assert parse_plain(b"") is None


def test_a_message_above_its_limit_is_left_to_parse():
    data = dump(PlainTokens([("r", 0, 1)]))[:9] + bytes(4 << 20)
    assert parse_plain(data) is None
    with pytest.raises(ProtocolError, match="limit"):
        parse(data, PEER_MESSAGES)


@pytest.mark.parametrize(
    "tokens", [[["r", 0]], [["r", 0, "x"]], [[1, 0, 1]], "no list", [["r", 0, 1, 2]]]
)
def test_what_does_not_decode_breaks_the_protocol(tokens):
    head = dump(PlainTokens([]))[:1]
    data = head + msgspec.msgpack.encode({"tokens": tokens})
    with pytest.raises(ProtocolError):
        parse_plain(data)
    with pytest.raises(ProtocolError):
        parse(data, PEER_MESSAGES)
    with pytest.raises(ProtocolError):
        parse_plain(dump(PlainTokens([("r", 0, 1)])) + b"\0")
