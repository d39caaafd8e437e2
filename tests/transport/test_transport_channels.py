"""Every wire behind the same tests: records, pieces, limits, ends."""

import os
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.transfer import TrafficClass
from blitzgw.crypto.edges import EdgeDialler, EdgeGate
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    MAX_PIECE_BYTES,
    MAX_RECORD_BYTES,
    ChannelLost,
    Piece,
    PieceDamaged,
    Record,
    RecordKind,
    Way,
    decode_have,
    decode_piece,
    encode_have,
    encode_piece,
    encode_record,
    piece_digest,
)
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.governor import Cap, Governor
from blitzgw.transport.memory import memory_pair
from blitzgw.transport.tcp import TcpWire

SEED = 99
STALL_S = 0.4


def tcp_pair(stall_s):
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return TcpWire(one, stall_s), TcpWire(other, stall_s)


WIRES = {"memory": memory_pair, "tcp": tcp_pair}


class Pair:
    """Two channels over a pair of wires, all of which are closed after the test."""

    def __init__(self, make, stall_s=STALL_S, **options):
        dialler, gate = EdgeDialler("e", bytes(32)), EdgeGate("e", bytes(32))
        answer, there = gate.answer(dialler.hello)
        self.wires = make(stall_s)
        self.governor = Governor(Cap(0))
        self.a = self.channel(self.wires[0], there, **options)
        self.b = self.channel(self.wires[1], dialler.finish(answer), **options)

    def channel(self, wire, session, **options):
        return SealedChannel(
            wire, session, self.governor.lane(TrafficClass.WEIGHTS), SEED, **options
        )

    def close(self):
        self.a.close()
        self.b.close()


