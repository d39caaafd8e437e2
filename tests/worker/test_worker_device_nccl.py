"""Stores of GPUs that send to each other by NCCL and by TCP: the real store, edges and bypasses.

NCCL is the fake, device memory that of the CPU: pointers are pointers, so bytes that arrive have
been moved by address.
"""

import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.messages import Start
from blitzgw.core.transfer import BlobChecked, DataNetwork, OpenReceive, OpenSend
from blitzgw.engine.decoder import TorchEngine
from blitzgw.transport import nccl_bypasses
from blitzgw.transport.nccl import CupyNccl
from blitzgw.weights.store import WeightStore
from blitzgw.worker.dataplane import DataPlane
from blitzgw.worker.device_store import DeviceWeightStore
from blitzgw.worker.holdings import Holdings
from tests.support.engines import CPU
from tests.support.fake_nccl import World
from tests.transport.edges_kit import Host, MemoryStore, join, terms, until
from tests.worker.device_kit import MB, GpuHost, Weights, agreed, random_blobs, send, warm
from tests.worker.transfer_kit import resolved
from tests.worker.worker_kit import KV, write_checkpoint


@pytest.fixture
def world():
    world = World()
    yield world
    gc.collect()
    assert not world.faults


@pytest.fixture
def pair(world):
    """Two workers that know each other."""
    with GpuHost(world, "a") as source, GpuHost(world, "b") as target:
        warm(source, target)
        yield source, target


def done(there, *hosts, edge="e"):
    """Wait for the end of a transfer that went well, and for all checks."""
    for host in hosts:
        assert host.closed(edge).reason == ""
    until(there.proven)
    assert there.is_right()


def test_two_workers_have_the_same_bytes(pair):
    data = random_blobs(5 * MB + 3, 17, 2 * MB)
    here, there = send(*pair, data, terms("e", range(3)))
    with here, there:
        done(there, *pair)
        assert there.landed_bytes == sum(map(len, data))
        assert sorted(there.checked) == [0, 1, 2]
        assert there.damaged == []
        assert here.tensors[0].data_ptr() != there.tensors[0].data_ptr()


def test_a_byte_that_flips_on_the_device_keeps_a_blob_from_running(pair):
    """After its piece was checked: only the sum of the whole blob can tell, and it is refused."""
    data = random_blobs(3 * MB, MB)
    edge = terms("e", (0, 1))
    with Weights(data) as here, Weights(data) as there:
        pair[0].stores["w"], pair[1].stores["w"] = here.store, there.store
        landed, checked, was_right = there.store.landed, there._checked, []

        def flip(index, start, stop):
            if not there.damaged and (index, stop) == (0, 3 * MB):
                there.tensors[0][2 * MB + 7] ^= 8
            landed(index, start, stop)

        def look(index):
            was_right.append(there.contents()[index] == data[index])
            checked(index)

        there.store.landed, there.store._on_checked = flip, look
        join(*pair, edge)
        until(lambda: agreed(pair[0], edge))
        for index, blob in enumerate(data):
            here.land(index, 0, len(blob))
        until(lambda: there.damaged)
        assert pair[1].closed("e").reason == ""  # whoever hears of the damage orders it again
        join(*pair, terms("e2", (0, 1)))
        done(there, *pair, edge="e2")
        assert there.damaged == [(0, "e")]
        assert sorted(there.checked) == [0, 1]
        assert was_right == [True, True]


def test_a_piece_that_is_damaged_on_its_way_is_sent_again(world, pair):
    world.damage = {world.n_moved + 1}
    here, there = send(*pair, random_blobs(4 * MB, 4 * MB), terms("e", (0, 1)))
    with here, there:
        done(there, *pair)
        assert there.damaged == []  # it never came to the blob
        assert pair[1].progress("e")[-1].damaged == 1


