"""What a worker opens beside TCP, and that it never stands in the way."""

import threading

import pytest

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.messages import Start
from blitzgw.core.transfer import PIECE_BYTES, DataNetwork, OpenReceive, OpenSend
from blitzgw.transport import nccl_bypasses
from blitzgw.transport.nccl import CupyNccl
from blitzgw.worker.dataplane import DataPlane
from tests.support.fake_nccl import World
from tests.transport.edges_kit import MemoryStore, terms, until
from tests.transport.nccl_kit import DeviceMemoryStore

LAN = (DataNetwork("net", "127.0.0.1"),)
GPU = DeviceSpec("g3", DeviceKind.CUDA, index=3)
CPU = DeviceSpec("c0", DeviceKind.CPU)


@pytest.fixture
def opened(monkeypatch):
    """A fake NCCL on every GPU; the indices that were asked for, and the GPUs."""
    world, asked = World(), []

    def open_library(index):
        gpu = world.gpu()
        asked.append((index, gpu))
        return CupyNccl(gpu, 0)

    monkeypatch.setattr(nccl_bypasses, "open_library", open_library)
    return asked


def plane(device, store, told=None):
    tell = (told if told is not None else []).append
    return DataPlane(Start(device, networks=LAN), {store.weights: store}.get, tell)


def nccl_threads():
    return {thread for thread in threading.enumerate() if thread.name == "nccl"}


@pytest.mark.parametrize("kind", [MemoryStore, DeviceMemoryStore])
def test_a_gpu_has_a_bypass_for_stores_on_it_and_tcp_for_all_others(kind, opened):
    blob, told = bytes(range(256)) * (4 * PIECE_BYTES // 256), []
    before = nccl_threads()
    source, target = kind.full([blob]), kind([len(blob)])
    planes = [plane(GPU, source), plane(GPU, target, told)]
    assert [index for index, _ in opened] == [3, 3]
    edge = terms()
    planes[0].edges.open_send(OpenSend(edge))
    port = planes[0].edges.ports["net"]
    planes[1].edges.open_receive(OpenReceive(edge, "127.0.0.1", port))
    until(target.complete)
    until(lambda: any(getattr(m, "reason", None) == "" for m in told))
    for each in planes:
        each.close()
    assert nccl_threads() <= before
    assert not any(gpu.live for _, gpu in opened)
    assert all(each.edges.join(5.0) for each in planes)


def test_other_devices_do_without(opened):
    before = nccl_threads()
    here = plane(CPU, MemoryStore([5]))
    here.close()
    assert opened == []
    assert nccl_threads() <= before
    here.edges.stop()
    assert here.edges.join(5.0)


@pytest.mark.parametrize("fault", [ImportError, OSError, RuntimeError])
def test_a_library_that_cannot_be_had_leaves_tcp(fault, monkeypatch, caplog):
    def broken(index):
        raise fault("libnccl.so.2: no such file")

    monkeypatch.setattr(nccl_bypasses, "open_library", broken)
    here = plane(GPU, MemoryStore([5]))
    assert here.edges.ports["net"] > 0
    assert "no_bypasses device=g3" in caplog.text
    here.close()
    here.edges.stop()
    assert here.edges.join(5.0)


def test_a_gpu_without_nccl_has_tcp(monkeypatch):
    monkeypatch.setattr(nccl_bypasses, "open_library", lambda index: None)
    here = plane(GPU, MemoryStore([5]))
    assert here.edges.ports["net"] > 0
    here.edges.stop()
    assert here.edges.join(5.0)
