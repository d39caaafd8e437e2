"""The store of weights on a GPU, over tensors of the CPU: one class, whatever the device."""

import gc
import threading
import time
import weakref

import pytest
import torch

from blitzgw.core.transfer import BlobChecked, BlobDamaged, StoreClosed
from blitzgw.engine.decoder import TorchEngine
from blitzgw.transport.nccl_device import DeviceStore
from blitzgw.weights.blobstate import HASH_BYTES
from blitzgw.weights.hostcache import HostCopies
from blitzgw.worker import mirrors
from blitzgw.worker.device_memory import DeviceMemory
from blitzgw.worker.device_slab import DeviceSlab
from blitzgw.worker.device_store import DeviceWeightStore
from blitzgw.worker.duplicate import Duplicate
from blitzgw.worker.holdings import Holdings
from tests.support.engines import CPU
from tests.transport.edges_kit import MemoryStore, until
from tests.worker.device_kit import MB, Weights, random_blobs
from tests.worker.transfer_kit import resolved
from tests.worker.worker_kit import KV, write_checkpoint

NO_GPU = "" if torch.cuda.is_available() else "needs a CUDA device: none found"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
    ),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def forged(monkeypatch):
    """Lets every blob pass by its lane sum, as one does whose words a forger has balanced."""
    monkeypatch.setattr(DeviceWeightStore, "_passes_gate", lambda self, index: True)


def test_it_is_what_nccl_sends_from_and_to(device):
    with Weights(random_blobs(64), device) as weights:
        assert isinstance(weights.store, DeviceStore)
        assert weights.store.pointer(0, 5) == weights.tensors[0].data_ptr() + 5
    assert not isinstance(MemoryStore((1,)), DeviceStore)


@pytest.mark.parametrize("size", [1, 7, 4 * MB, 9 * MB + 3])
def test_what_lands_is_announced_by_its_sum_and_proven_by_its_hash(device, size):
    with Weights(random_blobs(size), device, there=True) as weights:
        until(lambda: weights.checked == [0])
        until(weights.proven)
        assert weights.checked == [0]
        assert weights.damaged == []
        assert weights.store.stage(0, 0, size) == weights.data[0]


def test_what_is_written_to_the_view_is_on_the_device_once_it_is_resident(device):
    with Weights(random_blobs(3 * MB + 5, 17), device) as weights:
        for start, stop in ((0, MB), (MB, 2 * MB + 1), (2 * MB + 1, 3 * MB + 5)):
            weights.write(0, start, stop)
            assert weights.contents()[0][:stop] == weights.data[0][:stop]
        store = weights.store
        assert store.begin(1, anew=True)
        store.view(1)[9:17] = weights.data[1][9:17]
        store.view(1)[:9] = weights.data[1][:9]
        store.filled(1)
        until(lambda: sorted(weights.checked) == [0, 1])
        assert weights.is_right()
        assert store.is_complete


