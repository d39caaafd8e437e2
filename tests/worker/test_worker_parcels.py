"""The inbox keeps what arrives, makes roads wait, and lets go when it should."""

import threading
import time

import pytest

from blitzgw.core.parcels import DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Send
from blitzgw.worker.faults import Cancelled
from blitzgw.worker.parcels import ENDED_S, Inbox, Roads


def parcel(ticket=1, layer=0):
    return Parcel(ticket, Span(layer, layer + 1), 0, 4)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def inbox(limit=100):
    told, clock = [], Clock()
    return Inbox(told.append, clock, limit), told, clock


class Bringer:
    """A road's thread that brings one parcel."""

    def __init__(self, box, size, edge="e", ticket=1):
        self.outcome = None
        self._args = (edge, parcel(ticket), memoryview(bytes(size)))
        self._box = box
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self._box.put(*self._args)
            self.outcome = "put"
        except Cancelled:
            self.outcome = "cancelled"

    def waits(self):
        time.sleep(0.1)
        return self.thread.is_alive()

    def ended(self):
        self.thread.join(10)
        return self.outcome


def test_what_has_arrived_is_told_and_taken_once_in_order():
    box, told, _ = inbox()
    for layer in (2, 0, 1):
        box.put("e", parcel(7, layer), memoryview(bytes([layer] * 5)))
    box.put("f", parcel(7), memoryview(b"other"))
    assert told[:3] == [ParcelArrived("e", parcel(7, layer)) for layer in (2, 0, 1)]
    assert [bytes(data) for _, data in box.take("e", 7)] == [b"\2" * 5, b"\0" * 5, b"\1" * 5]
    assert box.take("e", 7) == box.take("nobody", 7) == []
    assert box.size_bytes == 5


@pytest.mark.parametrize("freed", ["take", "drop"])
def test_a_full_inbox_keeps_the_road_waiting_until_there_is_room(freed):
    box, told, _ = inbox()
    box.put("e", parcel(1), memoryview(bytes(80)))
    late = Bringer(box, 30, ticket=2)
    assert late.waits()
    box.take("e", 1) if freed == "take" else box.drop("e", (1,))
    assert late.ended() == "put"
    assert len(told) == 2
    assert box.size_bytes == 30


def test_one_road_does_not_stop_another():
    box, _, _ = inbox()
    box.put("e", parcel(), memoryview(bytes(100)))
    assert Bringer(box, 60, "f").ended() == "put"
    full = Bringer(box, 1, "f")
    assert full.waits()
    box.end("f")
    assert full.ended() == "cancelled"


def test_the_end_of_a_road_keeps_what_has_arrived():
    box, _, clock = inbox()
    box.put("e", parcel(), memoryview(bytes(90)))
    box.end("e")
    assert Bringer(box, 1).ended() == "cancelled"
    assert len(box.take("e", 1)) == 1
    box.put("g", parcel(), memoryview(bytes(50)))
    box.put("h", parcel(), memoryview(bytes(50)))
    box.end("g")
    clock.now += ENDED_S
    assert Bringer(box, 50, "h").ended() == "put"  # what nobody wanted has gone
    assert box.take("g", 1) == []


def test_dropped_tickets_stay_dropped_and_the_close_frees_all():
    box, told, _ = inbox()
    box.drop("e", (1, 3))
    box.put("e", parcel(1), memoryview(bytes(10)))
    assert told == []
    box.put("e", parcel(2), memoryview(bytes(90)))
    late = Bringer(box, 30, ticket=2)
    assert late.waits()
    box.clear()
    assert late.ended() == "put"
    assert box.size_bytes == 30
    box.put("e", parcel(2), memoryview(bytes(70)))
    late = Bringer(box, 30, ticket=2)
    assert late.waits()
    box.close()
    assert late.ended() == "cancelled"
    assert box.size_bytes == 0


def test_a_send_is_told_of_once_with_its_ticket():
    class Edges:
        def send_parcels(self, edge, outgoing, sent):
            clock.now += 2.0
            sent(12, 99.0, "")

        def drop_parcels(self, edge, tickets):
            dropped.append((edge, tickets))

    told, dropped = [], []
    box, _, clock = inbox()
    roads = Roads(box, Edges(), told.append, clock)
    roads.send(Send("e", 5, 1, Span(0, 2), 0, 4), [])
    assert told == [ParcelsSent("e", 5, 12, 2.0, "")]
    box.put("e", parcel(5), memoryview(b"data"))
    roads.drop(DropParcels("e", (5,)))
    assert dropped == [("e", (5,))]
    assert roads.take("e", 5) == []
