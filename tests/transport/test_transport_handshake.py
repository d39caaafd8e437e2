"""The proof of an edge's one-time key."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.crypto.edges import (
    EDGE_ANSWER_BYTES,
    EDGE_HELLO_BYTES,
    EDGE_MAGIC,
    MAX_HELLOS,
    EdgeDialler,
    EdgeGate,
    edge_name,
    name_in,
)
from blitzgw.crypto.records import LENGTH
from blitzgw.errors import ProtocolError

KEY = bytes(range(32))


def opened(session, record):
    return session.open(record[: LENGTH.size], record[LENGTH.size :])


def test_both_ends_get_a_session_and_records_go_both_ways():
    dialler, gate = EdgeDialler("e", KEY), EdgeGate("e", KEY)
    assert len(dialler.hello) == EDGE_HELLO_BYTES <= 1024
    assert name_in(dialler.hello) == gate.name == edge_name("e")
    answer, there = gate.answer(dialler.hello)
    assert len(answer) == EDGE_ANSWER_BYTES <= len(dialler.hello)
    here = dialler.finish(answer)
    assert opened(there, here.seal(b"have")) == b"have"
    assert opened(here, there.seal(b"piece")) == b"piece"


def test_each_connection_of_an_edge_has_keys_of_its_own():
    gate = EdgeGate("e", KEY)
    sessions = []
    for _ in range(2):
        dialler = EdgeDialler("e", KEY)
        answer, there = gate.answer(dialler.hello)
        sessions.append((dialler.finish(answer), there))
    with pytest.raises(ProtocolError):
        opened(sessions[1][1], sessions[0][0].seal(b"x"))


def test_a_replayed_hello_gets_nothing():
    gate, dialler = EdgeGate("e", KEY), EdgeDialler("e", KEY)
    gate.answer(dialler.hello)
    with pytest.raises(ProtocolError, match="replayed"):
        gate.answer(dialler.hello)


def test_hellos_are_bounded():
    gate = EdgeGate("e", KEY)
    for _ in range(MAX_HELLOS):
        gate.answer(EdgeDialler("e", KEY).hello)
    with pytest.raises(ProtocolError):
        gate.answer(EdgeDialler("e", KEY).hello)


@pytest.mark.parametrize(
    ("edge", "key"), [("other", KEY), ("e", bytes(32)), ("e", KEY[:-1] + b"\0")]
)
def test_another_key_or_edge_is_refused_without_an_answer(edge, key):
    with pytest.raises(ProtocolError):
        EdgeGate("e", KEY).answer(EdgeDialler(edge, key).hello)


def test_an_impostor_cannot_answer():
    dialler = EdgeDialler("e", KEY)
    with pytest.raises(ProtocolError):
        dialler.finish(os.urandom(EDGE_ANSWER_BYTES))
    other = EdgeDialler("e", KEY)
    answer, _ = EdgeGate("e", KEY).answer(other.hello)
    with pytest.raises(ProtocolError):
        dialler.finish(answer)  # of another connection
    with pytest.raises(ProtocolError):
        dialler.finish(answer[:-1])


def test_a_key_of_another_size_is_refused():
    for make in (EdgeGate, EdgeDialler):
        with pytest.raises(ProtocolError):
            make("e", b"short")


@given(st.integers(0, EDGE_HELLO_BYTES - 1), st.integers(1, 255))
def test_any_flipped_byte_of_a_hello_is_seen(at, change):
    hello = bytearray(EdgeDialler("e", KEY).hello)
    hello[at] ^= change
    with pytest.raises(ProtocolError):
        EdgeGate("e", KEY).answer(bytes(hello))


@given(st.integers(0, EDGE_ANSWER_BYTES - 1), st.integers(1, 255))
def test_any_flipped_byte_of_an_answer_is_seen(at, change):
    dialler = EdgeDialler("e", KEY)
    answer = bytearray(EdgeGate("e", KEY).answer(dialler.hello)[0])
    answer[at] ^= change
    with pytest.raises(ProtocolError):
        dialler.finish(bytes(answer))


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=90).map(EDGE_MAGIC.__add__)))
def test_garbage_raises_a_protocol_error_only(data):
    with pytest.raises(ProtocolError):
        EdgeGate("e", KEY).answer(data)
