"""Both ends of a road over any wire, who takes its parcels, and peers that say what they like."""

import os
import socket
import threading
import time
from dataclasses import replace

from blitzgw.core.parcels import PARCELS, Parcel
from blitzgw.core.span import Span
from blitzgw.core.transfer import EdgeClosed, OpenReceive, OpenSend, TrafficClass
from blitzgw.crypto.edges import EdgeDialler, EdgeGate
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.governor import Cap, Governor
from blitzgw.transport.memory import memory_pair
from blitzgw.transport.parcel import Outgoing
from blitzgw.transport.parcel_receiver import RoadReceiver
from blitzgw.transport.parcel_sender import RoadSender
from blitzgw.transport.tcp import TcpWire
from tests.transport.edges_kit import terms


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return TcpWire(one), TcpWire(other)


WIRES = {"memory": memory_pair, "tcp": tcp_pair}


def road_terms(edge="r", **changes):
    made = replace(terms(edge), weights=PARCELS, blobs=(), lane=TrafficClass.KV)
    return replace(made, **changes)


def kv(ticket=1, layer=0, start=0, stop=1):
    return Parcel(ticket, Span(layer, layer + 1), start, stop)


def hidden(ticket=1, layer=0, start=0, stop=1):
    return Parcel(ticket, Span(layer, layer), start, stop)


def outgoing(parcel, data):
    return Outgoing(parcel, lambda: memoryview(data))


class Inbox:
    """Takes parcels; `room` is cleared for it to keep the road waiting."""

    def __init__(self):
        self.taken, self.ended = [], []
        self.changed = threading.Condition()
        self.room = True
        self.waiting = 0

    def take(self, edge, parcel, payload):
        with self.changed:
            self.waiting += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.room or edge in self.ended)
            self.waiting -= 1
            self.taken.append((parcel, bytes(payload)))
            self.changed.notify_all()

    def end(self, edge):
        with self.changed:
            self.ended.append(edge)
            self.changed.notify_all()

    def open(self):
        with self.changed:
            self.room = True
            self.changed.notify_all()

    def has(self, n, timeout_s=20.0):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= n, timeout_s), self.taken
            return list(self.taken)


class Told:
    """What was told of calls, by the names that they were given."""

    def __init__(self):
        self.news, self.changed = [], threading.Condition()

    def of(self, name):
        def sent(size_bytes, seconds, reason):
            assert seconds >= 0
            with self.changed:
                self.news.append((name, size_bytes, reason))
                self.changed.notify_all()

        return sent

    def wait(self, n, timeout_s=20.0):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.news) >= n, timeout_s), self.news
            return list(self.news)


class End:
    """One end of a road, and what it told."""

    def __init__(self, make):
        self.told, self.over = [], threading.Event()
        self.road = make(self.tell)
        self.thread = None

    def start(self):
        self.thread = self.road.start(lambda: None)

    def tell(self, message):
        self.told.append(message)
        self.over.set()

    def closed(self, timeout_s=20.0):
        assert self.over.wait(timeout_s), "the road goes on"
        (message,) = self.told
        assert isinstance(message, EdgeClosed)
        return message

    def finish(self):
        self.road.close()
        if self.thread is not None:
            self.thread.join(10)
            assert not self.thread.is_alive()
            assert len(self.told) == 1


class RoadPair:
    """A road over a pair of wires."""

    def __init__(self, wires, *, encrypt=False):
        self.terms = road_terms(encrypt=encrypt)
        self.governor = Governor(Cap(0))
        self.wires = WIRES[wires]
        self.inbox, self.told = Inbox(), Told()
        self.sender = End(lambda tell: RoadSender(OpenSend(self.terms), tell))
        self.receiver = End(
            lambda tell: RoadReceiver(
                OpenReceive(self.terms, "nowhere", 1),
                tell,
                self.governor,
                self.inbox.take,
                self.inbox.end,
                self.dial,
            )
        )

    def start(self):
        self.sender.start()
        self.receiver.start()
        return self

    def dial(self, _patience_s=1.0):
        """Join a connection to the sender; return the receiver's side of it."""
        near, far = self.wires()
        dialler = EdgeDialler(self.terms.id, self.terms.key)
        answer, session = self.sender.road.gate.answer(dialler.hello)
        self.sender.road.offer(far, session, self.lane())
        return near, dialler.finish(answer)

    def lane(self):
        return self.governor.lane(TrafficClass.KV)

    def send(self, name, *parcels):
        self.sender.road.send([outgoing(*parcel) for parcel in parcels], self.told.of(name))

    def raw_receiver(self):
        """Start the sender alone; return the channel of a receiver that the test plays."""
        self.sender.start()
        return SealedChannel(*self.dial(), self.lane(), self.terms.seed)

    def raw_sender(self):
        """Start the receiver alone; return the channel of a sender that the test plays."""
        near, far = self.wires()
        dialler = EdgeDialler("r", self.terms.key)
        answer, session = EdgeGate("r", self.terms.key).answer(dialler.hello)
        self.receiver.road._dial = lambda _: (near, dialler.finish(answer))
        self.receiver.start()
        return SealedChannel(far, session, self.lane(), self.terms.seed)

    def close(self):
        self.sender.finish()
        self.receiver.finish()


def blob(size):
    return os.urandom(size)


def within(seconds, since):
    assert time.monotonic() - since < seconds
