"""Edges between workers of one process: chains, resumption, ends at any moment."""

import os
import socket
import threading
import time

import pytest

from blitzgw.core.transfer import (
    PIECE_BYTES,
    DataNetwork,
    EdgeClosed,
    OpenReceive,
    OpenSend,
    TrafficReport,
)
from blitzgw.errors import ProtocolError
from blitzgw.transport import digests, edges, receiver, sender
from blitzgw.transport.base import Piece
from blitzgw.transport.edges import Edges
from tests.transport.edges_kit import NET, Host, MemoryStore, join, terms, until

SIZES = (5 * PIECE_BYTES + 77, 0, 1, 2 * PIECE_BYTES, 300_000)


def random_blobs(sizes=SIZES):
    return [os.urandom(size) for size in sizes]


@pytest.fixture
def blobs():
    return random_blobs()


def check(store, blobs):
    assert [bytes(blob) for blob in store.blobs] == blobs
    assert store.complete()


def test_an_edge_brings_all_blobs_in_its_order(blobs):
    source, target = MemoryStore.full(blobs), MemoryStore(SIZES)
    edge = terms(blobs=(3, 0, 4, 1, 2))
    with Host(source) as a, Host(target) as b:
        join(a, b, edge)
        for host in (a, b):
            closed = host.closed("e")
            assert closed.reason == ""
            assert closed.payload_bytes == sum(SIZES)
        check(target, blobs)
        assert list(target.sources) == [3, 0, 4, 2]
        assert {s for pieces in target.sources.values() for _, _, s in pieces} == {"e"}
        progress = b.progress("e")
        assert 0 < progress[0].received_bytes <= PIECE_BYTES
        assert progress[-1].received_bytes == sum(SIZES)
        assert (progress[-1].resumed, progress[-1].damaged) == (0, 0)


def test_only_what_lacks_is_sent(blobs):
    source, target = MemoryStore.full(blobs), MemoryStore(SIZES)
    target.blobs[0][: 2 * PIECE_BYTES + 5] = blobs[0][: 2 * PIECE_BYTES + 5]
    target.resident[0] = 2 * PIECE_BYTES + 5
    target.blobs[3][:] = blobs[3]
    target.resident[3] = SIZES[3]
    with Host(source) as a, Host(target) as b:
        join(a, b, terms(blobs=(0, 1, 2, 3)))
        assert b.closed("e").payload_bytes == SIZES[0] - 2 * PIECE_BYTES - 5 + 1
        assert a.closed("e").payload_bytes == b.closed("e").payload_bytes
        assert target.sources[0][0][:2] == (2 * PIECE_BYTES + 5, 3 * PIECE_BYTES)
        assert [bytes(b) for b in target.blobs[:4]] == blobs[:4]


def test_an_edge_with_nothing_to_do_ends_well(blobs):
    with Host(MemoryStore.full(blobs)) as a, Host(MemoryStore.full(blobs)) as b:
        join(a, b, terms("full", range(5)))
        join(a, b, terms("none", ()))
        for host in (a, b):
            for edge in ("full", "none"):
                assert host.closed(edge) == EdgeClosed(edge, "", 0, 0.0)


def test_relays_forward_before_they_have_a_blob(blobs):
    """The chain's last edge is opened first, and the source's bytes come one piece at a time."""
    stores = [MemoryStore(SIZES) for _ in range(4)]
    hosts = [Host(store) for store in stores]
    try:
        for hop in (2, 1, 0):
            join(hosts[hop], hosts[hop + 1], terms(f"e{hop}", blobs=range(5)))
        for index, blob in enumerate(blobs):
            for start in range(0, len(blob), PIECE_BYTES):
                stop = min(len(blob), start + PIECE_BYTES)
                stores[0].blobs[index][start:stop] = blob[start:stop]
                stores[0].advance(index, start, stop)
                until(lambda i=index, n=stop: stores[3].resident[i] == n)
        for hop in range(3):
            assert hosts[hop + 1].closed(f"e{hop}").reason == ""
            assert hosts[hop].closed(f"e{hop}").reason == ""
        check(stores[3], blobs)
    finally:
        for host in hosts:
            host.__exit__()


