"""The engine on a GPU: the tokens of the CPU, and every cut bit-identical."""

from __future__ import annotations

import mmap
import random

import pytest
import torch

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.layout import blob_layouts, slab_offsets
from blitzgw.core.model import Dtype
from blitzgw.core.span import Span
from blitzgw.engine.base import RowInput
from blitzgw.engine.decoder import TorchEngine
from blitzgw.engine.gpu.choice import choose, flashinfer
from blitzgw.engine.gpu.engine import GpuEngine
from blitzgw.engine.gpu.shell import CudaShell
from blitzgw.engine.memory import pin, unpin
from tests.support.checkpoints import FAMILIES, tiny_checkpoint
from tests.support.engines import Rig
from tests.support.gpurig import GpuRig, filled, rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none found"),
]

CUDA = DeviceSpec("cuda0", DeviceKind.CUDA)
DRAW = random.Random(13)
PROMPTS = [[DRAW.randrange(3, 300) for _ in range(n)] for n in (1, 16, 45, 130)]


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_tokens_are_those_of_the_cpu(family, tmp_path):
    folder = tiny_checkpoint(family, tmp_path)
    cpu, gpu = Rig(folder, Dtype.FLOAT32), Rig(folder, Dtype.FLOAT32, device=CUDA)
    for prompt in PROMPTS:
        assert gpu.generate(prompt, 12, chunk=33) == cpu.generate(prompt, 12)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_a_handoff_at_every_layer_is_bit_identical(dtype, tmp_path):
    folder = tiny_checkpoint("llama", tmp_path)
    whole, first, second = (Rig(folder, dtype, device=CUDA) for _ in range(3))
    prompt, layers = PROMPTS[2], whole.spec.shape.n_layers
    expected = whole.prefill(whole.sequence(prompt, 0))
    for k in range(layers + 1):
        here, there = first.sequence(prompt, 1), second.sequence(prompt, 2)
        rows = [RowInput(here, 0, len(prompt), True)]
        hidden = first.engine.forward(rows, Span(0, k), None)
        kv = first.engine.export_kv(here.table, 0, len(prompt), Span(0, k))
        second.engine.import_kv(there.table, kv)
        moved = second.engine.import_hidden(first.engine.export_hidden(hidden))
        rest = [RowInput(there, 0, len(prompt), True)]
        out = second.engine.forward(rest, Span(k, layers), moved)
        assert torch.equal(second.engine.logits(rest, out), expected), f"k = {k}"


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS])
def test_blobs_are_copied_from_memory_that_is_handed_in(flags, tmp_path):
    own = Rig(tiny_checkpoint("llama", tmp_path), Dtype.FLOAT32, device=CUDA)
    layouts = blob_layouts(own.spec.shape, own.spec.dtype)
    offsets, size = slab_offsets(layouts)
    with open(tmp_path / "slab", "w+b") as file:
        file.truncate(size)
        fd = -1 if flags & mmap.MAP_ANONYMOUS else file.fileno()
        memory = memoryview(mmap.mmap(fd, size, flags))
    made = TorchEngine(own.spec, own.kv, CUDA, memory)
    for at, layout in zip(offsets, layouts, strict=True):
        # What the other engine holds on the device is copied back for its peers.
        made.blob_buffer(layout.index)[:] = own.engine.blob_buffer(layout.index)
        made.blob_arrived(layout.index)
        assert made.blob_buffer(layout.index) == memory[at : at + layout.size_bytes]
    rows = [RowInput(own.sequence(PROMPTS[1], 0), 0, len(PROMPTS[1]), True)]
    expected = own.engine.logits(rows, own.engine.forward(rows, own.whole, None))
    assert torch.equal(made.logits(rows, made.forward(rows, own.whole, None)), expected)


def not_installed():
    raise ImportError("as if it were not installed")


class CudaRig(GpuRig):
    """A `GpuRig` on a GPU, with the kernels that are chosen there."""

    def __init__(self, folder, library):
        self._library = library
        super().__init__(folder, Dtype.BFLOAT16)

    def _new(self, spec, kv, device):
        where = torch.device("cuda", CUDA.index)
        self.shell = CudaShell(where)
        with torch.inference_mode():
            self.choice = choose(spec, kv.slot_tokens, where, self.shell, self._library)
        return GpuEngine(spec, kv, CUDA, None, lambda: self.time, self.shell, lambda: self.choice)


@pytest.mark.parametrize("library", [flashinfer, not_installed])
def test_captured_steps_have_the_logits_of_the_cpu(library, tmp_path):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    folder = tiny_checkpoint("llama", tmp_path, **heads)
    plain, gpu = Rig(folder, Dtype.BFLOAT16), CudaRig(folder, library)
    if gpu.choice.paged is None:
        pytest.skip("neither FlashInfer nor torch's block tables work here: see the log")
    ours, theirs = filled(gpu), filled(plain)
    gpu.decode(ours, 1)
    before = gpu.kv_of_all()
    assert gpu.capture_all() == 4
    assert torch.equal(gpu.kv_of_all(), before)
    for count in (5, 3, 1, 5):
        for mine, other in zip(ours, theirs, strict=True):
            other.tokens[:] = mine.tokens
        assert rms(gpu.decode(ours[:count], 1).cpu(), plain.decode(theirs[:count], 1)) < 0.05


def test_a_run_of_pages_can_be_pinned():
    memory = memoryview(mmap.mmap(-1, 1 << 20))
    assert pin(memory)
    assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned()
    unpin(memory)
