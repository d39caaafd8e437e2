"""Roads with peers that break the rules, fall silent, die or are damaged on the way."""

import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.core.parcels import MAX_PARCEL_BYTES, Parcel
from blitzgw.core.span import Span
from blitzgw.core.transfer import OpenReceive, OpenSend
from blitzgw.errors import ProtocolError
from blitzgw.transport import parcel_receiver, parcel_sender
from blitzgw.transport.base import ChannelLost, Piece, Record, RecordKind, piece_digest
from blitzgw.transport.parcel import (
    MAX_TICKET,
    ROAD_PATH_S,
    decode_parcel,
    decode_taken,
    encode_parcel,
    encode_taken,
)
from blitzgw.transport.tcp import TcpWire
from tests.transport.edges_kit import Host, join, until
from tests.transport.parcels_kit import (
    WIRES,
    Inbox,
    RoadPair,
    Told,
    blob,
    kv,
    outgoing,
    road_terms,
    within,
)
from tests.transport.test_transport_hostile import Proxy

PROCESS = Path(__file__).with_name("road_process.py")


@pytest.fixture(params=sorted(WIRES))
def make(request):
    pairs = []

    def make(**options):
        pairs.append(RoadPair(request.param, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def impatient(monkeypatch):
    for module in (parcel_sender, parcel_receiver):
        monkeypatch.setattr(module, "STALL_S", 0.5)
        monkeypatch.setattr(module, "ROAD_ALIVE_S", 0.1)


def head(ticket=1, layers=(0, 1), positions=(0, 1), size=4):
    return Record(RecordKind.PARCEL, struct.pack("<QHHIIQ", ticket, *layers, *positions, size))


def piece(data=b"abcd", number=0, offset=0, seed=7):
    return Piece(number, offset, len(data), piece_digest(data, seed)), memoryview(data)


SENSELESS = {
    "short": [Record(RecordKind.PARCEL, b"x")],
    "long": [Record(RecordKind.PARCEL, bytes(29))],
    "ticket": [head(ticket=MAX_TICKET + 1)],
    "layers": [head(layers=(2, 1))],
    "positions": [head(positions=(2, 1))],
    "size": [head(size=MAX_PARCEL_BYTES + 1)],
    "huge": [head(size=(1 << 64) - 1)],
    "twice": [head(), head()],
    "unasked": [piece()],
    "another blob": [head(), piece(number=1)],
    "a gap": [head(), piece(offset=1)],
    "beyond": [head(size=3), piece()],
    "repeated": [head(size=8), piece(), piece()],
    "after the end": [head(), piece(), piece()],
    "damaged": [head(), piece(seed=8)],
    "have": [Record(RecordKind.HAVE)],
    "done": [Record(RecordKind.DONE)],
    "taken": [Record(RecordKind.TAKEN, encode_taken(1))],
}


@pytest.mark.parametrize("what", SENSELESS)
def test_a_sender_without_sense_ends_the_road(make, what):
    pair = make()
    channel = pair.raw_sender()
    try:
        assert channel.receive() == Record(RecordKind.HAVE)
        for said in SENSELESS[what]:
            if isinstance(said, Record):
                channel.send(said)
            else:
                channel.send_piece(*said)
        assert pair.receiver.closed().reason not in ("", "closed")
        heard = Record(RecordKind.ALIVE)
        while heard.kind is RecordKind.ALIVE:
            heard = channel.receive()
        assert heard.kind is RecordKind.REFUSED
    except ChannelLost:
        assert pair.receiver.closed().reason  # gone before all was said
    finally:
        channel.close()
    whole = [(kv(), b"abcd")]
    assert pair.inbox.taken in ([], whole if what == "after the end" else [])
    assert pair.inbox.ended == ["r"]


def test_a_sender_does_not_get_beyond_the_window(make, monkeypatch):
    monkeypatch.setattr(parcel_receiver, "WINDOW_BYTES", 20_000)
    pair = make()
    pair.inbox.room = False
    channel = pair.raw_sender()
    try:
        for _ in range(5):  # of 4,096 bytes each in the window, whatever their size
            channel.send(head(size=0))
        until(lambda: pair.inbox.waiting)
        assert not pair.receiver.told
        channel.send(head(size=0))
        assert "window" in pair.receiver.closed().reason
    finally:
        channel.close()


@pytest.mark.parametrize(
    "said",
    [
        Record(RecordKind.TAKEN, encode_taken(1)),
        Record(RecordKind.TAKEN, b"x"),
        Record(RecordKind.DONE),
        Record(RecordKind.PARCEL, b""),
        piece(),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_receiver_without_sense_ends_the_road(make, said, first):
    pair = make()
    channel = pair.raw_receiver()
    told = pair.told
    try:
        if not first:
            channel.send(Record(RecordKind.HAVE))
        if isinstance(said, Record):
            channel.send(said)
        else:
            channel.send_piece(*said)
        assert pair.sender.closed().reason not in ("", "closed")
    finally:
        channel.close()
    pair.send("late", (kv(), b"x"))
    assert told.news[0][2]


@pytest.mark.parametrize("when", ["idle", "within a parcel"])
def test_a_sender_that_falls_silent_is_given_up(make, impatient, when):
    pair = make()
    channel = pair.raw_sender()
    try:
        if when == "within a parcel":
            channel.send(head(size=8))
            channel.send_piece(*piece())
        began = time.monotonic()
        assert "silent" in pair.receiver.closed().reason
        within(3.0, began)
    finally:
        channel.close()
    assert pair.inbox.taken == []


def test_a_receiver_that_falls_silent_is_given_up(make, impatient):
    pair = make()
    channel = pair.raw_receiver()
    try:
        channel.send(Record(RecordKind.HAVE))
        began = time.monotonic()
        assert "silent" in pair.sender.closed().reason
        within(3.0, began)
    finally:
        channel.close()


def test_a_byte_changed_on_the_way_ends_the_road_at_both_ends():
    def hurt(_number, n_bytes, data):
        if n_bytes <= 500_000 < n_bytes + len(data):
            data = bytearray(data)
            data[500_000 - n_bytes] ^= 0x10
        return data

    inbox, told = Inbox(), Told()
    with Host() as a, Host(parcels=inbox.take, road_ended=inbox.end) as b:
        proxy = Proxy(a.port, hurt)
        try:
            join(a, b, road_terms(), proxy.port)
            parcels = [outgoing(kv(i), blob(200_000)) for i in range(10)]
            a.edges.send_parcels("r", parcels, told.of("x"))
            assert "blob 0" in b.closed("r").reason
            assert a.closed("r").reason
        finally:
            proxy.close()
        assert len(inbox.taken) <= 2
        assert len(told.wait(1)) == 1


def test_a_path_that_is_cut_ends_the_road_for_good():
    inbox = Inbox()
    with Host() as a, Host(parcels=inbox.take, road_ended=inbox.end) as b:
        proxy = Proxy(a.port, lambda _number, _n_bytes, data: data)
        join(a, b, road_terms(), proxy.port)
        a.edges.send_parcels("r", [outgoing(kv(), b"x")], lambda *_: None)
        inbox.has(1)
        began = time.monotonic()
        proxy.close()
        assert a.closed("r").reason
        assert b.closed("r").reason
        within(3.0, began)
        assert proxy.n_connections == 1


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_dead_peer_is_noticed_within_a_second(role):
    """Of an idle road whose other end is in a process that is killed."""
    inbox, edge = Inbox(), road_terms()
    with Host(parcels=inbox.take, road_ended=inbox.end) as here:
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), role, edge.key.hex(), str(here.port)],
            stdout=subprocess.PIPE,
        )
        try:
            port = int(read_line(process))
            if role == "target":
                here.edges.open_send(OpenSend(edge))
                here.edges.send_parcels("r", [outgoing(kv(), b"x")], lambda *_: None)
                assert read_line(process) == b"taken"
            else:
                here.edges.open_receive(OpenReceive(edge, "127.0.0.1", port))
                inbox.has(1)
            began = time.monotonic()
            process.send_signal(signal.SIGKILL)
            assert here.closed("r").reason
            within(2.0, began)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def read_line(process, timeout_s=30.0):
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    assert readable, "the process says nothing"
    return process.stdout.readline().strip()


def test_the_network_is_given_a_second():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        TcpWire(sock, path_s=ROAD_PATH_S)
        option = getattr(socket, "TCP_USER_TIMEOUT", 18)
        assert sock.getsockopt(socket.IPPROTO_TCP, option) == 1000


@given(st.binary(max_size=40))
def test_heads_are_senseless_or_within_limits(body):
    try:
        parcel, size = decode_parcel(body)
    except ProtocolError:
        pass
    else:
        assert encode_parcel(parcel, size) == body
        assert size <= MAX_PARCEL_BYTES
    try:
        assert encode_taken(decode_taken(body)) == body
    except ProtocolError:
        assert len(body) != 8


@given(
    st.integers(0, MAX_TICKET),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)).map(sorted),
    st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)).map(sorted),
    st.integers(0, MAX_PARCEL_BYTES),
)
def test_heads_say_what_was_meant(ticket, layers, positions, size):
    parcel = Parcel(ticket, Span(*layers), *positions)
    assert decode_parcel(encode_parcel(parcel, size)) == (parcel, size)
