"""Number formats against torch, and GGML types against gguf, bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from blitzgw.core.model import Dtype
from blitzgw.weights.convert import convert
from blitzgw.weights.ggml_types import TYPES, dequantise

SPECIAL = np.array(
    [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40, 1.00390625, 1.01171875, 65504.0],
    np.float32,
)


def test_bfloat16_rounds_to_nearest_even_like_torch():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = np.concatenate([SPECIAL, bits.view(np.float32), ties.view(np.float32)])
    out = np.empty(values.size * 2, np.uint8)
    convert(values.view(np.uint8), Dtype.FLOAT32, Dtype.BFLOAT16, out)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    number = ~np.isnan(values)
    got = out.view(np.int16)
    assert (got[number] == expected[number]).all()
    assert torch.from_numpy(got[~number].copy()).view(torch.bfloat16).isnan().all()


@pytest.mark.parametrize("source", [Dtype.BFLOAT16, Dtype.FLOAT16])
@pytest.mark.parametrize("target", list(Dtype))
def test_all_16_bit_patterns(source, target):
    raw = np.arange(1 << 16, dtype=np.uint16)
    origin = torch.from_numpy(raw.view(np.int16)).view(getattr(torch, source.value))
    keep = (~origin.isinf() & (origin.float().abs() <= 65504)).numpy()
    raw, origin = raw[keep], origin[torch.from_numpy(keep)]
    out = np.empty(raw.size * target.size_bytes, np.uint8)
    convert(raw.view(np.uint8), source, target, out)
    got = torch.frombuffer(bytearray(out), dtype=getattr(torch, target.value))
    assert torch.equal(got, origin.to(got.dtype))


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_ggml_types_agree_with_gguf(kind):
    reference = gguf.GGMLQuantizationType(kind.id)
    assert reference.name == kind.name
    assert gguf.GGML_QUANT_SIZES[reference] == (kind.block, kind.block_bytes)
    rng = np.random.default_rng(kind.id)
    raw = rng.integers(0, 0x38, (70, kind.block_bytes), dtype=np.uint8)  # halves below infinity
    expected = gguf.quants.dequantize(raw, reference).reshape(-1)
    out = np.empty(expected.size * 4, np.uint8)
    dequantise(raw.reshape(-1), kind, Dtype.FLOAT32, out)
    assert (out.view(np.float32) == expected).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_scale_that_is_not_finite_stays_not_finite(name):
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    raw = np.full((3, kind.block_bytes), 7, np.uint8)
    raw[1, :2] = np.array([np.nan], np.float16).view(np.uint8)
    out = np.empty(96 * 2, np.uint8)
    dequantise(raw.reshape(-1), kind, Dtype.BFLOAT16, out)
    values = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    assert values[32:64].isnan().all()
    assert not values[:32].isnan().any()
