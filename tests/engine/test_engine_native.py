"""The C++ kernels against plain torch in fp32, on layers and batches drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch

from blitzgw.core.instance import ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.engine.attention import Extent
from blitzgw.engine.native import build
from blitzgw.engine.native.layer import NativeKernels, supports
from blitzgw.engine.rope import rope_table
from blitzgw.engine.torch_layer import TorchKernels

pytestmark = pytest.mark.skipif(
    build.library() is None, reason="no C++ kernels: needs AVX-512 BF16 and a compiler"
)

SLOTS, POSITIONS = 9, 320
BF16_ERROR = 0.01
"""Of a layer's answers, root mean square, in their own deviations: bf16 leaves half of it."""


@dataclass
class Drawn:
    """A layer in both dtypes, what lies in the KV, and a batch: spans of positions by slot."""

    shape: ModelShape
    batch: list[tuple[int, int, int]]
    seed: int

    def __post_init__(self):
        self._generator = torch.Generator().manual_seed(self.seed)
        slots = blob_layouts(self.shape, Dtype.BFLOAT16)[1].tensors
        self.weights = {slot.name: self._weight(slot.name, slot.shape) for slot in slots}
        kv = (2, SLOTS, self.shape.n_kv_heads, POSITIONS, self.shape.head_dim)
        self.kv = self._normal(*kv)
        self.x = self._normal(sum(stop - start for _, start, stop in self.batch), self.shape.hidden)

    def _normal(self, *size):
        return torch.randn(size, generator=self._generator).bfloat16()

    def _weight(self, name, size):
        if name.endswith("norm"):
            return 1 + self._normal(*size) / 8
        return self._normal(*size) * (size[-1] ** -0.5 if len(size) > 1 else 0.1)

    def run(self, kernels_of, dtype, times=1, wanted=None):
        """Return the answers of the layer, or of as many in a row, and the KV as it leaves it.

        `wanted` are indices of tokens; None: all.
        """
        spec = ModelSpec("drawn", "", self.shape, dtype, POSITIONS, (0,))
        kernels = kernels_of(spec)
        to = torch.float32 if dtype is Dtype.FLOAT32 else torch.bfloat16
        layer = kernels.layer({name: t.to(to) for name, t in self.weights.items()})
        kv = self.kv.to(to, copy=True)
        counts = [stop - start for _, start, stop in self.batch]
        offsets = accumulate(counts, initial=0)
        extents = [Extent(*span, at) for span, at in zip(self.batch, offsets, strict=False)]
        cos, sin = rope_table(self.shape.rope, self.shape.head_dim, POSITIONS)
        at = torch.tensor([p for _, start, stop in self.batch for p in range(start, stop)])
        if wanted is not None:
            each = [(e.slot, p) for e in extents for p in range(e.start, e.stop)]
            wanted = [Extent(each[i][0], each[i][1], each[i][1] + 1, i) for i in wanted]
        plan = kernels.plan(extents, counts.count(1), cos[at], sin[at], wanted)
        caches = [(kv[0], kv[1])] * times
        x = kernels.run([layer] * times, self.x.to(to, copy=True), plan, caches)
        return x.float(), kv.float()


def drawn(seed):
    """A model of odd sizes, and decode rows by slot before prefill chunks."""
    draw = random.Random(seed)
    n_kv, group = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 4, 7, 16])
    shape = ModelShape(
        draw.choice(["llama", "qwen2", "qwen3"]),
        *(2, 32 * draw.randint(1, 9), n_kv * group, n_kv, draw.choice([32, 64, 96, 128, 256])),
        *(32 * draw.randint(1, 11), 16, 1e-5),
        rope=Rope(theta=10000.0),
        max_positions=POSITIONS,
        tied_head=True,
    )
    shape = replace(
        shape,
        window=draw.choice([0, 0, 1, 7, 130]),
        qk_norm=shape.family == "qwen3",
        qkv_bias=draw.random() < 0.4,
        out_bias=draw.random() < 0.4,
        mlp_bias=draw.random() < 0.4,
    )
    slots = draw.sample(range(SLOTS), draw.randint(1, SLOTS))
    decoding = sorted(slots[: draw.randint(0, len(slots))])
    spans = []
    for slot in decoding + slots[len(decoding) :]:
        start = draw.choice([0, 15, 16, 127, 128, draw.randrange(POSITIONS)])
        count = 1 if slot in decoding else draw.choice([2, 15, 17, 33, 70])
        spans.append((slot, start, min(POSITIONS, start + count)))
    return Drawn(shape, spans, seed)