def test_a_relay_makes_no_digest_that_it_has_checked(blobs, monkeypatch):
    made = []
    real = digests.piece_digest
    monkeypatch.setattr(digests, "piece_digest", lambda p, s: made.append(len(p)) or real(p, s))
    relay, target = MemoryStore(SIZES), MemoryStore(SIZES)
    with Host(MemoryStore.full(blobs)) as a, Host(relay) as b, Host(target) as c:
        join(b, c, terms("bc", range(5)))
        join(a, b, terms("ab", range(5)))
        assert c.closed("bc").reason == b.closed("ab").reason == ""
        check(target, blobs)
    assert sum(made) == sum(SIZES)


def test_several_edges_fill_one_store_and_leave_one(blobs):
    source, target = MemoryStore.full(blobs), MemoryStore(SIZES)
    other = MemoryStore(SIZES)
    with Host(source) as a, Host(target) as b, Host(other) as c:
        for index in range(5):
            join(a, b, terms(f"b{index}", (index,)))
            join(a, c, terms(f"c{index}", (index,)))
        for index in range(5):
            assert b.closed(f"b{index}").reason == c.closed(f"c{index}").reason == ""
        check(target, blobs)
        check(other, blobs)


def test_two_edges_of_the_same_blobs_bring_each_byte_once(blobs):
    target = MemoryStore(SIZES)
    with Host(MemoryStore.full(blobs)) as a, Host(MemoryStore.full(blobs)) as b:
        with Host(target) as c:
            join(a, c, terms("ac", range(5)))
            join(b, c, terms("bc", reversed(range(5))))
            closed = [c.closed("ac"), c.closed("bc")]
            assert [m.reason for m in closed] == ["", ""]
            assert sum(m.payload_bytes for m in closed) == sum(SIZES)
            assert a.closed("ac").reason == b.closed("bc").reason == ""
            last = [c.progress(edge)[-1] for edge in ("ac", "bc")]
            assert [(m.damaged, m.resumed) for m in last] == [(0, 0)] * 2
        check(target, blobs)


def test_an_edge_takes_over_what_another_has_let_go_of(blobs):
    idle, target = MemoryStore(SIZES), MemoryStore(SIZES)
    idle.blobs[0][:] = blobs[0]
    idle.advance(0, 0, PIECE_BYTES)
    with Host(idle) as a, Host(MemoryStore.full(blobs)) as b, Host(target) as c:
        join(a, c, terms("first", (0, 1)))
        until(lambda: target.resident[0] == PIECE_BYTES)
        join(b, c, terms("second", range(5)))
        until(lambda: all(target.resident[i] == SIZES[i] for i in range(2, 5)))
        assert c.closed_edges() == []
        c.edges.close("first")
        closed = c.closed("second")
        assert (closed.reason, closed.payload_bytes) == ("", sum(SIZES) - PIECE_BYTES)
        assert c.progress("second")[-1].damaged == 0
        assert b.closed("second").reason == ""
        check(target, blobs)
    assert target.fillers == {}


def test_an_edge_that_takes_the_place_of_another_keeps_its_order(blobs):
    target = MemoryStore(SIZES)
    assert target.begin(0, "replaced")
    with Host(MemoryStore.full(blobs)) as a, Host(target) as b:
        begin, asked = target.begin, []

        def letting_go(index, source):
            asked.append(index)
            if len(asked) == 3:  # all but blob 0 have been asked for once
                threading.Timer(0.01, target.end, (0, "replaced")).start()
            return begin(index, source)

        target.begin = letting_go
        join(a, b, terms(blobs=(0, 3, 4)))
        assert b.closed("e").reason == ""
        assert list(target.sources) == [0, 3, 4]
        assert b.progress("e")[-1].resumed == 0


@pytest.mark.parametrize("how", ["edge", "store", "source", "worker"])
def test_an_edge_that_waits_for_another_may_be_ended(blobs, how):
    idle, target = MemoryStore(SIZES), MemoryStore(SIZES)
    with Host(idle) as a, Host(MemoryStore.full(blobs)) as b, Host(target) as c:
        join(a, c, terms("first", (0,)))
        until(lambda: target.fillers == {0: "first"})
        join(b, c, terms("second", (0, 3)))
        until(lambda: target.resident[3] == SIZES[3])
        began = time.monotonic()
        if how == "edge":
            c.edges.close("second")
        elif how == "store":
            target.close()
        elif how == "source":
            b.edges.stop()
        else:
            c.edges.stop()
        assert c.closed("second").reason != ""
        assert time.monotonic() - began < 4.0
        if how in ("edge", "source"):
            assert target.fillers == {0: "first"}
        c.edges.close("first")
        assert c.closed("first").reason != ""
        assert target.fillers == {}


