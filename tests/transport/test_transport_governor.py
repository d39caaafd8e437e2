"""Weights stand back for requests, and keep below a cap."""

import os
import socket
import statistics
import threading
import time
from contextlib import suppress

import pytest

from blitzgw.core.transfer import TrafficClass
from blitzgw.transport.base import CHUNK_BYTES, MAX_CHUNK_BYTES, ChannelLost
from blitzgw.transport.governor import MAX_YIELD_S, MIN_CAP_BYTES_PER_S, Cap, Governor
from blitzgw.transport.tcp import TcpWire
from tests.transport.test_transport_channels import Elsewhere, Pair, piece_of, take, tcp_pair

WEIGHTS, KV, ACTIVATIONS = TrafficClass.WEIGHTS, TrafficClass.KV, TrafficClass.ACTIVATIONS


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def write(lane, size):
    """Write a message through a lane, to nowhere; return its chunks."""
    chunks = []
    with lane.message():
        while size:
            chunks.append(lane.begin(size))
            lane.finish(chunks[-1])
            size -= chunks[-1]
    return chunks


def test_a_cap_lets_its_rate_through_whatever_the_chunks():
    clock = FakeTime()
    cap = Cap(1_000_000, clock)
    sent = 0
    for _ in range(2000):
        clock.now += 0.005
        while not cap.take(3000):
            sent += 3000
    assert 0.98e7 < sent < 1.02e7


def test_a_cap_says_when_to_ask_again():
    clock = FakeTime()
    cap = Cap(1000_000, clock)
    wait_s = cap.take(10_000)
    assert wait_s == pytest.approx(0.01)
    clock.now += wait_s * 1.001
    assert cap.take(10_000) == 0


def test_a_tiny_cap_still_moves():
    clock = FakeTime()
    cap = Cap(1e-9, clock)
    assert cap.rate == MIN_CAP_BYTES_PER_S
    assert cap.take(cap.chunk_bytes) < 1.0


def test_no_cap_never_waits():
    assert Cap(0).take(1 << 40) == 0


def test_all_lanes_together_keep_below_the_cap():
    governors = [Governor(cap := Cap(4_000_000)), Governor(cap)]
    lanes = [governor.lane(WEIGHTS) for governor in governors]
    began = time.monotonic()
    writers = [Elsewhere(write, lane, 1_000_000) for lane in lanes]
    for writer in writers:
        writer.done()
    assert 0.4 < time.monotonic() - began < 3.0


def test_urgent_classes_know_no_cap():
    lane = Governor(Cap(1)).lane(KV)
    began = time.monotonic()
    write(lane, 1 << 20)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("less", "more"), [(WEIGHTS, KV), (WEIGHTS, ACTIVATIONS), (KV, ACTIVATIONS)]
)
def test_the_less_urgent_waits_for_the_more_urgent(less, more):
    governor = Governor(Cap(0))
    waiting, urgent = governor.lane(less), governor.lane(more)
    with urgent.message():
        writer = Elsewhere(write, waiting, 1)
        time.sleep(0.15)
        assert waiting.sent_bytes == 0
        write(urgent, 1)  # nobody waits for itself
    writer.done()
    assert waiting.sent_bytes == 1
    assert 0.1 < waiting.yielded_s < 0.9
    assert urgent.yielded_s == 0


def test_the_more_urgent_waits_for_nobody():
    governor = Governor(Cap(0))
    with governor.lane(WEIGHTS).message(), governor.lane(KV).message():
        began = time.monotonic()
        write(governor.lane(ACTIVATIONS), 1)
        assert time.monotonic() - began < 0.5


def test_weights_are_not_starved_for_ever():
    governor = Governor(Cap(0))
    lane = governor.lane(WEIGHTS)
    with governor.lane(KV).message():
        began = time.monotonic()
        write(lane, 1)
        assert MAX_YIELD_S * 0.9 < time.monotonic() - began < MAX_YIELD_S + 2


@pytest.mark.parametrize("capped", [False, True])
def test_closing_a_lane_ends_its_wait(capped):
    governor = Governor(Cap(1 if capped else 0))
    lane, urgent = governor.lane(WEIGHTS), governor.lane(KV)
    with urgent.message():
        writer = Elsewhere(write, lane, 1 << 20)
        time.sleep(0.05)
        lane.close()
        with pytest.raises(ChannelLost):
            writer.done()


def test_what_closed_lanes_have_sent_stays_counted():
    governor = Governor(Cap(0))
    lane, other = governor.lane(WEIGHTS), governor.lane(KV)
    write(lane, 1000)
    write(other, 10)
    lane.close()
    lane.close()
    assert governor.sent_bytes() == {ACTIVATIONS: 0, KV: 10, WEIGHTS: 1000}


def test_chunks_grow_on_a_fast_link_and_shrink_for_urgent_traffic():
    governor = Governor(Cap(0))
    lane = governor.lane(WEIGHTS)
    chunks = write(lane, 64 << 20)
    assert chunks[0] == CHUNK_BYTES
    assert max(chunks) == MAX_CHUNK_BYTES
    with governor.lane(KV).message():
        assert write(lane, CHUNK_BYTES + 1)[0] == CHUNK_BYTES


def test_chunks_stay_small_on_a_slow_link():
    lane = Governor(Cap(0)).lane(WEIGHTS)
    for _ in range(10):
        size = lane.begin(1 << 20)
        assert size == CHUNK_BYTES
        time.sleep(0.004)
        lane.finish(size)


def test_an_urgent_message_on_another_connection_is_hardly_delayed_by_weights():
    """Over real sockets, with a reader of weights that is the bottleneck."""
    weights, urgent = Pair(tcp_pair, stall_s=10), Pair(tcp_pair, stall_s=10)
    governor = weights.governor
    urgent.a._lane = governor.lane(KV)
    payload = memoryview(os.urandom(1 << 20))
    stop = threading.Event()

    def flow():
        while not stop.is_set():
            weights.a.send_piece(piece_of(payload), payload)

    def drain():
        while True:
            take(weights.b)

    flowing, draining = Elsewhere(flow), Elsewhere(drain)
    small = memoryview(os.urandom(64 << 10))
    delays = []
    try:
        for _ in range(20):
            time.sleep(0.02)
            began = time.monotonic()
            urgent.a.send_piece(piece_of(small), small)
            take(urgent.b)
            delays.append(time.monotonic() - began)
    finally:
        stop.set()
        flowing.done()
        weights.a.close()
        with pytest.raises(ChannelLost):
            draining.done()
        for pair in (weights, urgent):
            pair.close()
    assert weights.a._lane.sent_bytes > 10 << 20
    assert statistics.median(delays) < 0.02


def test_a_socket_holds_little_that_the_network_has_not_taken():
    """What waits in a full socket before an urgent message on the same link is bounded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    wire, sent = TcpWire(one, 0.3), 0
    try:
        with suppress(ChannelLost):
            while sent < 64 << 20:
                wire.write([bytes(CHUNK_BYTES)])
                sent += CHUNK_BYTES
    finally:
        wire.close()
        other.close()
    assert sent < 2 << 20