def test_one_store_sends_by_both_ways_at_a_time(world, pair):
    """To a GPU, to a GPU with another NCCL, to a host, and to a host under encryption."""
    data = random_blobs(4 * MB + 4, 300, 2 * MB)
    source, target = pair
    blobs = range(len(data))
    others = [MemoryStore([*map(len, data)]), MemoryStore([*map(len, data)])]
    with (
        GpuHost(world, "c", version=23000) as old,
        Host(others[0]) as plain,
        Host(others[1]) as sealed,
    ):
        here, there = send(source, target, data, terms("e", blobs))
        with here, there, Weights(data) as third:
            old.stores["w"] = third.store
            join(source, old, terms("e3", blobs))
            join(source, plain, terms("e4", blobs))
            join(source, sealed, replace(terms("e5", blobs), encrypt=True))
            done(there, source, target)
            done(third, source, old, edge="e3")
            for host, store, edge in zip((plain, sealed), others, ("e4", "e5"), strict=True):
                assert host.closed(edge).reason == ""
                assert [bytes(blob) for blob in store.blobs] == data
            assert there.landed_bytes == sum(map(len, data))
            assert third.landed_bytes == 0
            assert not here.damaged + there.damaged + third.damaged


def test_a_relay_passes_on_by_tcp_what_came_by_nccl(pair):
    data = random_blobs(6 * MB + 1, MB)
    last = MemoryStore([*map(len, data)])
    with Host(last) as end:
        here, middle = send(*pair, data, terms("e", (0, 1)))
        with here, middle:
            join(pair[1], end, terms("e2", (0, 1)))
            done(middle, *pair)
            assert end.closed("e2").reason == ""
            assert [bytes(blob) for blob in last.blobs] == data
            assert middle.landed_bytes == sum(map(len, data))
            assert end.progress("e2")[-1].damaged == 0


def test_a_relay_passes_on_by_nccl_what_came_by_tcp(pair):
    data = random_blobs(6 * MB + 1, MB)
    relay, target = pair
    first = MemoryStore.full(data)
    first.resident = [0, 0]
    with Host(first) as source, Weights(data) as middle, Weights(data) as there:
        relay.stores["w"], target.stores["w"] = middle.store, there.store
        edge = terms("e2", (0, 1))
        join(source, relay, terms("e", (0, 1)))
        join(relay, target, edge)
        ends = relay.edges._ends
        until(lambda: any(e._bypass and e._bypass.ready for e in list(ends.values())))
        for index, blob in enumerate(data):
            first.advance(index, 0, len(blob))
        done(middle, source, relay)
        done(there, relay, target, edge="e2")
        assert middle.landed_bytes == 0
        assert there.landed_bytes == sum(map(len, data))


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_store_that_is_closed_in_mid_transfer_ends_its_edge_and_frees_its_memory(
    world, pair, end
):
    world.hang_after = world.n_moved + 1
    here, there = send(*pair, random_blobs(8 * MB), terms("e"))
    until(lambda: there.landed_bytes >= MB)
    time.sleep(0.1)  # the next piece is under way
    closed, host = (here, pair[0]) if end == "source" else (there, pair[1])
    closed.end()
    tensor, held = weakref.ref(closed.tensors[0]), closed.store
    closed.tensors.clear()
    assert tensor() is not None, "NCCL may still use it"
    host.edges.close("e")
    assert host.closed("e").reason in {"closed", "the store is given up"}
    (there if end == "source" else here).end()
    pair[0].edges.close("e")
    pair[1].edges.close("e")
    for each in pair:
        each.closed("e")
    each = host = None
    for one in pair:
        one.stores.pop("w")
    store = weakref.ref(held)
    closed.store = closed._landed = held = None
    until(lambda: store() is None)
    assert tensor() is None
    world.hang_after = None
    here, there = send(*pair, random_blobs(2 * MB), terms("e2"), by_nccl=False)
    with here, there:
        done(there, *pair, edge="e2")


def test_an_error_of_nccl_in_mid_piece_falls_back_to_tcp(world, pair):
    world.error_after = world.n_moved + 2
    data = random_blobs(12 * MB, 5)
    here, there = send(*pair, data, terms("e", (0, 1)))
    with here, there:
        done(there, *pair)
        assert 0 < there.landed_bytes < sum(map(len, data))
        assert there.damaged == []


