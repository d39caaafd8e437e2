"""Roads among a worker's edges."""

import threading
import time

from blitzgw.core.transfer import PIECE_BYTES, OpenReceive, OpenSend, TrafficClass
from blitzgw.transport import parcel_receiver, parcel_sender
from tests.transport.edges_kit import Host, MemoryStore, join, terms, until
from tests.transport.parcels_kit import Inbox, Told, blob, hidden, kv, outgoing, road_terms, within


def worker(*stores, **options):
    inbox = Inbox()
    host = Host(*stores, parcels=inbox.take, road_ended=inbox.end, **options)
    host.inbox = inbox
    return host


def test_roads_and_edges_of_weights_go_side_by_side():
    weights = blob(9 * PIECE_BYTES)
    target = MemoryStore((len(weights),))
    told, data = Told(), blob(100_000)
    with worker(MemoryStore.full([weights])) as a, worker(target) as b:
        join(a, b, terms("w"))
        join(a, b, road_terms("there"))
        join(b, a, road_terms("back"))
        for host, edge in ((a, "there"), (b, "back")):
            parcels = [outgoing(kv(i), data) for i in range(20)]
            host.edges.send_parcels(edge, parcels, told.of(edge))
        for host in (a, b):
            assert host.inbox.has(20) == [(kv(i), data) for i in range(20)]
        assert sorted(told.wait(2)) == [("back", 2_000_000, ""), ("there", 2_000_000, "")]
        assert b.closed("w").reason == ""
        assert bytes(target.blobs[0]) == weights
        a.edges.close("there")
        a.edges.close("back")
        for host in (a, b):
            assert host.closed("there").payload_bytes == 2_000_000
            assert host.closed("back").payload_bytes == 2_000_000
        assert (a.inbox.ended, b.inbox.ended) == (["back"], ["there"])


def test_a_road_within_a_worker():
    told = Told()
    with Host(parcels=lambda *_: None) as a:
        join(a, a, road_terms())
        a.edges.send_parcels("r", [outgoing(hidden(), b"x")], told.of("x"))
        assert told.wait(1) == [("x", 1, "")]
        a.edges.close("r")
        until(lambda: len(a.closed_edges()) == 2)
        a.told.clear()  # two ends, each told once


def test_roads_that_are_not_there():
    told = Told()
    with worker() as a:
        a.edges.send_parcels("unknown", [outgoing(kv(), b"x")], told.of("x"))
        assert told.news == [("x", 0, "there is no such road")]
        a.edges.drop_parcels("unknown", (1, 2))
        a.edges.open_receive(OpenReceive(road_terms("receives"), "127.0.0.1", a.port))
        a.edges.send_parcels("receives", [], told.of("y"))
        assert told.news[1][2]
        a.edges.close("receives")
        assert a.closed("receives").reason


def test_a_worker_that_takes_no_parcels_says_so():
    with worker() as a, Host() as b:
        b.edges.open_receive(OpenReceive(road_terms(), "127.0.0.1", a.port))
        assert b.closed("r").reason
        b.edges.open_send(OpenSend(road_terms("sends")))  # it may send some
        b.edges.close("sends")
        assert b.closed("sends").reason == "closed"


def test_roads_that_are_never_joined_end_with_a_reason(monkeypatch):
    monkeypatch.setattr(parcel_receiver, "FIRST_DIAL_S", 0.3)
    monkeypatch.setattr(parcel_sender, "FIRST_WAIT_S", 0.3)
    told = Told()
    with worker() as a, worker() as b:
        a.edges.open_send(OpenSend(road_terms("sends")))
        a.edges.send_parcels("sends", [outgoing(kv(), b"x")], told.of("x"))
        b.edges.open_receive(OpenReceive(road_terms("receives"), "127.0.0.1", a.port))
        assert "not connected" in a.closed("sends").reason
        assert "does not know the edge" in b.closed("receives").reason
        assert b.inbox.ended == ["receives"]
        assert "not connected" in told.wait(1)[0][2]
    with worker() as b:
        b.edges.open_receive(OpenReceive(road_terms("late"), "127.0.0.1", a.port))
        assert "refused" in b.closed("late").reason


def test_another_key_does_not_join_a_road(monkeypatch):
    monkeypatch.setattr(parcel_receiver, "FIRST_DIAL_S", 0.3)
    monkeypatch.setattr(parcel_sender, "FIRST_WAIT_S", 0.6)
    with worker() as a, worker() as b:
        a.edges.open_send(OpenSend(road_terms()))
        a.edges.send_parcels("r", [outgoing(kv(), b"secret")], lambda *_: None)
        b.edges.open_receive(OpenReceive(road_terms(), "127.0.0.1", a.port))
        assert b.closed("r").reason
        assert a.closed("r").reason
        assert b.inbox.taken == []


def test_a_worker_may_stop_with_roads_in_use():
    told = Told()
    data = blob(PIECE_BYTES)
    with worker() as b:
        b.inbox.room = False
        with worker() as a:
            join(a, b, road_terms())
            for i in range(100):
                a.edges.send_parcels("r", [outgoing(kv(i), data)], told.of(i))
            until(lambda: b.inbox.waiting)
            began = time.monotonic()
            a.edges.stop()
            assert a.closed("r").reason == "closed"
            assert b.closed("r").reason
            within(3.0, began)
        assert len(told.wait(100)) == 100


def test_a_second_road_of_the_same_name_changes_nothing():
    told = Told()
    with worker() as a, worker() as b:
        edge = road_terms()
        join(a, b, edge)
        join(a, b, edge)
        a.edges.send_parcels("r", [outgoing(kv(), b"x")], told.of("x"))
        assert b.inbox.has(1) == [(kv(), b"x")]
        assert a.closed_edges() == b.closed_edges() == []


def test_calls_may_come_from_many_threads():
    told = Told()
    with worker() as a, worker() as b:
        join(a, b, road_terms())

        def send(ticket):
            for number in range(20):
                parcels = [outgoing(kv(ticket, i), bytes([i])) for i in range(3)]
                a.edges.send_parcels("r", parcels, told.of((ticket, number)))
                a.edges.drop_parcels("r", (1000 + ticket,))

        threads = [threading.Thread(target=send, args=(ticket,)) for ticket in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({name for name, _, reason in told.wait(160) if not reason}) == 160
        taken = b.inbox.has(480)
        for ticket in range(8):
            layers = [p.span.start for p, _ in taken if p.ticket == ticket]
            assert layers == [0, 1, 2] * 20


def test_requests_go_before_weights():
    """A road's traffic is that of KV, whatever class its terms say."""
    told = Told()
    with worker() as a, worker() as b:
        join(a, b, road_terms(lane=TrafficClass.WEIGHTS))
        a.edges.send_parcels("r", [outgoing(kv(), bytes(PIECE_BYTES))], told.of("x"))
        told.wait(1)
        until(lambda: a.edges.traffic().kv > 0)
        assert a.edges.traffic().weights == 0
