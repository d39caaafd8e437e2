"""Handshakes and records: the arithmetic first, then over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.crypto.handshake import (
    CLIENT_HELLO_BYTES,
    CONFIRMATION_BYTES,
    SERVER_HELLO_BYTES,
    ClientHandshake,
    Purpose,
    ServerHandshake,
)
from blitzgw.crypto.keys import ClusterKey, Keyring
from blitzgw.crypto.records import OVERHEAD_BYTES, RecordReader, Session
from blitzgw.crypto.streams import accept_secure, connect_secure, receive_record, send_record
from blitzgw.errors import ProtocolError

OLD, NEW, FOREIGN = ("old" * 12), ("new" * 12), ("foreign" * 5)
ANN, BOB = "aa" * 8, "bb" * 8


def shake(client_keys=(OLD,), server_keys=(OLD,)) -> tuple[Session, Session]:
    client = ClientHandshake(Keyring(client_keys), ANN, Purpose.LINK)
    server = ServerHandshake(Keyring(server_keys), BOB)
    session, confirmation = client.finish(server.answer(client.hello))
    return session, server.finish(confirmation)


@contextlib.asynccontextmanager
async def listening(keys=(OLD,), timeout_s=2.0):
    """A server on loopback: yields its address and a queue of sessions or errors."""
    loop = asyncio.get_running_loop()
    outcomes: asyncio.Queue = asyncio.Queue()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def one(sock):
        try:
            session, purpose = await accept_secure(sock, Keyring(keys), BOB, timeout_s)
            outcomes.put_nowait((sock, session, purpose))
        except (OSError, ProtocolError) as e:
            outcomes.put_nowait(e)

    async def serve():
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(one((await loop.sock_accept(listener))[0]))

    serving = asyncio.ensure_future(serve())
    try:
        yield listener.getsockname(), outcomes
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        listener.close()


async def receive(sock: socket.socket, size: int) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size), 2.0)


# Keys.


@pytest.mark.parametrize(
    "keys", [(), ("short",), (OLD, OLD), (OLD, NEW, FOREIGN), ("a\n" * 20,), ("a" * 31,)]
)
def test_keys_that_cannot_be_meant_are_refused(keys):
    with pytest.raises(ValueError, match="key"):
        Keyring(keys)


def test_a_key_tells_nothing_of_itself():
    assert OLD not in repr(ClusterKey(OLD))
    assert len(ClusterKey(OLD).id) == 4
    assert ClusterKey(OLD).id != ClusterKey(NEW).id
    assert ClusterKey(OLD).derive(b"a", b"b") != ClusterKey(OLD).derive(b"ab")


# Handshake.


def test_both_ends_know_each_other_and_hellos_are_small():
    ann, bob = shake()
    assert (ann.peer_boot, bob.peer_boot) == (BOB, ANN)
    assert max(CLIENT_HELLO_BYTES, SERVER_HELLO_BYTES, CONFIRMATION_BYTES) <= 1024
    assert SERVER_HELLO_BYTES <= CLIENT_HELLO_BYTES


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ((OLD,), (OLD, NEW)),
        ((OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), (OLD, NEW)),
        ((NEW,), (OLD, NEW)),
    ],
)
def test_either_key_is_accepted_during_a_rotation(client, server):
    ann, bob = shake(client, server)
    assert RecordReader(bob, 100).feed(ann.seal(b"x")) == [b"x"]


def test_another_cluster_and_oneself_are_refused():
    for keys, boot in ((FOREIGN, ANN), (OLD, BOB)):
        client = ClientHandshake(Keyring((keys,)), boot, Purpose.SYNC)
        with pytest.raises(ProtocolError):
            ServerHandshake(Keyring((OLD,)), BOB).answer(client.hello)


@given(at=st.integers(0, 1000), flip=st.integers(1, 255), which=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_no_byte_of_a_handshake_can_be_changed(at, flip, which):
    def spoil(data: bytes, number: int) -> bytes:
        if number != which:
            return data
        spoilt = bytearray(data)
        spoilt[at % len(data)] ^= flip
        return bytes(spoilt)

    client = ClientHandshake(Keyring((OLD,)), ANN, Purpose.SYNC)
    server = ServerHandshake(Keyring((OLD,)), BOB)

    def play() -> None:
        answer = server.answer(spoil(client.hello, 0))
        _, confirmation = client.finish(spoil(answer, 1))
        server.finish(spoil(confirmation, 2))

    with pytest.raises(ProtocolError):
        play()


def test_a_replayed_hello_leads_nowhere():
    client = ClientHandshake(Keyring((OLD,)), ANN, Purpose.LINK)
    first = ServerHandshake(Keyring((OLD,)), BOB)
    _, confirmation = client.finish(first.answer(client.hello))
    first.finish(confirmation)
    second = ServerHandshake(Keyring((OLD,)), BOB)
    second.answer(client.hello)
    with pytest.raises(ProtocolError):
        second.finish(confirmation)


def test_a_replayed_answer_leads_nowhere():
    server = ServerHandshake(Keyring((OLD,)), BOB)
    recorded = server.answer(ClientHandshake(Keyring((OLD,)), ANN, Purpose.LINK).hello)
    with pytest.raises(ProtocolError):
        ClientHandshake(Keyring((OLD,)), ANN, Purpose.LINK).finish(recorded)


def test_whoever_holds_the_key_cannot_read_what_two_others_said():
    """Forward secrecy: of one client's hello, two servers make different keys."""
    client = ClientHandshake(Keyring((OLD,)), ANN, Purpose.LINK)
    real, eve = (ServerHandshake(Keyring((OLD,)), BOB) for _ in range(2))
    _, confirmation = client.finish(real.answer(client.hello))
    real.finish(confirmation)
    eve.answer(client.hello)
    with pytest.raises(ProtocolError):
        eve.finish(confirmation)


