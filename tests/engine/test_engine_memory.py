"""Engines over memory that is handed in: views, not copies; and nothing that outlives them."""

import gc
import mmap
import os
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch

from blitzgw.core.layout import blob_layouts, slab_offsets
from blitzgw.core.model import Dtype
from blitzgw.core.span import Span
from blitzgw.engine import memory as memory_module
from blitzgw.engine.base import RowInput
from blitzgw.engine.decoder import TorchEngine
from blitzgw.engine.memory import WeightSlab, pin
from blitzgw.engine.paced import PacedEngine
from blitzgw.engine.slab import anonymous_map
from blitzgw.weights.digests import blob_digest
from blitzgw.weights.hostcache import HostCopies
from tests.engine import paced_kit
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import CPU, Rig

PROMPT = [5, 9, 12, 200, 31, 7]


def handed(layouts, extra=0):
    """Memory of a slab as a host copy has it."""
    size = slab_offsets(layouts)[1] + extra
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def fill(memory, layouts, blob):
    """Lay out the bytes of `blob(index)` as core/layout.py says."""
    for at, layout in zip(slab_offsets(layouts)[0], layouts, strict=True):
        memory[at : at + layout.size_bytes] = blob(layout.index)


@pytest.fixture(params=[Dtype.FLOAT32, Dtype.BFLOAT16], ids=["torch kernels", "any kernels"])
def rig(request, tmp_path):
    return Rig(tiny_checkpoint("llama", tmp_path), request.param)


def torch_over(rig, memory):
    made = TorchEngine(rig.spec, rig.kv, CPU, memory)
    for index in range(rig.spec.shape.n_layers + 2):
        made.blob_arrived(index)
    return made


def logits(rig, engine):
    rows = [RowInput(rig.sequence(PROMPT, 0), 0, len(PROMPT), True)]
    return engine.logits(rows, engine.forward(rows, rig.whole, None))


def test_torch_runs_on_the_bytes_that_are_handed_in(rig):
    layouts = blob_layouts(rig.spec.shape, rig.spec.dtype)
    whole = handed(layouts, extra=4096)
    fill(whole, layouts, rig.engine.blob_buffer)
    made = torch_over(rig, memoryview(whole))
    assert torch.equal(logits(rig, made), logits(rig, rig.engine))
    # The tensors are views of it: other bytes, other logits.
    start = slab_offsets(layouts)[0][-1]
    whole[start : start + layouts[-1].size_bytes] = bytes(layouts[-1].size_bytes)
    assert not logits(rig, made).any()


def test_torch_serves_a_blob_that_has_arrived(rig):
    layouts = blob_layouts(rig.spec.shape, rig.spec.dtype)
    whole = handed(layouts)
    fill(whole, layouts, rig.engine.blob_buffer)
    made = torch_over(rig, memoryview(whole))
    for layout in layouts:
        assert made.blob_buffer(layout.index) == rig.engine.blob_buffer(layout.index)


def test_paced_runs_on_the_bytes_that_are_handed_in():
    own = paced_kit.engine()
    layouts = blob_layouts(own.spec.shape, own.spec.dtype)
    whole = handed(layouts, extra=4096)
    fill(whole, layouts, own.blob_buffer)
    made = PacedEngine(own.spec, paced_kit.KV, paced_kit.FREE, print, memory=memoryview(whole))
    rows = [RowInput(paced_kit.sequence(), 0, len(paced_kit.PROMPT), True)]
    span = Span(0, paced_kit.LAYERS)
    for index in range(paced_kit.LAYERS + 2):
        made.blob_arrived(index)
        assert made.blob_buffer(index) == own.blob_buffer(index)
    expected = own.logits(rows, own.forward(rows, span, None))
    assert np.array_equal(made.logits(rows, made.forward(rows, span, None)), expected)
    made.blob_buffer(2)[0] ^= 1
    start = slab_offsets(layouts)[0][2]
    assert whole[start] == made.blob_buffer(2)[0] != own.blob_buffer(2)[0]


def test_an_engine_runs_on_a_mapped_host_copy_and_lets_go_of_it(tmp_path):
    own = paced_kit.engine()
    layouts = blob_layouts(own.spec.shape, own.spec.dtype)
    digests = [blob_digest(own.blob_buffer(layout.index)) for layout in layouts]
    copies = HostCopies(tmp_path / "copies")
    with closing(copies.create("a" * 64, layouts, digests)) as copy:
        for layout in layouts:
            copy.buffer(layout.index)[:] = own.blob_buffer(layout.index)
            copy.mark(layout.index)
    mapped = copies.open("a" * 64, layouts, digests)
    gone = weakref.ref(mapped.memory.obj)
    made = PacedEngine(own.spec, paced_kit.KV, paced_kit.FREE, print, memory=mapped.memory)
    mapped.close()
    for layout in layouts:
        made.blob_arrived(layout.index)
    rows = [RowInput(paced_kit.sequence(), 0, len(paced_kit.PROMPT), True)]
    span = Span(0, paced_kit.LAYERS)
    expected = own.logits(rows, own.forward(rows, span, None))
    assert np.array_equal(made.logits(rows, made.forward(rows, span, None)), expected)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


def makers(rig):
    paced = paced_kit.model()
    return [
        (rig.spec, lambda memory: TorchEngine(rig.spec, rig.kv, CPU, memory)),
        (paced, lambda m: PacedEngine(paced, paced_kit.KV, paced_kit.FREE, print, memory=m)),
    ]


def test_memory_that_does_not_fit_is_refused(rig):
    for spec, make in makers(rig):
        size = slab_offsets(blob_layouts(spec.shape, spec.dtype))[1]
        for wrong in (bytearray(size - 1), bytes(size)):
            with pytest.raises(ValueError, match="writable bytes"):
                make(memoryview(wrong))