def test_a_peer_that_dies_in_mid_piece_is_replaced_by_one_over_tcp(world, pair):
    data = random_blobs(12 * MB, MB)
    world.hang_after = world.n_moved + 2
    here, there = send(*pair, data, terms("e", (0, 1)))
    with here, there, Host(MemoryStore.full(data)) as other:
        until(lambda: there.landed_bytes >= 2 * MB)
        began = time.monotonic()
        pair[0].edges.stop()  # its connections are cut, and nobody listens
        assert pair[1].closed("e").reason != ""
        assert time.monotonic() - began < 10
        before = there.store.resident_bytes(0)
        assert 0 < before < len(data[0])
        join(other, pair[1], terms("e2", (0, 1)))
        done(there, other, pair[1], edge="e2")
        assert pair[1].closed("e2").payload_bytes == sum(map(len, data)) - before


@pytest.mark.parametrize("kind", [DeviceKind.CUDA, DeviceKind.CPU])
def test_a_gpu_worker_gives_its_edges_nccl_and_a_cpu_worker_does_not(kind, tmp_path, monkeypatch):
    """From the registry of weights to the data plane, as the keeper joins them."""
    world, told, threads = World(), ([], []), set(threading.enumerate())
    monkeypatch.setattr(nccl_bypasses, "open_library", lambda i: CupyNccl(world.gpu(), 0))
    model = resolved(write_checkpoint(tmp_path))
    on_device = kind is DeviceKind.CUDA
    holdings, planes, engines = [], [], []
    for said in told:
        held = Holdings(None, said.append, lambda *_: None, lambda _: None, on_device=on_device)
        holding = held.for_instance(model.spec, model.blobs)
        engine = TorchEngine(model.spec, KV, CPU, holding.slab.memory)
        assert holding.slab.attach(engine)
        start = Start(DeviceSpec("d", kind), networks=(DataNetwork("net", "127.0.0.1"),))
        planes.append(DataPlane(start, held.store, said.append))
        holdings.append((held, holding))
        engines.append(engine)
    (_, source), (_, target) = holdings
    assert type(target.store) is (DeviceWeightStore if on_device else WeightStore)
    right = TorchEngine(model.spec, KV, CPU)
    _read(model, right)
    edge = terms("e", model.everything, model.weights)
    planes[0].edges.open_send(OpenSend(edge))
    planes[1].edges.open_receive(OpenReceive(edge, "127.0.0.1", planes[0].edges.ports["net"]))
    if on_device:
        ends = planes[0].edges._ends
        until(lambda: any(e._bypass and e._bypass.ready for e in list(ends.values())))
    for index in model.everything:
        assert source.store.begin(index, anew=True)
        source.store.view(index)[:] = right.blob_buffer(index)
        source.store.filled(index)
    until(lambda: target.is_complete)
    until(lambda: any(getattr(message, "reason", None) == "" for message in told[1]))
    for index in model.everything:
        assert bytes(engines[1].blob_memory(index).numpy()) == bytes(right.blob_buffer(index))
    checked = [message.index for message in told[1] if isinstance(message, BlobChecked)]
    assert sorted(checked) == list(model.everything)
    assert world.n_moved == (len(model.everything) if on_device else 0)
    for plane, (held, holding) in zip(planes, holdings, strict=True):
        plane.close()
        held.close(holding)
        plane.edges.stop()
        assert plane.edges.join(5)
    until(lambda: not {t for t in threading.enumerate() if t.name == "nccl"} - threads)
    assert not world.faults


def _read(model, engine):
    from blitzgw.core.layout import blob_layouts
    from blitzgw.weights.info import open_checkpoint
    from blitzgw.weights.loader import load_blobs

    checkpoint = open_checkpoint(model.spec.path)
    layouts = blob_layouts(model.spec.shape, model.spec.dtype)
    load_blobs(checkpoint, layouts, model.spec.dtype, engine.blob_buffer, lambda _: None)
    checkpoint.close()
