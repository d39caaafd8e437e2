"""Probes over real edges: how much, in which class, at which rate, sealed or not."""

import os
import threading
import time
from dataclasses import replace

import pytest

from blitzgw.core.transfer import (
    MAX_PROBE_BYTES,
    PROBE,
    PROBE_BLOB_BYTES,
    EdgeTerms,
    OpenReceive,
    OpenSend,
    TrafficClass,
    probe_blobs,
)
from blitzgw.errors import ProtocolError
from blitzgw.transport import channel
from blitzgw.transport.probe import ProbeStore, probe_store
from tests.transport.edges_kit import NET, Host, MemoryStore, join, terms, until

MIB = 1 << 20


def probe(size_bytes=5 * MIB + 3, lane=TrafficClass.KV, **more):
    made = EdgeTerms(
        "p",
        PROBE,
        PROBE,
        probe_blobs(size_bytes),
        os.urandom(32),
        7,
        NET,
        lane=lane,
        size_bytes=size_bytes,
    )
    return replace(made, **more)


@pytest.mark.parametrize("lane", list(TrafficClass))
def test_a_probe_sends_so_much_and_counts_as_its_class(lane):
    with Host() as a, Host() as b:
        join(a, b, probe(lane=lane))
        for host in (a, b):
            closed = host.closed("p")
            assert (closed.reason, closed.payload_bytes) == ("", 5 * MIB + 3)
        assert b.closed("p").seconds > 0
        sent = dict.fromkeys(TrafficClass, 0) | {lane: 5 * MIB + 3}
        until(lambda: a.edges._governors[NET].sent_bytes() == sent)
        assert not any(b.edges._governors[NET].sent_bytes().values())


def test_blobs_share_the_memory_of_one():
    with Host() as a, Host() as b:
        join(a, b, probe(2 * PROBE_BLOB_BYTES + 77))
        assert b.closed("p", 60.0).payload_bytes == 2 * PROBE_BLOB_BYTES + 77
    store = ProbeStore(2 * PROBE_BLOB_BYTES + 77, sends=False)
    assert [store.size_bytes(i) for i in range(3)] == [PROBE_BLOB_BYTES] * 2 + [77]
    store.view(0)[:3] = b"abc"
    assert bytes(store.view(2)[:4]) == b"abc\0"
    store.advance(1, 0, 10)
    assert [store.resident_bytes(i) for i in range(3)] == [0, 10, 0]
    with pytest.raises(ValueError, match="not where"):
        store.advance(1, 0, 20)


def test_a_rate_is_kept_and_traffic_is_told():
    with Host() as a, Host() as b:
        join(a, b, probe(PROBE_BLOB_BYTES, rate_bytes_per_s=20e6))
        until(lambda: a.edges.traffic().kv > 0)
        time.sleep(1.0)
        assert 10e6 < a.edges.traffic().kv < 30e6
        b.edges.close("p")
        a.edges.close("p")
        assert b.closed("p").reason == "closed"
        assert 10e6 < b.closed("p").payload_bytes < 50e6
        until(lambda: a.edges.traffic().kv == 0)


def test_a_probe_goes_on_over_a_new_connection():
    with Host() as a, Host() as b:
        join(a, b, probe(8 * MIB, rate_bytes_per_s=8e6))
        until(lambda: b.progress("p"))
        with a.edges._lock:
            (end,) = a.edges._ends.values()
        end._end_channel()
        assert (b.closed("p").reason, b.closed("p").payload_bytes) == ("", 8 * MIB)
        assert b.progress("p")[-1].resumed == 1


@pytest.mark.parametrize("encrypt", [False, True])
def test_payloads_are_sealed_where_that_is_asked(monkeypatch, encrypt):
    ways = set()
    encode = channel.encode_piece

    def noted(piece, way):
        ways.add(way)
        return encode(piece, way)

    monkeypatch.setattr(channel, "encode_piece", noted)
    with Host() as a, Host() as b:
        join(a, b, probe(encrypt=encrypt))
        assert b.closed("p").reason == ""
    assert ways == {channel.Way.SEALED if encrypt else channel.Way.INLINE}


def test_weights_stand_back_for_a_probe_of_kv_and_still_arrive():
    blob = os.urandom(24 * MIB)
    source, target = MemoryStore.full([blob]), MemoryStore([len(blob)])
    with Host(source) as a, Host(target) as b:
        join(a, b, probe(16 * PROBE_BLOB_BYTES))
        until(lambda: b.progress("p"))
        join(a, b, terms("w"))
        assert b.closed("w", 60.0).reason == ""
        assert a.closed("w").yielded_s > 0
        assert bytes(target.blobs[0]) == blob
        a.edges.close("p")
        b.edges.close("p")


def test_no_probe_leaves_memory_or_threads():
    before = threading.active_count()
    with Host() as a, Host() as b:
        for number in range(3):
            join(a, b, probe(id=f"p{number}"))
            assert b.closed(f"p{number}").reason == ""
        until(lambda: not a.edges._digests)
    until(lambda: threading.active_count() <= before)


SENSELESS = {
    "nothing": {"size_bytes": 0, "blobs": ()},
    "negative": {"size_bytes": -1, "blobs": (0,)},
    "too much": {"size_bytes": MAX_PROBE_BYTES + 1, "blobs": probe_blobs(MAX_PROBE_BYTES + 1)},
    "other blobs": {"blobs": (0, 1)},
    "no blobs": {"blobs": ()},
    "a rate below zero": {"rate_bytes_per_s": -1.0},
    "a rate without end": {"rate_bytes_per_s": float("inf")},
}


@pytest.mark.parametrize("what", SENSELESS)
def test_a_probe_that_makes_no_sense_closes_at_once(what):
    edge = replace(probe(), **SENSELESS[what])
    with pytest.raises(ProtocolError):
        probe_store(edge, sends=True)
    with Host() as a:
        a.edges.open_send(OpenSend(edge))
        a.edges.open_receive(OpenReceive(replace(edge, id="q"), "127.0.0.1", a.port))
        for name in ("p", "q"):
            assert a.closed(name).reason == "the terms make no sense"


def test_the_largest_probe_takes_little_memory():
    store = probe_store(probe(MAX_PROBE_BYTES), sends=True)
    assert store is not None
    assert store.resident_bytes(len(probe_blobs(MAX_PROBE_BYTES)) - 1) == PROBE_BLOB_BYTES