def test_what_nobody_asked_for_is_not_written(blobs):
    """Neither where bytes are resident nor where another edge is at work."""
    target = MemoryStore.full(blobs)
    target.resident[3] = target.resident[4] = 0
    assert target.begin(3, "other")

    class Pushy:
        def __init__(self, piece):
            self.piece = piece

        def send(self, record):
            pass

        def poll(self, timeout_s):
            return True

        def receive(self):
            return self.piece

        def receive_payload(self, piece, into):
            into[:] = bytes(len(into))

    for blob, asked in ((0, (0, 3)), (3, (0, 3)), (0, (0, 3, 4)), (3, (0, 3, 4))):
        edge = receiver.Receiver(
            OpenReceive(terms("e", asked), "h", 1), None, digests.PieceDigests(7), print, None
        )
        with pytest.raises(ProtocolError, match=r"not (asked for|expected)"):
            edge._fill(Pushy(Piece(blob, 0, 5, 0)), target)
    assert [bytes(blob) for blob in target.blobs] == blobs


def test_two_workers_may_exchange_halves(blobs):
    one, two = MemoryStore(SIZES), MemoryStore(SIZES)
    for store, index in ((one, 0), (two, 3)):
        store.blobs[index][:] = blobs[index]
        store.resident[index] = SIZES[index]
    with Host(one) as a, Host(two) as b:
        join(a, b, terms("ab", (0,)))
        join(b, a, terms("ba", (3,)))
        assert a.closed("ba").reason == b.closed("ab").reason == ""
        assert bytes(one.blobs[3]) == blobs[3]
        assert bytes(two.blobs[0]) == blobs[0]


def test_the_sender_may_be_told_after_the_receiver(blobs):
    target = MemoryStore(SIZES)
    with Host(MemoryStore.full(blobs)) as a, Host(target) as b:
        edge = terms(blobs=range(5))
        b.edges.open_receive(OpenReceive(edge, "127.0.0.1", a.port))
        time.sleep(0.4)
        a.edges.open_send(OpenSend(edge))
        assert b.closed("e").reason == ""
        check(target, blobs)


def test_stores_may_come_after_their_edges(blobs):
    source, target = MemoryStore.full(blobs), MemoryStore(SIZES)
    with Host() as a, Host() as b:
        join(a, b, terms(blobs=range(5)))
        time.sleep(0.2)
        a.stores["w"] = source
        b.stores["w"] = target
        assert b.closed("e").reason == ""
        check(target, blobs)


def test_an_idle_source_is_waited_for(blobs, monkeypatch):
    """Nothing new for longer than a silent peer is given: records say that the sender lives."""
    monkeypatch.setattr(sender, "ALIVE_S", 0.2)
    monkeypatch.setattr("blitzgw.transport.tcp.STALL_S", 0.8)
    monkeypatch.setattr(receiver, "TcpWire", lambda sock, **_: receiver_wire(sock, 0.8))
    from blitzgw.transport.tcp import TcpWire as receiver_wire

    source, target = MemoryStore(SIZES), MemoryStore(SIZES)
    with Host(source) as a, Host(target) as b:
        join(a, b, terms(blobs=(0,)))
        time.sleep(2.0)
        source.blobs[0][:] = blobs[0]
        source.advance(0, 0, SIZES[0])
        assert b.closed("e").reason == ""
        assert b.progress("e")[-1].resumed == 0
        assert bytes(target.blobs[0]) == blobs[0]


@pytest.mark.parametrize("who", ["source", "target"])
@pytest.mark.parametrize("how", ["edge", "store", "worker"])
def test_an_edge_may_be_ended_at_any_moment(blobs, who, how, monkeypatch):
    monkeypatch.setattr(receiver, "REDIAL_S", 0.3)
    source, target = MemoryStore(SIZES), MemoryStore(SIZES)
    source.blobs[0][:] = blobs[0]
    source.advance(0, 0, PIECE_BYTES)
    with Host(source) as a, Host(target) as b:
        join(a, b, terms(blobs=(0,)))
        until(lambda: target.resident[0] == PIECE_BYTES)
        host, store = (a, source) if who == "source" else (b, target)
        began = time.monotonic()
        if how == "edge":
            host.edges.close("e")
        elif how == "store":
            store.close()
        else:
            host.edges.stop()
        assert host.closed("e").reason != ""
        assert a.closed("e").reason != ""
        assert b.closed("e").reason != ""
        assert time.monotonic() - began < 4.0