# Records.


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(1, 97), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_records_come_out_whole_however_they_are_cut(payloads, cuts):
    ann, bob = shake()
    stream = b"".join(map(ann.seal, payloads))
    assert len(stream) == sum(len(p) + OVERHEAD_BYTES for p in payloads)
    reader, got, n = RecordReader(bob, 300), [], 0
    while stream:
        size = cuts[n % len(cuts)]
        got += reader.feed(stream[:size])
        stream, n = stream[size:], n + 1
    assert got == payloads


def test_directions_have_keys_of_their_own():
    ann, bob = shake()
    with pytest.raises(ProtocolError):
        RecordReader(ann, 100).feed(ann.seal(b"x"))
    ann, bob = shake()
    assert RecordReader(ann, 100).feed(bob.seal(b"y")) == [b"y"]


@pytest.mark.parametrize("order", [(1,), (1, 0), (0, 0), (0, 2)])
def test_records_cannot_be_left_out_repeated_or_moved(order):
    ann, bob = shake()
    records = [ann.seal(bytes([n])) for n in range(3)]
    with pytest.raises(ProtocolError):
        RecordReader(bob, 100).feed(b"".join(records[n] for n in order))


def test_a_record_that_is_too_long_is_refused_before_it_is_buffered():
    ann, bob = shake()
    reader = RecordReader(bob, 100)
    record = ann.seal(bytes(101))
    with pytest.raises(ProtocolError):
        reader.feed(record[:4])
    assert not reader._buffer


def test_a_broken_stream_stays_broken():
    ann, bob = shake()
    reader = RecordReader(bob, 100)
    good = ann.seal(b"x")
    with pytest.raises(ProtocolError):
        reader.feed(b"\0\0\0\0" + good)
    with pytest.raises(ProtocolError):
        reader.feed(good)


def test_whole_records_are_checked_like_parts():
    ann, bob = shake()
    reader = RecordReader(bob, 100)
    assert [reader.feed(ann.seal(bytes([n]))) for n in range(3)] == [[b"\0"], [b"\1"], [b"\2"]]
    record = ann.seal(b"three")
    assert (reader.feed(record[:9]), reader.feed(record[9:])) == ([], [b"three"])
    forged = bytearray(ann.seal(b"four"))
    forged[-1] ^= 1
    with pytest.raises(ProtocolError):
        reader.feed(bytes(forged))
    with pytest.raises(ProtocolError):
        reader.feed(ann.seal(b"five"))


