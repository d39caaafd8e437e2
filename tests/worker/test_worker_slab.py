"""The memory of a holding: one that is shared, and one that is an engine's own, as on a GPU."""

import threading
from dataclasses import replace

import pytest

from blitzgw.core.instance import PacedCost
from blitzgw.core.layout import blob_layouts
from blitzgw.core.messages import BlobResident
from blitzgw.core.transfer import BlobChecked, StoreClosed
from blitzgw.engine.decoder import TorchEngine
from blitzgw.engine.paced import PacedEngine
from blitzgw.worker.holdings import Holdings
from blitzgw.worker.loader import Load, Loader, LoadHooks
from blitzgw.worker.pacing import Pace
from blitzgw.worker.reads import DiskReads
from blitzgw.worker.slab import SharedSlab
from tests.support.engines import CPU
from tests.worker.transfer_kit import resolved
from tests.worker.worker_kit import KV, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("model")))


def test_released_memory_is_not_given_out(model):
    layouts = blob_layouts(model.spec.shape, model.spec.dtype)
    slab = SharedSlab(layouts)
    assert slab.attach(None)
    view = slab.buffer(1)
    assert len(view) == layouts[1].size_bytes
    slab.release()
    slab.release()
    view[0] = 1  # what was given out stays
    for use in (lambda: slab.buffer(1), lambda: slab.memory):
        with pytest.raises(StoreClosed):
            use()


def test_engines_with_memory_of_their_own_are_filled_and_give_to_each_other(model):
    told, done = [], threading.Event()
    holdings = Holdings(None, told.append, lambda *_: None, lambda _: done.set(), on_device=True)
    holding = holdings.for_instance(model.spec, model.blobs, load=7)
    engines, loaded = {}, {name: threading.Event() for name in ("i0", "i1")}
    hooks = LoadHooks(
        new_engine=lambda load, memory: TorchEngine(load.model, KV, CPU, memory),
        created=lambda load, engine: engines.update({load.message.instance: engine}),
        loaded=lambda load: loaded[load.message.instance].set(),
        failed=lambda load, why: told.append(why),
        over=lambda load: None,
        send=told.append,
    )
    reads = DiskReads()
    reads.start()
    for name in loaded:
        load = Load(replace(model.load(name)), 0.0, holding)
        holding.follow(load.announce)
        Loader(hooks, reads, Pace(0.0)).start(load)
        if name == "i0":
            source = PacedEngine(model.spec, KV, PacedCost(), lambda _: None)
            _fill(model, source)
            for index in model.everything:
                holding.store.view(index)[:] = source.blob_buffer(index)
                assert holding.store.begin(index)
                holding.store.filled(index)
            assert done.wait(10)
        assert loaded[name].wait(10), told
    assert engines["i0"].blob_buffer(2) == engines["i1"].blob_buffer(2) == source.blob_buffer(2)
    assert engines["i0"].blob_buffer(2) is not engines["i1"].blob_buffer(2)
    checked = [message for message in told if isinstance(message, BlobChecked)]
    assert [message.load for message in checked] == [7] * len(model.everything)
    assert sum(isinstance(message, BlobResident) for message in told) == 2 * len(model.everything)
    holdings.close(holding)
    with pytest.raises(StoreClosed):
        holding.store.view(0)


def _fill(model, engine):
    from blitzgw.weights.info import open_checkpoint
    from blitzgw.weights.loader import load_blobs

    checkpoint = open_checkpoint(model.spec.path)
    layouts = blob_layouts(model.spec.shape, model.spec.dtype)
    load_blobs(checkpoint, layouts, model.spec.dtype, engine.blob_buffer, lambda _: None)
    checkpoint.close()