def test_what_is_left_undone_can_be_had_over_another_edge(blobs):
    source, target = MemoryStore(SIZES), MemoryStore(SIZES)
    source.blobs[0][:] = blobs[0]
    source.advance(0, 0, 2 * PIECE_BYTES)
    with Host(source) as a, Host(target) as b, Host(MemoryStore.full(blobs)) as c:
        join(a, b, terms("ab", blobs=(0,)))
        until(lambda: target.resident[0] == 2 * PIECE_BYTES)
        b.edges.close("ab")
        assert b.closed("ab").reason == "closed"
        join(c, b, terms("cb", blobs=(0,)))
        assert b.closed("cb").payload_bytes == SIZES[0] - 2 * PIECE_BYTES
        assert bytes(target.blobs[0]) == blobs[0]
        a.closed("ab")


def test_nobody_listens_ends_at_once():
    with Host() as gone:
        port = gone.port
    with Host(MemoryStore((5,))) as b:
        began = time.monotonic()
        b.edges.open_receive(OpenReceive(terms(), "127.0.0.1", port))
        assert "refused" in b.closed("e").reason
        assert time.monotonic() - began < 1.0


def test_unknown_edges_and_stores_end_with_a_reason(monkeypatch):
    monkeypatch.setattr(receiver, "FIRST_DIAL_S", 0.3)
    monkeypatch.setattr(sender, "FIRST_WAIT_S", 0.3)
    monkeypatch.setattr("blitzgw.transport.ends.STORE_WAIT_S", 0.3)
    with Host(MemoryStore((5,))) as a, Host() as b:
        a.edges.open_receive(OpenReceive(terms("unknown"), "127.0.0.1", b.port))
        a.edges.open_send(OpenSend(terms("nobody")))
        b.edges.open_send(OpenSend(terms("storeless")))
        assert "does not know the edge" in a.closed("unknown").reason
        assert "not connected" in a.closed("nobody").reason
        assert "no store" in b.closed("storeless").reason
        a.edges.close("never heard of it")


def test_senseless_terms_end_with_a_reason():
    with Host() as a:
        a.edges.open_send(OpenSend(terms(key=b"short")))
        assert a.closed("e").reason
    a.edges.open_send(OpenSend(terms("late")))
    assert "stopping" in a.closed("late").reason


def test_edges_are_bounded(monkeypatch):
    monkeypatch.setattr(edges, "MAX_EDGES", 2)
    with Host(MemoryStore((5,))) as a:
        for number in range(3):
            a.edges.open_send(OpenSend(terms(f"e{number}")))
        a.edges.open_send(OpenSend(terms("e0")))  # known already
        assert a.closed("e2").reason == "too many edges"
        assert len(a.told) == 1


def test_weights_keep_below_the_cap():
    size = 3 * PIECE_BYTES
    blob = os.urandom(size)
    target = MemoryStore((size,))
    with Host(MemoryStore.full([blob]), weight_bytes_per_s=size / 0.8) as a, Host(target) as b:
        join(a, b, terms())
        until(lambda: target.resident[0] > 0)
        until(lambda: a.edges.traffic().weights > 0)
        assert a.edges.traffic().weights < 1.6 * size / 0.8
        assert 0.3 < b.closed("e").seconds < 4.0
        a.edges.cap(0)
        again = MemoryStore((size,))
        b.stores["w"] = again
        join(a, b, terms("free"))
        assert b.closed("free").seconds < 0.5
        assert b.edges.traffic() == TrafficReport(0, 0, 0)


def test_a_network_that_cannot_be_listened_on_raises():
    before = threading.active_count()
    with pytest.raises(OSError, match="assign"):
        Edges([DataNetwork(NET, "203.0.113.7")], lambda _: None, lambda _: None)
    assert threading.active_count() == before


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_all_addresses_are_those_of_both_protocols(blobs, host):
    """As for control traffic: a node may listen on "::" and advertise an IPv4 address."""
    target = MemoryStore(SIZES)
    with Host(MemoryStore.full(blobs), host="::") as a, Host(target) as b:
        edge = terms(blobs=range(5))
        a.edges.open_send(OpenSend(edge))
        b.edges.open_receive(OpenReceive(edge, host, a.port))
        assert b.closed("e").reason == ""
        check(target, blobs)


def test_each_network_has_a_port():
    networks = [DataNetwork("a", "127.0.0.1"), DataNetwork("b", "127.0.0.2")]
    joined = Edges(networks, lambda _: None, lambda _: None)
    assert set(joined.ports) == {"a", "b"}
    joined.stop()
    assert joined.join(5.0)
