"""What a token must not depend on: the rest of the batch, chunks, slots, reused prefixes."""

from __future__ import annotations

import random

import pytest
import torch

from blitzgw.core.model import Dtype
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.engine.base import RowInput
from blitzgw.engine.native import build
from blitzgw.engine.torch_layer import TorchKernels
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import Rig, decode_row

DRAW = random.Random(11)
PROMPTS = [[DRAW.randrange(3, 300) for _ in range(n)] for n in (1, 5, 16, 17, 64, 130, 200)]
native = pytest.mark.skipif(
    build.library() is None, reason="no C++ kernels: needs AVX-512 BF16 and a compiler"
)


def folder_of(tmp_path_factory, name, family, **sizes):
    folder = tmp_path_factory.mktemp(name)
    return tiny_checkpoint(family, folder, head_dim=32, vocab_size=304, **sizes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return folder_of(tmp_path_factory, "invariance", "llama")


@pytest.fixture(scope="module")
def alone(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    return [rig.generate(prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 7, 16, 33, 128])
def test_fp32_tokens_do_not_depend_on_batch_or_chunk(tiny, alone, chunk):
    rig = Rig(tiny, Dtype.FLOAT32)
    together = [rig.sequence(prompt, slot) for slot, prompt in enumerate(PROMPTS)]
    for sequence in together:
        rig.prefill(sequence, chunk)
    for _ in range(11):
        rig.step([decode_row(s) for s in together])
    assert [s.tokens[s.prompt_length :] for s in together] == alone


@native
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"num_key_value_heads": 1}),
        ("mistral", {"sliding_window": 20}),
        ("llama", {"intermediate_size": 608}),  # sums over k are done in parts
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    ],
)
def test_bf16_logits_do_not_depend_on_batch_or_chunk_bit_for_bit(tmp_path_factory, family, sizes):
    """The C++ kernels sum in one order whatever else runs: stronger than any bf16 gate."""
    rig = Rig(folder_of(tmp_path_factory, "native", family, **sizes), Dtype.BFLOAT16)
    for prompt in PROMPTS:
        alone = rig.sequence(prompt, 0)
        expected = [rig.prefill(alone), *(rig.decode([alone], 1) for _ in range(3))]
        others = [rig.sequence(p, 2 + i) for i, p in enumerate(PROMPTS[:5])]
        for sequence in others:
            rig.prefill(sequence)
        chunked = rig.sequence(prompt, 1)
        got = [rig.prefill(chunked, chunk=13)]
        for _ in range(3):
            batch = [*(decode_row(s) for s in others), decode_row(chunked)]
            batch.insert(2, RowInput(rig.sequence(PROMPTS[-1], 7), 0, 90, False))
            got.append(rig.step(batch)[-1:])
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@native
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_native_kernels_agree_with_torch(tmp_path_factory, family, monkeypatch):
    """Both within bf16's rounding of fp32, and the native ones no further away than twice."""
    folder = folder_of(tmp_path_factory, "agree", family)
    exact, fast = Rig(folder, Dtype.FLOAT32), Rig(folder, Dtype.BFLOAT16)
    monkeypatch.setenv("BLITZGW_NATIVE", "0")
    build.library.cache_clear()
    slow = Rig(folder, Dtype.BFLOAT16)
    monkeypatch.undo()
    build.library.cache_clear()
    assert isinstance(slow.engine._kernels, TorchKernels)
    assert not isinstance(fast.engine._kernels, TorchKernels)
    off = []
    for rig in (fast, slow):
        errors = []
        for prompt in PROMPTS:
            truth = exact.prefill(exact.sequence(prompt, 0))
            errors.append((rig.prefill(rig.sequence(prompt, 0)) - truth).abs().mean())
        off.append(float(torch.stack(errors).mean()))
    assert off[0] <= 2 * off[1]


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_a_reused_prefix_gives_the_same_tokens(tiny, dtype):
    rig = Rig(tiny, dtype)
    prompt = PROMPTS[-1]
    expected = rig.generate(prompt, 10, slot=3)
    first = rig.kv.blocks_per_slot
    blocks = 8
    rig.engine.copy_blocks([(3 * first + i, 5 * first + i) for i in range(blocks)])
    sequence = rig.sequence(prompt, 5)
    rig.prefill(sequence, start=blocks * BLOCK_TOKENS)
    rig.decode([sequence], 9)
    assert sequence.tokens[len(prompt) :] == expected


def test_released_memory_is_returned_and_reused(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    expected = rig.generate(PROMPTS[3], 6, slot=2)
    rig.generate(PROMPTS[5], 6, slot=2)
    rig.engine.release([(2 * rig.kv.blocks_per_slot, rig.kv.blocks_per_slot)])
    assert rig.generate(PROMPTS[3], 6, slot=2) == expected


def test_a_position_beyond_the_table_is_refused(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    sequence = rig.sequence(PROMPTS[3], 0)
    sequence.table = sequence.table[:1]
    with pytest.raises(ValueError, match="beyond its block table"):
        rig.prefill(sequence)
