"""Weights travel between real worker processes over real TCP, and run at both ends."""

import asyncio
import os
import shutil
import signal
import time

import pytest

from blitzgw.core.messages import (
    BlobResident,
    Hello,
    LoadFailed,
    ModelLoaded,
    StepFailed,
    UnloadModel,
)
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CapWeights,
    CloseEdge,
    DataNetwork,
    EdgeClosed,
    EdgeProgress,
    OpenSend,
    ReadBlobs,
    TrafficReport,
)
from tests.worker.transfer_kit import CPU, HOST, connect, memory_of, peers, resolved
from tests.worker.worker_kit import PACED, first_step, until, write_checkpoint

LARGE_LAYERS, LARGE_MLP = 8, 20_000
"""8 layers of 3.8 MB: enough for a cap on the rate to make a transfer last."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return resolved(write_checkpoint(folder, layers=LARGE_LAYERS, mlp=LARGE_MLP))


@pytest.mark.parametrize("device", [PACED, CPU], ids=["paced", "cpu"])
async def test_a_model_that_came_from_a_peer_gives_the_same_tokens(device, small):
    async with peers(device, device) as (a, b):
        a.post(small.load())
        expected = await a.tokens()
        assert [m.index for m in a.of(BlobResident)] == list(small.everything)
        b.post(small.elsewhere.load("i1", reads=()))
        connect(a, b, small)
        assert await b.tokens("i1") == expected
        sent, got = await a.wait(EdgeClosed), await b.wait(EdgeClosed)
        assert (sent.reason, got.reason) == ("", "")
        assert sent.payload_bytes == got.payload_bytes == small.size_bytes
        assert {m.index for m in b.of(BlobResident)} == set(small.everything)
        assert len(b.of(BlobResident)) == len(small.everything) == len(b.of(BlobChecked))
        assert b.of(EdgeProgress)[-1].received_bytes == small.size_bytes


async def test_blobs_of_disk_and_of_peers_make_one_model(small):
    first, rest = (0, 2), tuple(i for i in small.everything if i not in (0, 2))
    async with peers(PACED, PACED) as (a, b):
        a.post(small.load())
        b.post(small.load("i1", reads=first))
        await b.wait(BlobResident, len(first))
        assert [m.index for m in b.of(BlobResident)] == list(first)
        assert b.of(ModelLoaded) == []
        connect(a, b, small, blobs=rest)
        assert await b.tokens("i1") == await a.tokens()
        assert (await b.wait(EdgeClosed)).payload_bytes == sum(
            small.blobs[i].size_bytes for i in rest
        )


async def test_blobs_are_read_when_told_to_later(small):
    async with peers(PACED) as (a,):
        a.post(small.elsewhere.load(reads=()))
        a.post(ReadBlobs(small.weights, small.spec, (3, 1)))
        await a.wait(BlobResident, 2)
        assert [m.index for m in a.of(BlobResident)] == [3, 1]
        a.post(ReadBlobs(small.weights, small.spec, small.everything))
        await a.tokens()
        assert len(a.of(BlobResident)) == len(small.everything)
        a.post(ReadBlobs("f" * 64, small.spec, (1,)))  # nobody asked: ignored
        await a.tokens(seq=2)


async def test_a_relay_passes_on_what_it_has_not_got_whole(large):
    async with peers(PACED, PACED, PACED) as (a, b, c):
        a.post(large.load())
        await a.wait(ModelLoaded)
        rate = large.size_bytes / 3
        a.post(CapWeights(rate))
        b.post(large.elsewhere.load(reads=()))
        c.post(large.elsewhere.load(reads=()))
        connect(a, b, large, "ab")
        connect(b, c, large, "bc")
        await c.wait(BlobResident)
        assert len(b.of(BlobResident)) < len(large.everything)
        assert b.of(EdgeClosed) == []
        assert (await a.wait(TrafficReport)).weights > rate / 4
        assert await c.tokens() == await b.tokens() == await a.tokens()
        closed = await c.wait(EdgeClosed)
        assert (closed.reason, closed.payload_bytes) == ("", large.size_bytes)
        assert (await b.wait(EdgeClosed, 2)).reason == ""
        await until(lambda: a.of(TrafficReport)[-1].weights == 0, "the end of the traffic")


async def test_another_source_goes_on_where_a_dead_one_was_cut(large):
    async with peers(PACED, PACED, PACED) as (a, b, other):
        a.post(large.load())
        other.post(large.load())
        await a.wait(ModelLoaded)
        await other.wait(ModelLoaded)
        a.post(CapWeights(large.size_bytes / 3))
        b.post(large.elsewhere.load(reads=()))
        connect(a, b, large, "first")
        await b.wait(BlobResident, 3)
        os.kill(a.handle.pid, signal.SIGKILL)
        killed = time.monotonic()
        first = await b.wait(EdgeClosed)
        assert time.monotonic() - killed < 2.0
        assert first.reason
        connect(other, b, large, "second")
        assert await b.tokens() == await other.tokens()
        second = await b.wait(EdgeClosed, 2)
        assert second.reason == ""
        assert first.payload_bytes + second.payload_bytes == large.size_bytes


async def test_two_edges_and_a_disk_bring_each_blob_once(large):
    async with peers(PACED, PACED, PACED) as (a, b, c):
        for source in (a, c):
            source.post(large.load())
            await source.wait(ModelLoaded)
            source.post(CapWeights(large.size_bytes))
        b.post(large.load(reads=tuple(reversed(large.everything))))
        connect(a, b, large, "ab")
        connect(c, b, large, "cb")
        assert await b.tokens() == await a.tokens()
        closed = [await b.wait(EdgeClosed, edge=edge) for edge in ("ab", "cb")]
        assert [m.reason for m in closed] == ["", ""]
        assert sum(m.payload_bytes for m in closed) <= large.size_bytes
        assert [m.damaged for m in b.of(EdgeProgress) if m.damaged] == []
        assert sorted(m.index for m in b.of(BlobChecked)) == list(large.everything)
        assert b.of(BlobDamaged) == []


async def test_a_disk_reads_what_an_edge_has_let_go_of(large):
    async with peers(PACED, PACED) as (a, b):
        a.post(large.load())
        await a.wait(ModelLoaded)
        a.post(CapWeights(large.size_bytes / 20))
        b.post(large.load(reads=()))
        connect(a, b, large)
        await b.wait(EdgeProgress)
        b.post(ReadBlobs(large.weights, large.spec, large.everything))
        await asyncio.sleep(0.5)
        assert b.of(ModelLoaded) == []
        b.post(CloseEdge("e1"))
        assert await b.tokens() == await a.tokens()
        assert b.of(BlobDamaged) == []


async def test_unload_during_a_transfer_ends_the_edge_and_returns_the_memory(large):
    async with peers(PACED, PACED) as (a, b):
        a.post(large.load())
        await a.wait(ModelLoaded)
        before = memory_of(b.handle.pid)
        a.post(CapWeights(large.size_bytes / 4))
        b.post(large.elsewhere.load("i1", reads=()))
        connect(a, b, large)
        await b.wait(BlobResident, 6)
        grown = memory_of(b.handle.pid) - before
        assert grown > large.size_bytes / 2
        b.post(UnloadModel("i1"))
        assert (await b.wait(EdgeClosed)).reason == "the store is given up"
        assert (await a.wait(EdgeClosed)).reason
        await until(lambda: memory_of(b.handle.pid) - before < grown / 2, "the memory's return")
        assert b.of(LoadFailed) == b.of(ModelLoaded) == []
        # and again, whole:
        a.post(CapWeights(0))
        b.post(large.elsewhere.load("i1", reads=()))
        connect(a, b, large, "again")
        assert await b.tokens("i1") == await a.tokens()


async def test_a_source_that_unloads_says_so(large):
    async with peers(PACED, PACED) as (a, b):
        a.post(large.load())
        await a.wait(ModelLoaded)
        before = memory_of(a.handle.pid)
        a.post(CapWeights(large.size_bytes / 4))
        b.post(large.elsewhere.load(reads=()))
        connect(a, b, large)
        await b.wait(BlobResident, 2)
        a.post(UnloadModel("i0"))
        assert "the store is given up" in (await b.wait(EdgeClosed)).reason
        await until(
            lambda: before - memory_of(a.handle.pid) > large.size_bytes / 2, "the memory's return"
        )
        b.post(UnloadModel("i0"))


async def test_a_load_that_waits_for_peers_holds_nobody_up(small, large):
    async with peers(PACED) as (a,):
        a.post(large.elsewhere.load("waits", reads=()))
        a.post(small.load("i0"))
        await a.tokens()
        a.post(UnloadModel("waits"), CloseEdge("never heard of"))
        await a.tokens(seq=2)


async def test_two_instances_of_one_model_share_their_weights(large):
    async with peers(PACED) as (a,):
        a.post(large.load("i0"))
        expected = await a.tokens("i0")
        before = memory_of(a.handle.pid)
        a.post(large.elsewhere.load("i1", reads=()))
        assert await a.tokens("i1") == expected
        assert memory_of(a.handle.pid) - before < large.size_bytes / 3
        a.post(UnloadModel("i0"))
        a.post(first_step(9, seq=3, instance="i0"))
        await a.wait(StepFailed)
        assert await a.tokens("i1", seq=2) == expected


async def test_weights_from_peers_cannot_be_read_here(small):
    async with peers(PACED) as (a,):
        a.post(small.elsewhere.load())
        assert "scale it again" in (await a.wait(LoadFailed)).message
        a.post(small.load())
        await a.tokens()


async def test_a_checkpoint_that_is_not_the_manifests_is_refused(small, tmp_path):
    changed = shutil.copytree(small.spec.path, tmp_path / "changed")
    file = changed / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    async with peers(PACED) as (a,):
        a.post(small.at(changed).load())
        failed = await a.wait(LoadFailed)
        assert str(changed) in failed.message
        assert "blob " in failed.message
        assert a.of(ModelLoaded) == []
        bad = a.of(BlobDamaged)[0].index
        assert bad not in {m.index for m in a.of(BlobResident)}
        a.post(small.load())
        await a.tokens()


async def test_an_edge_to_a_worker_without_those_weights_ends_with_a_reason(small):
    async with peers(PACED, PACED) as (a, b):
        a.post(small.load(reads=()))
        terms = connect(a, b, small)
        closed = await b.wait(EdgeClosed)
        assert "no store" in closed.reason
        a.post(OpenSend(terms))  # the same id again, while it is open: nothing happens
        a.post(CloseEdge(terms.id))
        assert (await a.wait(EdgeClosed)).reason


async def test_a_network_that_is_not_there_leaves_a_worker_that_serves(small):
    nowhere = (DataNetwork("lan", "192.0.2.77"),)
    async with peers(PACED, networks=nowhere) as (a,):
        assert a.port == 0
        a.post(small.load())
        await a.tokens()


async def test_a_worker_without_a_device_serves_no_models(small):
    async with peers(HOST) as (h,):
        hello = await h.wait(Hello)
        assert hello.software["device"] == "host"
        assert hello.data_ports == {"lan": h.port}
        h.post(small.load())
        assert "runs no models" in (await h.wait(LoadFailed)).message


async def test_many_loads_and_unloads_in_a_row_end_well(small):
    async with peers(PACED, PACED) as (a, b):
        a.post(small.load())
        await a.wait(ModelLoaded)
        for i in range(12):
            b.post(small.elsewhere.load(reads=()))
            connect(a, b, small, f"e{i}")
            await asyncio.sleep(0.002 * i)
            b.post(UnloadModel("i0"))
        b.post(small.elsewhere.load("last", reads=()))
        connect(a, b, small, "last")
        assert await b.tokens("last") == await a.tokens()
        await b.wait(EdgeClosed, 13)
        assert b.of(LoadFailed) == []