@pytest.fixture(params=sorted(WIRES))
def make(request):
    pairs = []

    def make(**options):
        pairs.append(Pair(WIRES[request.param], **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


class Elsewhere:
    """Run something on a thread, and hand on what it returned or raised."""

    def __init__(self, call, *args):
        self.result = self.error = None
        self.thread = threading.Thread(target=self.run, args=(call, *args), daemon=True)
        self.thread.start()

    def run(self, call, *args):
        try:
            self.result = call(*args)
        except Exception as e:
            self.error = e

    def done(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def piece_of(data, blob=3, offset=0, seed=SEED):
    return Piece(blob, offset, len(data), piece_digest(data, seed))


def take(channel):
    piece = channel.receive()
    into = memoryview(bytearray(piece.size_bytes))
    channel.receive_payload(piece, into)
    return piece, bytes(into)


def test_records_go_both_ways_in_order(make):
    pair = make()
    sent = [
        Record(RecordKind.HAVE, os.urandom(MAX_RECORD_BYTES - 5)),
        Record(RecordKind.ALIVE),
        *(Record(RecordKind.BYPASS, os.urandom(n)) for n in range(30)),
        Record(RecordKind.REFUSED, b"why"),
    ]
    for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
        for record in sent:
            one.send(record)
        assert [other.receive() for _ in sent] == sent


@pytest.mark.parametrize("encrypt", [False, True])
def test_pieces_arrive_where_they_belong(make, encrypt):
    pair = make(encrypt=encrypt)
    payloads = [os.urandom(n) for n in (1, 4096, (1 << 20) + 17, 3 << 20)]

    def send():
        for offset, payload in enumerate(payloads):
            pair.a.send_piece(piece_of(payload, offset=offset), memoryview(payload))
            pair.a.send(Record(RecordKind.ALIVE))

    sending = Elsewhere(send)
    for offset, payload in enumerate(payloads):
        assert take(pair.b) == (piece_of(payload, offset=offset), payload)
        assert pair.b.receive() == Record(RecordKind.ALIVE)
    sending.done()


def test_a_piece_that_is_not_its_digest_is_damaged(make):
    pair = make()
    payload = os.urandom(1000)
    pair.a.send_piece(piece_of(payload, seed=SEED + 1), memoryview(payload))
    with pytest.raises(PieceDamaged):
        take(pair.b)


def test_poll_tells_of_records_and_of_the_end(make):
    pair = make()
    assert not pair.b.poll(0.0)
    began = time.monotonic()
    assert not pair.b.poll(0.05)
    assert time.monotonic() - began > 0.03
    pair.a.send(Record(RecordKind.ALIVE))
    assert pair.b.poll(5.0)
    pair.b.receive()
    pair.a.end()
    assert pair.b.poll(5.0)
    with pytest.raises(ChannelLost):
        pair.b.receive()


def test_what_was_sent_before_the_end_still_arrives(make):
    pair = make()
    pair.a.send(Record(RecordKind.DONE))
    pair.a.close()
    assert pair.b.receive() == Record(RecordKind.DONE)
    with pytest.raises(ChannelLost):
        pair.b.receive()


@pytest.mark.parametrize("end", ["a", "b"])
def test_an_end_wakes_who_receives(make, end):
    pair = make(stall_s=20.0)
    receiving = Elsewhere(pair.b.receive)
    time.sleep(0.05)
    getattr(pair, end).end()
    with pytest.raises(ChannelLost):
        receiving.done()


@pytest.mark.parametrize("end", ["here", "there"])
def test_an_end_wakes_who_sends(make, end):
    pair = make(stall_s=20.0)
    payload = bytes(MAX_PIECE_BYTES)

    def send():
        while True:
            pair.a.send_piece(piece_of(payload), memoryview(payload))

    sending = Elsewhere(send)
    time.sleep(0.1)
    if end == "here":
        pair.a.end()
    else:
        pair.b.close()
    with pytest.raises(ChannelLost):
        sending.done()


def test_a_peer_that_stops_reading_is_lost(make):
    pair = make()
    payload = bytes(MAX_PIECE_BYTES)

    def send():
        while True:
            pair.a.send_piece(piece_of(payload), memoryview(payload))

    began = time.monotonic()
    with pytest.raises(ChannelLost):
        Elsewhere(send).done()
    assert STALL_S * 0.8 < time.monotonic() - began < STALL_S + 5


def test_a_peer_that_says_nothing_is_lost(make):
    pair = make()
    began = time.monotonic()
    with pytest.raises(ChannelLost):
        Elsewhere(pair.b.receive).done()
    assert STALL_S * 0.8 < time.monotonic() - began < STALL_S + 5


def test_a_slow_peer_is_not_lost(make):
    pair = make()
    payload = os.urandom(6 << 20)
    head = pair.a._session.seal(encode_piece(piece_of(payload), Way.INLINE))

    def send():
        pair.wires[0].write([head])
        for at in range(0, len(payload), 1 << 20):
            time.sleep(STALL_S / 3)
            pair.wires[0].write([payload[at : at + (1 << 20)]])

    sending = Elsewhere(send)
    assert take(pair.b)[1] == payload
    sending.done()


@pytest.mark.parametrize(
    "data",
    [
        bytes(100),
        b"\xff" * 100,
        (MAX_RECORD_BYTES + 17).to_bytes(4, "little") + bytes(42),
        (41).to_bytes(4, "little") + bytes(42),
        (42).to_bytes(4, "little") + bytes(42),
    ],
)
def test_garbage_is_a_protocol_error(make, data):
    pair = make()
    pair.wires[0].write([data])
    with pytest.raises(ProtocolError):
        pair.b.receive()


@pytest.mark.parametrize("which", [0, 2])
def test_a_record_cannot_be_repeated_or_left_out(make, which):
    pair = make()
    records = [pair.a._session.seal(encode_record(Record(RecordKind.ALIVE))) for _ in range(3)]
    pair.wires[0].write([records[0], records[which]])
    pair.b.receive()
    with pytest.raises(ProtocolError):
        pair.b.receive()


@pytest.mark.parametrize(
    "payload",
    [
        bytes(26),
        b"\x63" + bytes(25),
        b"\x01" + bytes(25),
        b"\x01" * 26,
        b"\x01" * 27,
        b"\x02" + (22).to_bytes(4, "little") + bytes(21),
        b"\x02" + (20).to_bytes(4, "little") + bytes(20) + b"x",
        b"\x03" + (100).to_bytes(4, "little") + bytes(21),
    ],
)
def test_sealed_nonsense_is_a_protocol_error(make, payload):
    pair = make()
    pair.wires[0].write([pair.a._session.seal(payload)])
    with pytest.raises(ProtocolError):
        pair.b.receive()


class FakeBypass:
    """Payloads on a list beside the wire."""

    def __init__(self):
        self.sent, self.received, self.aborted = [], [], False

    def send(self, piece):
        self.sent.append(piece)

    def receive(self, piece):
        if self.aborted:
            raise ChannelLost("aborted")
        self.received.append(piece)
        if self.sent.pop(0).digest != piece.digest or piece.digest == 0:
            raise PieceDamaged("by the bypass")

    def abort(self):
        self.aborted = True


def test_a_bypass_takes_the_payloads_that_are_meant_for_it(make):
    bypass = FakeBypass()
    pair = make(bypass=bypass)
    payload, elsewhere = os.urandom(1000), Piece(3, 0, 1000, 5)
    for _ in range(2):
        pair.a.send_piece(piece_of(payload), memoryview(payload))
        assert take(pair.b) == (piece_of(payload), payload)
        pair.a.send_bypassed(elsewhere)
        assert bypass.sent == [elsewhere]
        assert take(pair.b) == (elsewhere, bytes(1000))
    assert bypass.received == [elsewhere, elsewhere]
    pair.a.send_bypassed(Piece(3, 0, 1000, 0))
    with pytest.raises(PieceDamaged):
        take(pair.b)
    pair.b.end()
    assert bypass.aborted


def test_a_bypass_and_encryption_exclude_each_other():
    with pytest.raises(ValueError, match="encrypt"):
        Pair(memory_pair, bypass=FakeBypass(), encrypt=True)


def test_a_wire_says_that_its_peer_is_gone(make):
    pair = make()
    assert not pair.wires[0].lost()
    pair.b.close()
    deadline = time.monotonic() + 5
    while not pair.wires[0].lost():
        assert time.monotonic() < deadline


def test_a_bypass_that_is_not_here_is_a_protocol_error(make):
    pair = make()
    pair.wires[0].write([pair.a._session.seal(encode_piece(piece_of(b"x"), Way.BYPASS))])
    with pytest.raises(ProtocolError):
        pair.b.receive()


@settings(max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, MAX_PIECE_BYTES),
    st.integers(0, 2**64 - 1),
    st.sampled_from(Way),
)
def test_heads_of_pieces_survive(blob, offset, size, digest, way):
    piece = Piece(blob, offset, size, digest)
    assert decode_piece(encode_piece(piece, way)) == (piece, way)


@settings(max_examples=50)
@given(st.binary(max_size=64), st.lists(st.integers(0, 2**63), max_size=6))
def test_what_is_there_is_checked(body, sizes):
    try:
        have = decode_have(body, sizes)
    except ProtocolError:
        return
    assert encode_have(have) == body
    assert all(0 <= there <= size for there, size in zip(have, sizes, strict=True))