def test_both_ways_fill_one_blob_and_either_end_of_it_can_be_staged(device):
    size = 4 * MB + 2
    with Weights(random_blobs(size), device) as weights:
        weights.write(0, 0, MB)
        weights.land(0, MB, 2 * MB)
        assert weights.store.stage(0, MB // 2, 2 * MB) == weights.data[0][MB // 2 : 2 * MB]
        weights.write(0, 2 * MB, 3 * MB + 4)
        weights.land(0, 3 * MB + 4, size)
        until(weights.proven)
        assert weights.is_right()
        assert weights.store.view(0) == weights.data[0]


def test_a_flipped_byte_on_the_device_is_never_announced(device):
    with Weights(random_blobs(2 * MB, 64), device) as weights:
        weights.land(0, 0, MB, "e", flipped=12345)
        weights.land(0, MB, 2 * MB, "e")
        until(lambda: weights.damaged == [(0, "e")])
        assert weights.checked == []
        assert weights.store.resident_bytes(0) == 0
        weights.land(0, 0, 2 * MB, "again")
        until(lambda: weights.checked == [0])
        assert weights.contents()[0] == weights.data[0]


def test_a_blob_that_came_through_the_host_is_announced_by_the_hash_of_what_is_on_the_device(
    device, monkeypatch
):
    put = DeviceMemory.put

    def lossy(self, index, start, source):
        put(self, index, start, source)
        self._blobs[index][start + 1] ^= 1

    with Weights(random_blobs(MB), device) as weights, monkeypatch.context() as patch:
        patch.setattr(DeviceMemory, "put", lossy)
        weights.write(0, 0, MB, "e")
        until(lambda: weights.damaged == [(0, "e")])
        assert weights.checked == []


def test_bytes_that_pass_by_their_sum_and_not_by_their_hash_are_damaged_after_all(device, forged):
    with Weights(random_blobs(2 * HASH_BYTES, 64), device) as weights:
        weights.land(0, 0, 2 * HASH_BYTES, "e", flipped=5)
        until(lambda: weights.damaged == [(0, "e")])
        assert weights.checked == [0]
        assert weights.store.checked == frozenset()
        assert not weights.store.is_complete
        weights.land(1, 0, 64)
        weights.land(0, 0, 2 * HASH_BYTES, "e2")
        until(weights.proven)
        assert weights.checked.count(0) == 2
        assert weights.store.is_complete


def test_the_sum_does_not_wait_for_hashes(monkeypatch):
    """A blob that has landed is announced while another is being hashed for long."""
    read, slow = DeviceWeightStore._read_back, threading.Event()

    def slowly(self, *args):
        assert slow.wait(20)
        slow.clear()
        return read(self, *args)

    monkeypatch.setattr(DeviceWeightStore, "_read_back", slowly)
    with Weights(random_blobs(5 * HASH_BYTES, MB)) as weights:
        weights.land(0, 0, 5 * HASH_BYTES)
        until(lambda: weights.checked == [0])
        weights.land(1, 0, MB)
        slow.set()  # what is being hashed now; four more turns of it are due
        until(lambda: weights.checked == [0, 1])
        assert not weights.store.is_proven(0)
        while not weights.proven():
            slow.set()
            time.sleep(0.001)


def test_a_place_in_a_word_has_a_sum():
    with Weights(random_blobs(103), there=True) as weights:
        whole = weights.tensors[0].clone()
        from blitzgw.engine.lanes import lane_sum

        assert weights.store.lane_sum(0, 3, 103) == lane_sum(whole[3:].clone())
        assert weights.store.lane_sum(0, 4, 100) == lane_sum(whole[4:100])


def test_what_landed_and_was_not_made_resident_is_forgotten(device):
    """An edge that ends in between leaves nothing that the next filler's bytes are taken for."""
    with Weights(random_blobs(2 * MB), device) as weights:
        assert weights.store.begin(0, "one")
        weights.store.landed(0, 0, MB)
        weights.store.end(0, "one")
        weights.write(0, 0, MB, "two")
        assert weights.contents()[0][:MB] == weights.data[0][:MB]


def test_what_the_host_had_of_damaged_bytes_is_not_sent_once_the_right_ones_have_come(device):
    with Weights(random_blobs(MB), device) as weights:
        assert weights.store.begin(0)
        weights.store.view(0)[:] = bytes(MB)
        weights.store.advance(0, 0, MB)
        until(lambda: weights.damaged)
        weights.land(0, 0, MB)
        assert weights.store.stage(0, 0, MB) == weights.data[0]


def test_nothing_is_copied_for_who_does_not_fill_the_blob(device):
    with Weights(random_blobs(MB), device) as weights:
        weights.write(0, 0, 1000, "one")
        weights.store.view(0)[1000:2000] = bytes(range(250)) * 4
        with pytest.raises(ValueError, match="filled by"):
            weights.store.advance(0, 1000, 2000, "two")
        with pytest.raises(ValueError, match="resident"):
            weights.store.advance(0, 0, 2000, "one")
        assert not weights.contents()[0][1000:].strip(b"\0")
        assert weights.contents()[0][:1000] == weights.data[0][:1000]


def test_host_memory_is_kept_for_few_blobs(monkeypatch):
    made = []
    host_bytes = DeviceMemory.host_bytes

    def counted(self, size_bytes):
        made.append(size_bytes)
        return host_bytes(self, size_bytes)

    monkeypatch.setattr(DeviceMemory, "host_bytes", counted)
    with Weights(random_blobs(*([4096] * 6)), there=True) as weights:
        until(weights.proven)
        assert made == [HASH_BYTES]  # to hash, and for no blob
        for index in (0, 0, 1, 0, 1):
            assert weights.store.stage(index, 10, 20) == weights.data[index][10:20]
        assert len(made) == 3
        held = weights.store.stage(2, 0, 4096)
        for index in (3, 4, 5):
            weights.store.view(index)
        assert held == weights.data[2]
        assert len(weights.store._mirrors._recent) == mirrors.RECENT_BLOBS
        assert not weights.store._mirrors._arriving


def test_a_closed_store_gives_nothing_out_and_keeps_its_memory_for_who_holds_it(device):
    weights = Weights(random_blobs(MB), device)
    weights.write(0, 0, 4096)
    store, staged = weights.store, weights.store.stage(0, 0, 4096)
    pointer = store.pointer(0, 0)
    weights.end()
    _refuses(store)
    store.landed(0, 4096, 8192)  # from a thread that has not heard of it
    store.end(0)
    assert staged == weights.data[0][:4096]
    tensor = weakref.ref(weights.tensors[0])
    weights.tensors.clear()
    assert tensor().data_ptr() == pointer, "what NCCL may still write to"
    gc.disable()
    try:
        weights.store = store.landed = weights._landed = None
        gone = weakref.ref(store)
        del store
        assert gone() is None
        assert tensor() is None
    finally:
        gc.enable()


def test_who_looks_before_the_engine_is_there_waits_for_it():
    slab, seen = DeviceSlab(1), []
    looking = threading.Thread(target=lambda: seen.append(slab.device()))
    looking.start()
    engine = type("Engine", (), {"blob_memory": lambda self, i: torch.zeros(4, dtype=torch.uint8)})
    assert seen == []
    assert slab.attach(engine())
    looking.join(10)
    assert isinstance(seen[0], DeviceMemory)
    assert not slab.attach(engine())
    assert slab.device() is seen[0]
    slab.release()
    for use in (slab.device, lambda: slab.memory, lambda: slab.attach(engine())):
        with pytest.raises(StoreClosed):
            use()


def test_who_waits_for_an_engine_that_never_comes_is_let_go():
    slab, seen = DeviceSlab(1), []
    store = slab.store("w", [], print, print)

    def look():
        with pytest.raises(StoreClosed):
            store.pointer(0, 0)
        seen.append("let go")

    looking = threading.Thread(target=look)
    looking.start()
    store.close()
    slab.release()
    looking.join(10)
    assert seen == ["let go"]
    assert store.join(10)


def test_other_tensors_are_refused():
    for blobs in ([], [torch.zeros(4)], [torch.zeros(2, 2, dtype=torch.uint8)]):
        with pytest.raises(ValueError, match="flat tensor"):
            DeviceMemory(blobs)


def test_many_threads_stage_what_two_ways_fill(device):
    """Whatever the order, what is staged of a resident prefix is right."""
    size, wrong = 6 * MB + 1, []
    with Weights(random_blobs(*([size] * 4)), device) as weights:
        done = threading.Event()

        def look(seed):
            at = seed
            while not done.is_set():
                index, at = at % 4, (at * 7919 + 13) % 100003
                there = weights.store.resident_bytes(index)
                start = at * 61 % max(1, there)
                stop = min(there, start + 300_000)
                if weights.store.stage(index, start, stop) != weights.data[index][start:stop]:
                    wrong.append((index, start, stop))

        threads = [threading.Thread(target=look, args=(seed,)) for seed in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for start in range(0, size, MB // 2):
            stop = min(size, start + MB // 2)
            for index in range(4):
                move = weights.land if (start // (MB // 2) + index) % 2 else weights.write
                move(index, start, stop)
        until(weights.proven)
        done.set()
        for thread in threads:
            thread.join(20)
        assert not wrong
        assert weights.is_right()
        assert sorted(weights.checked) == [0, 1, 2, 3]


def test_a_host_copy_takes_no_bytes_that_only_their_sum_vouches_for(tmp_path, forged, monkeypatch):
    """It outlives this process, and BLAKE3 may not have been taken yet when it is made."""
    monkeypatch.setattr(DeviceWeightStore, "_read_back", _never)
    model = resolved(write_checkpoint(tmp_path / "model"))
    folder, told, why = HostCopies(tmp_path / "copies"), [], []
    held = Holdings(folder, told.append, lambda *_: None, lambda _: None, on_device=True)
    holding = held.for_instance(model.spec, model.blobs)
    engine = TorchEngine(model.spec, KV, CPU, holding.slab.memory)
    assert holding.slab.attach(engine)
    copy = held.create_copy(holding.model, holding.blobs)
    duplicate = Duplicate(model.hold(), holding, copy, lambda _, why_not: why.append(why_not))
    duplicate.start()
    assert holding.store.begin(0)
    holding.store.landed(0, 0, model.blobs[0].size_bytes)  # zeros
    holding.store.advance(0, 0, model.blobs[0].size_bytes)
    until(lambda: why)
    assert why == ["blob 0 is not what the manifest says"]
    assert [message.index for message in told] == [0]
    held.close(holding)


def test_a_blob_that_is_damaged_after_all_is_told_of_and_lacking_again(tmp_path, forged):
    model = resolved(write_checkpoint(tmp_path))
    told, damaged, arrived = [], [], []
    held = Holdings(
        None, told.append, lambda _, *what: damaged.append(what), lambda _: None, on_device=True
    )
    holding = held.for_instance(model.spec, model.blobs)
    assert holding.slab.attach(TorchEngine(model.spec, KV, CPU, holding.slab.memory))
    holding.follow(arrived.append)
    for index in model.everything:
        assert holding.store.begin(index, "e")
        holding.store.landed(index, 0, model.blobs[index].size_bytes)  # zeros
        holding.store.advance(index, 0, model.blobs[index].size_bytes, "e")
    until(lambda: len(damaged) == len(model.blobs))
    assert sorted(damaged) == [(index, "e") for index in model.everything]
    assert sorted(arrived) == list(model.everything)
    assert not holding.is_complete
    assert all(holding.lacks(index) for index in model.everything)
    for index in model.everything:
        news = [type(message) for message in told if message.index == index]
        assert news == [BlobChecked, BlobDamaged]
    held.close(holding)


def _refuses(store):
    uses = (
        lambda: store.pointer(0, 0),
        lambda: store.lane_sum(0, 0, 4096),
        lambda: store.stage(0, 0, 4096),
        lambda: store.view(0),
        lambda: store.advance(0, 4096, 8192),
        lambda: store.begin(0),
    )
    for use in uses:
        with pytest.raises(StoreClosed):
            use()


def _never(self, *args):
    raise StoreClosed
