"""Roads over every wire: order, drops, room, ends at any moment."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.parcels import Parcel
from blitzgw.core.span import Span
from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.transport import parcel, parcel_receiver, parcel_sender
from blitzgw.transport.parcel import Outgoing
from tests.transport.edges_kit import until
from tests.transport.parcels_kit import WIRES, RoadPair, blob, hidden, kv, within


@pytest.fixture(params=sorted(WIRES))
def make(request):
    pairs = []

    def make(**options):
        pairs.append(RoadPair(request.param, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.inbox.open()
        pair.close()


@pytest.fixture
def impatient(monkeypatch):
    """Both ends give up a silent peer soon, and speak often."""
    for module in (parcel_sender, parcel_receiver):
        monkeypatch.setattr(module, "STALL_S", 0.6)
        monkeypatch.setattr(module, "ROAD_ALIVE_S", 0.1)


@pytest.fixture
def narrow(monkeypatch):
    """A window of 64 KiB."""
    for module in (parcel_sender, parcel_receiver):
        monkeypatch.setattr(module, "WINDOW_BYTES", 64 << 10)
    monkeypatch.setattr(parcel_receiver, "TAKEN_STEP_BYTES", 16 << 10)


class Gate:
    """A payload that is not to be had before the test lets it."""

    def __init__(self, data=b"gate"):
        self.data, self.asked, self.let = data, threading.Event(), threading.Event()

    def read(self):
        self.asked.set()
        assert self.let.wait(20)
        return memoryview(self.data)


def held(pair, parcel_=None):
    """Queue a parcel whose payload is being read; what comes after it waits."""
    gate = Gate()
    pair.sender.road.send([Outgoing(parcel_ or kv(99), gate.read)], pair.told.of("gate"))
    assert gate.asked.wait(20)
    return gate


@pytest.mark.parametrize("encrypt", [False, True])
def test_parcels_arrive_as_they_were_sent(make, encrypt):
    pair = make(encrypt=encrypt).start()
    sizes = (1, 0, 70_000, 3 * PIECE_BYTES + 5, PIECE_BYTES)
    data = [blob(size) for size in sizes]
    parcels = [Parcel(5, Span(i, i + 2), i, 100 + i) for i in range(len(sizes))]
    pair.send("all", *zip(parcels, data, strict=True))
    assert pair.inbox.has(5) == list(zip(parcels, data, strict=True))
    assert pair.told.wait(1) == [("all", sum(sizes), "")]
    pair.receiver.road.close()
    for end in (pair.receiver, pair.sender):
        closed = end.closed()
        assert closed.payload_bytes == sum(sizes)
        assert closed.seconds > 0
    assert pair.receiver.closed().reason == "closed"
    assert pair.sender.closed().reason not in ("", "closed")
    assert pair.inbox.ended == ["r"]


def test_parcels_may_be_given_before_there_is_a_receiver(make):
    pair = make()
    pair.sender.start()
    pair.send("early", (kv(), b"abc"))
    time.sleep(0.05)
    pair.receiver.start()
    assert pair.inbox.has(1) == [(kv(), b"abc")]
    pair.told.wait(1)


def test_nothing_is_sent_before_the_receiver_has_proved_itself(make):
    pair = make()
    channel = pair.raw_receiver()
    pair.send("early", (kv(), b"abc"))
    assert not channel.poll(0.3)
    channel.close()
    pair.receiver.start()  # as if the first answer had come too late for it
    assert pair.inbox.has(1) == [(kv(), b"abc")]


def test_hidden_states_overtake_what_has_not_begun(make):
    pair = make().start()
    gate = held(pair)
    pair.send("a", (kv(1), b"a"), (hidden(1), b"A"), (kv(1, 1), b"aa"))
    pair.send("b", (hidden(2), b"B"), (kv(2), b"b"))
    gate.let.set()
    order = [payload for _, payload in pair.inbox.has(6)]
    assert order == [b"gate", b"A", b"B", b"a", b"aa", b"b"]
    assert pair.told.wait(3) == [("gate", 4, ""), ("a", 4, ""), ("b", 2, "")]


def test_a_payload_that_cannot_be_read_costs_its_call_only(make):
    pair = make().start()
    gate = held(pair)

    def fail():
        raise KeyError("gone")

    road = pair.sender.road
    road.send([Outgoing(kv(1), lambda: memoryview(b"1"))], pair.told.of("well"))
    road.send(
        [
            Outgoing(kv(2, 0), lambda: memoryview(b"2")),
            Outgoing(kv(2, 1), fail),
            Outgoing(kv(2, 2), lambda: memoryview(b"never")),
        ],
        pair.told.of("bad"),
    )
    road.send([Outgoing(kv(3), lambda: "no bytes")], pair.told.of("worse"))
    for bad in (kv(-1), kv(1 << 63), kv(1, 1 << 16), kv(1, 0, 5, 4), kv(1, 0, 0, 1 << 32)):
        road.send([Outgoing(bad, lambda: memoryview(b"x"))], pair.told.of(bad))
    pair.send("last", (kv(4), b"4"))
    gate.let.set()
    assert [p for _, p in pair.inbox.has(4)] == [b"gate", b"1", b"2", b"4"]
    news = pair.told.wait(10)
    reasons = {name: reason for name, _, reason in news}
    assert len(news) == len(reasons) == 10
    assert [name for name, reason in reasons.items() if not reason] == ["gate", "well", "last"]
    assert "gone" in reasons["bad"]


def test_a_parcel_beyond_its_limit_is_not_sent(make, monkeypatch):
    pair = make().start()
    monkeypatch.setattr(parcel, "MAX_PARCEL_BYTES", 1000)
    pair.send("large", (kv(1), bytes(1001)))
    pair.send("small", (kv(2), bytes(1000)))
    assert pair.inbox.has(1) == [(kv(2), bytes(1000))]
    (_, size, reason), _ = pair.told.wait(2)
    assert size == 0
    assert "limit" in reason


def test_dropped_parcels_are_not_sent_and_not_told(make):
    pair = make().start()
    gate = held(pair, kv(7))
    pair.send("gone", (hidden(7), b"h"), (kv(7), b"k"))
    pair.send("both", (kv(7), b"x"), (kv(8), b"y"))
    pair.send("other", (kv(9), b"z"))
    pair.sender.road.drop([7, 1234])
    gate.let.set()
    assert [p for _, p in pair.inbox.has(3)] == [b"gate", b"y", b"z"]
    assert pair.told.wait(2) == [("both", 1, ""), ("other", 1, "")]
    pair.send("later", (kv(7), b"again"))
    assert pair.told.wait(3)[2] == ("later", 5, "")


def test_what_waits_is_bounded(make, monkeypatch):
    monkeypatch.setattr("blitzgw.transport.parcel_queue.MAX_QUEUED_PARCELS", 3)
    pair = make().start()
    gate = held(pair)
    pair.send("two", (kv(1), b"1"), (kv(2), b"2"))
    pair.send("too many", (kv(3), b"3"), (kv(4), b"4"))
    assert [(n, s) for n, s, _ in pair.told.news] == [("too many", 0)]
    pair.send("one", (kv(5), b"5"))
    gate.let.set()
    assert [p for _, p in pair.inbox.has(4)] == [b"gate", b"1", b"2", b"5"]


def test_a_call_of_nothing_is_told_at_once(make):
    pair = make().start()
    pair.send("nothing")
    assert pair.told.news == [("nothing", 0, "")]


def test_a_full_inbox_holds_the_sender_up_but_not_the_road(make, narrow, impatient):
    """For longer than a silent peer is given; so much as the window and one parcel is read."""
    pair = make()
    pair.inbox.room = False
    pair.start()
    data = [blob(40_000) for _ in range(20)]
    for index, payload in enumerate(data):
        pair.send(index, (kv(index), payload))
    until(lambda: len(pair.told.news) == 2)
    time.sleep(1.5)
    assert len(pair.told.news) == 2
    assert not pair.sender.told
    assert not pair.receiver.told
    pair.inbox.open()
    assert [payload for _, payload in pair.inbox.has(20)] == data
    assert [name for name, _, _ in pair.told.wait(20)] == list(range(20))


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_road_may_end_while_its_receiver_waits_for_room(make, narrow, who):
    pair = make()
    pair.inbox.room = False
    pair.start()
    for index in range(8):
        pair.send(index, (kv(index), blob(40_000)))
    until(lambda: pair.inbox.waiting and len(pair.told.news) == 2)
    began = time.monotonic()
    getattr(pair, who).road.close()
    assert pair.sender.closed().reason
    assert pair.receiver.closed().reason
    within(3.0, began)
    assert pair.inbox.ended == ["r"]
    assert len(pair.inbox.taken) == 1  # the one that was being taken
    news = pair.told.wait(8)
    assert [name for name, _, _ in news] == list(range(8))
    assert [bool(reason) for _, _, reason in news] == [False] * 2 + [True] * 6


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_road_may_end_at_any_moment(make, who):
    """While much is being written: every call is told once, what arrives is whole."""
    pair = make().start()
    data = blob(5 * PIECE_BYTES)
    for index in range(40):
        pair.send(index, (kv(index), data), (hidden(index), data[:7]))
    pair.inbox.has(3)
    getattr(pair, who).road.close()
    assert pair.sender.closed().reason
    assert pair.receiver.closed().reason
    news = pair.told.wait(40)
    assert sorted(name for name, _, _ in news) == list(range(40))
    assert all(payload in (data, data[:7]) for _, payload in pair.inbox.taken)
    pair.send("late", (kv(), b"x"))
    assert pair.told.news[40][1] == 0
    assert pair.told.news[40][2]


def test_an_idle_road_lives_on(make, impatient):
    pair = make().start()
    pair.send("first", (kv(1), b"1"))
    pair.inbox.has(1)
    time.sleep(2.0)
    pair.send("second", (kv(2), b"2"))
    pair.inbox.has(2)
    assert not pair.sender.told
    assert not pair.receiver.told


def test_a_payload_that_is_long_in_coming_does_not_end_the_road(make, impatient):
    pair = make().start()
    gate = held(pair)
    time.sleep(1.5)
    gate.let.set()
    pair.inbox.has(1)
    assert not pair.receiver.told


def test_who_cannot_take_a_parcel_ends_the_road(make):
    pair = make()

    def fail(edge, parcel_, payload):
        raise ValueError("no such ticket")

    pair.receiver.road._take = fail
    pair.start()
    pair.send("x", (kv(1), b"1"))
    assert "no such ticket" in pair.receiver.closed().reason
    assert "no such ticket" in pair.sender.closed().reason


sizes = st.one_of(st.integers(0, 100), st.sampled_from([PIECE_BYTES, PIECE_BYTES + 1, 300_000]))
calls = st.lists(st.lists(st.tuples(st.booleans(), sizes), max_size=5), max_size=8)


@pytest.mark.parametrize("wires", sorted(WIRES))
@settings(max_examples=15, deadline=None)
@given(calls=calls, encrypt=st.booleans())
def test_whatever_is_sent_arrives_once_in_the_order_of_its_kind(wires, calls, encrypt):
    pair = RoadPair(wires, encrypt=encrypt).start()
    expected = []
    try:
        for ticket, call in enumerate(calls):
            parcels = [
                ((hidden if is_hidden else kv)(ticket, at), blob(size))
                for at, (is_hidden, size) in enumerate(call)
            ]
            expected += parcels
            pair.send(ticket, *parcels)
        taken = pair.inbox.has(len(expected))
        for kind in (True, False):
            assert [p for p in taken if p[0].is_hidden is kind] == [
                p for p in expected if p[0].is_hidden is kind
            ]
        news = pair.told.wait(len(calls))
        assert sorted(news) == [(i, sum(s for _, s in c), "") for i, c in enumerate(calls)]
    finally:
        pair.close()
