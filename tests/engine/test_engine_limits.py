"""What a machine allows at the most, as scripts/bench_engine compares with it."""

from __future__ import annotations

import pytest

from blitzgw.core.model import Dtype, ModelShape, Rope
from scripts.engine_limits import Limits, roofline_s

CONTEXT = 100


@pytest.mark.parametrize("layers", [1, 3])
def test_a_prompts_last_layer_is_needed_where_a_token_is_sampled_and_for_its_kv(layers):
    shape = ModelShape(
        *("llama", layers, 64, 4, 2, 32, 96, 500, 1e-5),
        rope=Rope(theta=10000.0),
        max_positions=512,
        tied_head=True,
    )
    kv, whole = 64 * 2 * 2 * 32, 64 * (8 + 4) * 32 + 3 * 64 * 96
    products = CONTEXT * ((layers - 1) * whole + kv) + whole - kv + 64 * 500
    attention = 4 * 4 * 32 * ((layers - 1) * CONTEXT**2 / 2 + CONTEXT)
    found = roofline_s("prefill", CONTEXT, shape, Dtype.BFLOAT16, Limits(1.0, 1.0))
    assert found == pytest.approx(2 * products + attention)