def test_memory_that_is_never_touched_may_exceed_the_machine():
    """KV slots are taken for the longest sequences that there could be."""
    pages = os.sysconf("SC_PHYS_PAGES")
    with closing(anonymous_map(4 * pages * mmap.PAGESIZE)) as taken:
        taken[-1] = 7
        assert taken[:1] == b"\0"


def test_nothing_keeps_the_memory_of_a_dropped_engine(rig):
    """A host copy is unmapped when its last user goes: by counting, without a collection."""
    for spec, make in makers(rig):
        layouts = blob_layouts(spec.shape, spec.dtype)
        whole = handed(layouts)
        gone = weakref.ref(whole)
        made = make(memoryview(whole))
        for layout in layouts:
            made.blob_arrived(layout.index)
        if isinstance(made, TorchEngine):
            logits(rig, made)
        view = made.blob_buffer(1)
        gc.disable()
        try:
            del whole, made
            assert gone() is not None
            del view
            assert gone() is None
        finally:
            gc.enable()


def test_an_engine_without_memory_takes_its_own_and_gives_it_back(rig):
    own = weakref.ref(rig.engine.blob_buffer(0).obj)
    assert isinstance(own(), mmap.mmap)
    gc.disable()
    try:
        del rig.engine
        assert own() is None
    finally:
        gc.enable()


def test_pinning_is_nothing_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not pin(memoryview(bytearray(4096)))


class FakeRuntime:
    """What CUDA has been asked to pin, by address."""

    def __init__(self, status=0):
        self.pinned, self.status = {}, status

    def cudaHostRegister(self, address, size, flags):
        if self.status == 0:
            self.pinned[address] = size
        return self.status

    def cudaHostUnregister(self, address):
        del self.pinned[address]


class Elsewhere:
    """Stands for a GPU: a device whose type is not `cpu`, with tensors that lie on the CPU."""

    type = "cuda"


@pytest.fixture
def far_slab(monkeypatch):
    """A slab as on a GPU, with device memory that is really the host's."""
    real = torch.empty

    def empty(size, dtype, device=None, pin_memory=False):
        return real(size, dtype=dtype)

    monkeypatch.setattr(memory_module.torch, "empty", empty)
    spec = paced_kit.model()
    layouts = blob_layouts(spec.shape, spec.dtype)

    def make(memory=None):
        return layouts, WeightSlab(layouts, spec.dtype, Elsewhere(), memory)

    return make


def test_a_gpu_stages_a_blob_and_copies_it_back_for_peers(far_slab):
    layouts, slab = far_slab()
    right = np.random.default_rng(3).bytes(layouts[1].size_bytes)
    slab.buffer(1)[:] = right
    assert slab.buffer(1) == right  # one piece, however often it is asked for
    held = slab.buffer(1)
    tensors = slab.tensors(1)
    first = layouts[1].tensors[0]
    assert bytes(tensors[first.name].view(torch.uint8).numpy()) == right[: first.size_bytes]
    assert not slab._host._arriving
    staged = weakref.ref(held.obj)
    assert slab.buffer(1).obj is held.obj
    gc.disable()
    try:
        del held
        assert staged() is None  # no host memory is held for what is on the device
    finally:
        gc.enable()
    assert slab.buffer(1) == right


def test_a_gpu_stages_nothing_of_a_blob_that_was_written_to_the_device(far_slab):
    layouts, slab = far_slab()
    right = np.random.default_rng(4).bytes(layouts[1].size_bytes)
    on_device = slab.on_device(1)
    on_device.copy_(torch.frombuffer(bytearray(right), dtype=torch.uint8))
    first = layouts[1].tensors[0]
    bound = slab.tensors(1)[first.name]
    assert bytes(bound.view(torch.uint8).numpy()) == right[: first.size_bytes]
    assert bound.data_ptr() == on_device.data_ptr() + first.offset
    assert not slab._host._arriving
    assert slab.buffer(1) == right  # and is copied back for whoever looks


def test_a_gpu_copies_from_pinned_memory_that_is_handed_in(far_slab, monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr(memory_module, "_runtime", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layouts = blob_layouts(paced_kit.model().shape, paced_kit.model().dtype)
    whole = handed(layouts)
    fill(whole, layouts, lambda i: np.random.default_rng(i).bytes(layouts[i].size_bytes))
    _, slab = far_slab(memoryview(whole))
    for layout in layouts[:-1]:
        slab.buffer(layout.index)
    for layout in layouts:
        slab.tensors(layout.index)
        slab.buffer(layout.index)
    # The last one was there before anybody asked where it belongs.
    assert sorted(runtime.pinned.values()) == sorted(layout.size_bytes for layout in layouts[:-1])
    norm = slab.tensors(2)["attn_norm"].view(torch.uint8)
    assert bytes(norm.numpy()) == bytes(slab.buffer(2)[: len(norm)])
    gone = weakref.ref(whole)
    gc.disable()
    try:
        del slab, whole
        assert runtime.pinned == {}
        assert gone() is None
    finally:
        gc.enable()


def test_memory_that_cannot_be_pinned_is_used_all_the_same(far_slab, monkeypatch, caplog):
    monkeypatch.setattr(memory_module, "_runtime", lambda: FakeRuntime(status=1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layouts = blob_layouts(paced_kit.model().shape, paced_kit.model().dtype)
    _, slab = far_slab(memoryview(handed(layouts)))
    slab.buffer(0)[:4] = b"\x01\x02\x03\x04"
    embedding = slab.tensors(0)["embedding"].view(torch.uint8).flatten()
    assert embedding[:4].tolist() == [1, 2, 3, 4]
    assert "memory_not_pinned" in caplog.text