def native(spec):
    assert supports(spec.shape, spec.dtype)
    return NativeKernels(build.library(), spec)


def test_layers_drawn_at_random_are_those_of_torch():
    """The KV is written where it belongs and nowhere else, whatever the sizes and the batch."""
    for seed in range(6):
        layer = drawn(seed)
        ours, kv = layer.run(native, Dtype.BFLOAT16)
        exact, exact_kv = layer.run(TorchKernels, Dtype.FLOAT32)
        error = (ours - exact).square().mean(-1).sqrt().max() / exact.std()
        assert error < BF16_ERROR, f"seed {seed}: {layer.shape}, {layer.batch}"
        torch.testing.assert_close(kv, exact_kv, atol=0.05, rtol=0.02)
        written = torch.zeros(SLOTS, POSITIONS, dtype=torch.bool)
        for slot, start, stop in layer.batch:
            written[slot, start:stop] = True
        untouched = (~written)[None, :, None, :, None].expand_as(kv)
        assert torch.equal(kv[untouched], layer.kv.float()[untouched]), f"seed {seed}"


def test_threads_share_several_layers_and_each_tile_is_attended_to_once(monkeypatch):
    """Bit for bit what one thread makes of them, however unevenly the tiles fall to the shares."""
    for seed in range(12):
        layer = drawn(seed)
        alone, kv = layer.run(native, Dtype.BFLOAT16, times=3)
        for threads in (2, 3, 5):
            with monkeypatch.context() as patch:
                patch.setattr(torch, "get_num_threads", lambda n=threads: n)
                together, shared_kv = layer.run(native, Dtype.BFLOAT16, times=3)
            assert torch.equal(together, alone), f"seed {seed}, {threads} threads"
            assert torch.equal(shared_kv, kv), f"seed {seed}, {threads} threads"


def test_tokens_that_are_wanted_are_what_they_are_among_all():
    """Bit for bit, and so is the KV of those that are not."""
    for seed in range(12):
        layer, draw = drawn(seed), random.Random(seed)
        whole, kv = layer.run(native, Dtype.BFLOAT16, times=2)
        wanted = sorted(draw.sample(range(len(whole)), draw.choice([0, 1, len(whole) // 2])))
        some, same_kv = layer.run(native, Dtype.BFLOAT16, times=2, wanted=wanted)
        assert torch.equal(some[wanted], whole[wanted]), f"seed {seed}, {wanted}"
        assert torch.equal(same_kv, kv), f"seed {seed}"


@pytest.mark.parametrize("vocab", [16, 17, 31, 33, 1000, 1007])
def test_a_vocabulary_need_not_fill_tiles(vocab):
    draw = torch.Generator().manual_seed(vocab)
    shape = replace(drawn(1).shape, hidden=96, vocab=vocab)
    x, matrix = (torch.randn(n, 96, generator=draw).bfloat16() for n in (19, vocab))
    norm = torch.ones(96, dtype=torch.bfloat16)
    ours = native(ModelSpec("drawn", "", shape, Dtype.BFLOAT16, POSITIONS, (0,)))
    logits = ours.head(x, norm, matrix)
    exact = TorchKernels(ModelSpec("drawn", "", shape, Dtype.FLOAT32, POSITIONS, (0,)))
    expected = exact.head(x.float(), norm.float(), matrix.float())
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.02)
    assert ours.head(x[:0], norm, matrix).shape == (0, vocab)


@pytest.mark.parametrize(
    "sizes",
    [{"hidden": 80}, {"intermediate": 48}, {"head_dim": 80}, {"n_heads": 17}, {"vocab": 8}],
    ids=str,
)
def test_sizes_that_they_do_not_cover_are_left_to_torch(sizes):
    one = replace(drawn(1).shape, n_kv_heads=1, n_heads=4)
    assert supports(one, Dtype.BFLOAT16)
    assert not supports(one, Dtype.FLOAT32)
    assert not supports(replace(one, **sizes), Dtype.BFLOAT16)
