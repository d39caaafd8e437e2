"""How the KV of an instance is cut, and when huge pages are worth what they leave idle."""

from dataclasses import replace

import pytest

from blitzgw.config import ModelConfig
from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.errors import BlitzError
from blitzgw.hugepages import HUGE_BYTES
from blitzgw.placement import IDLE_SHARE, SLOTS_PER_SEQUENCE, idle_bytes, kv_geometry

SHAPE = ModelShape(
    *("llama", 30, 576, 9, 3, 64, 1536, 49152, 1e-5),
    rope=Rope(theta=10000.0),
    max_positions=2048,
    tied_head=True,
)
SPEC = ModelSpec("m", "", SHAPE, Dtype.BFLOAT16, 2048, (0,))
TOKEN_BYTES = 30 * 2 * 3 * 64 * 2
CONFIG = ModelConfig(name="m", path="m", max_num_seqs=64)


def cut(budget_bytes, kind=DeviceKind.CPU):
    return kv_geometry(SPEC, CONFIG, DeviceSpec("d", kind), int(budget_bytes))


def test_huge_pages_are_taken_where_they_leave_a_small_part_of_the_budget_idle():
    idle = 64 * SLOTS_PER_SEQUENCE * (128 * TOKEN_BYTES + HUGE_BYTES)
    assert not cut(idle / IDLE_SHARE - 1).huge_pages
    assert cut(idle / IDLE_SHARE).huge_pages
    assert not cut(idle / IDLE_SHARE, DeviceKind.CUDA).huge_pages


def test_a_budget_below_one_sequence_is_refused():
    whole = 2048 * TOKEN_BYTES
    assert cut(whole).slots == 64 * SLOTS_PER_SEQUENCE
    assert cut(whole, DeviceKind.CUDA).slots == 1
    with pytest.raises(BlitzError, match="lower max_model_len or raise kv_bytes"):
        cut(whole - 1)


def test_models_of_one_device_share_what_may_be_idle():
    one = cut(1 << 34)
    assert one.huge_pages
    budget = int(1.5 * idle_bytes(one) / IDLE_SHARE)
    device = DeviceSpec("d", DeviceKind.CPU)
    assert kv_geometry(SPEC, CONFIG, device, budget).huge_pages
    assert not kv_geometry(SPEC, CONFIG, device, budget, [one]).huge_pages
    assert kv_geometry(SPEC, CONFIG, device, budget, [replace(one, huge_pages=False)]).huge_pages