def test_a_record_as_long_as_the_last_one_is_checked_like_others():
    ann, bob = shake()
    reader = RecordReader(bob, 100)
    assert [reader.feed(ann.seal(b"one")), reader.feed(ann.seal(b"two"))] == [[b"one"], [b"two"]]
    three, four = ann.seal(b"three-three"), ann.seal(b"four")
    assert reader.feed(three[:23]) == []  # as long as those before, but not whole
    assert reader.feed(three[23:] + four) == [b"three-three", b"four"]
    assert reader.feed(ann.seal(b"six")) == [b"six"]
    with pytest.raises(ProtocolError):
        reader.feed(bytes(len(ann.seal(b"six"))))
    with pytest.raises(ProtocolError, match="broken already"):
        reader.feed(ann.seal(b"six"))


# Sockets.


async def test_two_ends_meet_and_talk_and_nothing_is_read_beyond_the_handshake():
    async with listening() as (address, outcomes):
        sock, session, boot = await connect_secure(address, Keyring((OLD,)), ANN, Purpose.LINK, 2.0)
        with sock:
            await send_record(sock, session, b"at once")
            theirs, other, purpose = await outcomes.get()
            with theirs:
                assert (boot, other.peer_boot, purpose) == (BOB, ANN, Purpose.LINK)
                assert await receive_record(theirs, other, 100) == b"at once"
                big = bytes(3_000_000)
                sending = asyncio.ensure_future(send_record(theirs, other, big))
                assert await receive_record(sock, session, len(big)) == big
                await sending


async def test_the_socket_goes_on_in_a_transport():
    class Keep(asyncio.Protocol):
        def __init__(self):
            self.data = asyncio.Queue()

        def data_received(self, data):
            self.data.put_nowait(data)

    async with listening() as (address, outcomes):
        sock, session, _ = await connect_secure(address, Keyring((OLD,)), ANN, Purpose.LINK, 2.0)
        await send_record(sock, session, b"early")
        theirs, other, _ = await outcomes.get()
        transport, keep = await asyncio.get_running_loop().create_connection(Keep, sock=theirs)
        reader = RecordReader(other, 100)
        assert reader.feed(await keep.data.get()) == [b"early"]
        transport.close()
        sock.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("keys", [(FOREIGN,), (NEW,)])
async def test_a_stranger_gets_no_answer(keys):
    async with listening() as (address, outcomes):
        with pytest.raises(OSError, match=r"closed|reset"):
            await connect_secure(address, Keyring(keys), ANN, Purpose.SYNC, 2.0)
        assert isinstance(await outcomes.get(), ProtocolError)


async def test_a_foreign_server_is_not_believed():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        dialling = asyncio.ensure_future(
            connect_secure(listener.getsockname(), Keyring((OLD,)), ANN, Purpose.SYNC, 2.0)
        )
        theirs, _ = await loop.sock_accept(listener)
        with theirs:
            await loop.sock_sendall(theirs, bytes(SERVER_HELLO_BYTES))
            with pytest.raises(ProtocolError):
                await dialling


async def test_whoever_is_slow_is_cut_off_at_both_ends():
    async with listening(timeout_s=0.2) as (address, outcomes):
        sock = socket.create_connection(address)
        sock.setblocking(False)
        with sock:
            started = time.monotonic()
            await asyncio.get_running_loop().sock_sendall(sock, b"\xb1")
            assert isinstance(await outcomes.get(), TimeoutError)
            assert time.monotonic() - started < 2
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        await connect_secure(silent.getsockname(), Keyring((OLD,)), ANN, Purpose.SYNC, 0.2)


async def test_a_cancelled_dial_leaves_no_socket():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        dialling = asyncio.ensure_future(
            connect_secure(silent.getsockname(), Keyring((OLD,)), ANN, Purpose.SYNC, 5.0)
        )
        theirs, _ = await asyncio.get_running_loop().sock_accept(silent)
        with theirs:
            assert await receive(theirs, CLIENT_HELLO_BYTES)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            assert await receive(theirs, 1) == b""
