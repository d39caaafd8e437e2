"""Strangers, broken paths, and workers that die or freeze."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from blitzgw.core.transfer import PIECE_BYTES, OpenReceive, OpenSend
from blitzgw.crypto.edges import EDGE_ANSWER_BYTES, EDGE_HELLO_BYTES, EdgeDialler
from blitzgw.transport import listener, receiver
from blitzgw.transport.base import Record, RecordKind
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.governor import Cap, Governor
from blitzgw.transport.receiver import MAX_DAMAGED
from blitzgw.transport.tcp import TcpWire, dial
from tests.transport.edges_kit import Host, MemoryStore, join, terms, until

SIZE = 6 * PIECE_BYTES
BIG = 400 * PIECE_BYTES
PROCESS = Path(__file__).with_name("edge_process.py")


class Proxy:
    """A path between two workers. `hurt(n, data)` may change what the sender sends.

    `n` counts the bytes that a connection has passed on before `data`; None cuts the connection.
    """

    def __init__(self, port, hurt):
        self.far_port, self.hurt, self.n_connections = port, hurt, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.sockets = [self.server]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with suppress(OSError):
            while True:
                near, _ = self.server.accept()
                far = socket.create_connection(("127.0.0.1", self.far_port))
                self.sockets += [near, far]
                number = self.n_connections
                self.n_connections += 1
                for one, other, back in ((near, far, False), (far, near, True)):
                    threading.Thread(
                        target=self.pump, args=(one, other, back, number), daemon=True
                    ).start()

    def pump(self, one, other, back, number):
        n_bytes = 0
        with suppress(OSError):
            while data := one.recv(1 << 16):
                changed = self.hurt(number, n_bytes, data) if back else data
                if changed is None:
                    break
                n_bytes += len(data)
                other.sendall(changed)
        for sock in (one, other):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()  # or who writes to it would wait for the peer to read on

    def close(self):
        for sock in self.sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextmanager
def hurt_path(hurt, size=SIZE):
    """Yield (source, target, its store, the blob, the proxy) with a bad path between them."""
    blob = os.urandom(size)
    target = MemoryStore((size,))
    with Host(MemoryStore.full([blob])) as a, Host(target) as b:
        proxy = Proxy(a.port, hurt)
        try:
            yield a, b, target, blob, proxy
        finally:
            proxy.close()


def flip(at):
    """Flip a byte at this place of the first connection."""

    def hurt(number, n_bytes, data):
        if number == 0 and n_bytes <= at < n_bytes + len(data):
            data = bytearray(data)
            data[at - n_bytes] ^= 0x40
        return data

    return hurt


def test_a_flipped_byte_is_fetched_again_and_never_resident():
    with hurt_path(flip(2 * PIECE_BYTES + 1000)) as (a, b, target, blob, proxy):
        seen = []
        advance = target.advance

        def checked(index, start, stop, source=""):
            seen.append(bytes(target.blobs[0][start:stop]) == blob[start:stop])
            advance(index, start, stop, source)

        target.advance = checked
        join(a, b, terms(), proxy.port)
        closed = b.closed("e")
        assert (closed.reason, closed.payload_bytes) == ("", SIZE)
        assert bytes(target.blobs[0]) == blob
        assert all(seen)
        assert 2 <= len(seen) <= 6
        last = b.progress("e")[-1]
        assert (last.resumed, last.damaged) == (1, 1)
        sent = a.closed("e")
        assert sent.reason == ""
        assert sent.payload_bytes <= 2 * SIZE


@pytest.mark.parametrize("at", [3, EDGE_ANSWER_BYTES - 1, EDGE_ANSWER_BYTES + 1, 90])
def test_a_flipped_byte_elsewhere_costs_a_connection_at_most(at):
    """In the answer to the hello, the length of a record, a sealed head."""
    with hurt_path(flip(at)) as (a, b, target, blob, proxy):
        join(a, b, terms(), proxy.port)
        assert b.closed("e").reason == ""
        assert bytes(target.blobs[0]) == blob


def test_a_path_that_always_damages_is_given_up():
    def hurt(number, n_bytes, data):
        if n_bytes > 1000:
            data = bytearray(data)
            data[0] ^= 1
        return data

    with hurt_path(hurt) as (a, b, target, _, proxy):
        join(a, b, terms(), proxy.port)
        assert "damaged" in b.closed("e").reason
        assert b.progress("e")[-1].damaged <= MAX_DAMAGED + 1
        assert target.resident == [0]
        assert proxy.n_connections == MAX_DAMAGED + 1
        a.closed("e")


def test_lost_connections_go_on_where_they_were_cut():
    def hurt(number, n_bytes, data):
        return None if n_bytes > (number + 1) * 3 * PIECE_BYTES // 2 else data

    with hurt_path(hurt) as (a, b, target, blob, proxy):
        join(a, b, terms(), proxy.port)
        closed = b.closed("e")
        assert (closed.reason, closed.payload_bytes) == ("", SIZE)
        assert bytes(target.blobs[0]) == blob
        assert b.progress("e")[-1].resumed == proxy.n_connections - 1 >= 1
        assert b.progress("e")[-1].damaged == 0


def test_a_path_that_always_cuts_is_given_up():
    def hurt(number, n_bytes, data):
        return None if n_bytes > 200 else data

    with hurt_path(hurt) as (a, b, _, _, proxy):
        join(a, b, terms(), proxy.port)
        assert b.closed("e", 10).reason
        assert a.closed("e", 10).reason
        assert proxy.n_connections < 10


def test_strangers_are_told_nothing_and_edges_go_on():
    blob = os.urandom(SIZE)
    target = MemoryStore((SIZE,))
    edge = terms()
    with Host(MemoryStore.full([blob])) as a, Host(target) as b:
        a.edges.open_send(OpenSend(edge))
        hello = EdgeDialler("e", edge.key).hello
        wrong_key = EdgeDialler("e", bytes(32)).hello
        other = EdgeDialler("f", edge.key).hello
        for data in (wrong_key, other, os.urandom(500), b"GET / HTTP/1.1\r\n\r\n" * 9, hello[:-1]):
            with socket.create_connection(("127.0.0.1", a.port)) as sock:
                sock.sendall(data)
                with suppress(OSError):  # it may have been dropped already
                    sock.shutdown(socket.SHUT_WR)
                assert_told_nothing(sock)
        b.edges.open_receive(OpenReceive(edge, "127.0.0.1", a.port))
        assert b.closed("e").reason == ""
        assert bytes(target.blobs[0]) == blob


def assert_told_nothing(sock):
    sock.settimeout(5)
    with suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def test_a_replayed_hello_is_told_nothing():
    edge = terms()
    with Host(MemoryStore((SIZE,))) as a:
        a.edges.open_send(OpenSend(edge))
        sock, session = dial(("127.0.0.1", a.port), "e", edge.key, 2.0)
        handshake = EdgeDialler("e", edge.key)
        with socket.create_connection(("127.0.0.1", a.port)) as first:
            first.sendall(handshake.hello)
            first.settimeout(5)
            answer = b""
            while len(answer) < EDGE_ANSWER_BYTES:
                answer += first.recv(EDGE_ANSWER_BYTES)
            handshake.finish(answer)
            with socket.create_connection(("127.0.0.1", a.port)) as second:
                second.sendall(handshake.hello)
                assert_told_nothing(second)
        sock.close()
        assert session


def test_half_open_connections_are_dropped_and_do_not_shut_others_out(monkeypatch):
    monkeypatch.setattr(listener, "MAX_STRANGERS", 4)
    monkeypatch.setattr(listener, "HELLO_S", 0.5)
    blob = os.urandom(SIZE)
    target = MemoryStore((SIZE,))
    with Host(MemoryStore.full([blob])) as a, Host(target) as b:
        held = [socket.create_connection(("127.0.0.1", a.port)) for _ in range(12)]
        for sock in held:
            with suppress(OSError):
                sock.send(b"\xb1")
        join(a, b, terms())
        assert b.closed("e").reason == ""
        for sock in held:
            assert_told_nothing(sock)
            sock.close()
        until(lambda: not a.edges._listener._strangers)


def test_a_receiver_that_lies_is_cut_off():
    """It says to have more than there is, or what only senders say, or nothing at all."""
    lies = [
        Record(RecordKind.HAVE, struct.pack("<Q", SIZE + 1)),
        Record(RecordKind.HAVE, b"x"),
        Record(RecordKind.DONE),
        Record(RecordKind.REFUSED, b"no"),
    ]
    for number, lie in enumerate(lies):
        edge = terms(f"e{number}")
        with Host(MemoryStore((SIZE,))) as a:
            a.edges.open_send(OpenSend(edge))
            sock, session = dial(("127.0.0.1", a.port), edge.id, edge.key, 2.0)
            channel = speak(sock, session)
            channel.send(lie)
            closed = a.closed(edge.id)
            assert closed.reason
            assert closed.payload_bytes == 0
            channel.close()


def speak(sock, session):
    return SealedChannel(TcpWire(sock), session, Governor(Cap(0)).lane(2), 7)


def test_a_receiver_that_stops_reading_ends_the_edge_in_bounded_time(monkeypatch):
    monkeypatch.setattr(listener, "TcpWire", lambda sock, **_: TcpWire(sock, 0.5))
    edge = terms()
    with Host(MemoryStore.full([bytes(32 * PIECE_BYTES)])) as a:
        a.edges.open_send(OpenSend(edge))
        sock, session = dial(("127.0.0.1", a.port), "e", edge.key, 2.0)
        channel = speak(sock, session)
        channel.send(Record(RecordKind.HAVE, bytes(8)))
        began = time.monotonic()
        assert a.closed("e").reason
        assert time.monotonic() - began < 5.0
        channel.close()


def test_a_hello_is_all_that_a_stranger_may_send():
    assert EDGE_HELLO_BYTES <= 1024
    assert listener.HELLO_S <= 2.0


@contextmanager
def process(*args):
    """Run edges in a process of their own; yield it and its port."""
    child = subprocess.Popen(
        [sys.executable, str(PROCESS), *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_target_ends_the_edge_within_a_second(busy):
    source = EndlessStore((SIZE,)) if busy else MemoryStore((SIZE,))
    edge = terms()
    with Host(source) as a:
        a.edges.open_send(OpenSend(edge))
        with process("target", "e", edge.key.hex(), SIZE, a.port) as (child, _):
            until(lambda: a.edges._ends and next(iter(a.edges._ends.values()))._connections == 1)
            time.sleep(0.3)
            began = time.monotonic()
            child.kill()
            assert a.closed("e").reason
            assert time.monotonic() - began < 1.5  # 0.8 s of patience for a new connection


class EndlessStore(MemoryStore):
    """A blob whose bytes come slowly, so that the edge is busy for long."""

    def wait(self, index, beyond, timeout_s):
        time.sleep(0.1)
        with self.changed:
            self.resident[0] = min(SIZE - 1, self.resident[0] + PIECE_BYTES)  # never all of it
        return self.resident[0]


@pytest.mark.parametrize("role", ["source", "idle"])
def test_a_killed_source_ends_the_edge_within_a_second(role):
    edge = terms()
    target = SlowStore((BIG,))
    with process(role, "e", edge.key.hex(), BIG) as (child, port), Host(target) as b:
        b.edges.open_receive(OpenReceive(edge, "127.0.0.1", port))
        until(lambda: target.resident[0] > 0)
        began = time.monotonic()
        child.kill()
        assert "refused" in b.closed("e").reason
        assert time.monotonic() - began < 1.5


class SlowStore(MemoryStore):
    """A target whose edges last long enough to be cut."""

    def advance(self, index, start, stop, source=""):
        time.sleep(0.05)
        super().advance(index, start, stop, source)


def test_a_frozen_source_ends_the_edge_in_bounded_time(monkeypatch):
    monkeypatch.setattr(receiver, "TcpWire", lambda sock: TcpWire(sock, 0.6))
    monkeypatch.setattr(receiver, "REDIAL_S", 0.5)
    monkeypatch.setattr("blitzgw.transport.tcp.HELLO_S", 0.5)
    edge = terms()
    target = SlowStore((BIG,))
    with process("source", "e", edge.key.hex(), BIG) as (child, port), Host(target) as b:
        b.edges.open_receive(OpenReceive(edge, "127.0.0.1", port))
        until(lambda: target.resident[0] > 0)
        child.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert b.closed("e").reason
        assert time.monotonic() - began < 8.0


def test_a_frozen_target_ends_the_edge_in_bounded_time(monkeypatch):
    """Also where nothing is being sent: its kernel still takes what is said, nobody answers."""
    monkeypatch.setattr("blitzgw.transport.sender.STALL_S", 0.8)
    monkeypatch.setattr("blitzgw.transport.sender.ALIVE_S", 0.2)
    edge = terms()
    with Host(MemoryStore((SIZE,))) as a:
        a.edges.open_send(OpenSend(edge))
        with process("target", "e", edge.key.hex(), SIZE, a.port) as (child, _):
            until(lambda: a.edges._ends and next(iter(a.edges._ends.values()))._connections == 1)
            time.sleep(0.3)
            child.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert "answered" in a.closed("e").reason or "connected" in a.closed("e").reason
            assert time.monotonic() - began < 6.0
