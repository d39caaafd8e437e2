"""Kernels of libraries are called as these document it, and those that compute otherwise left."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from blitzgw.core.model import Dtype
from blitzgw.engine.attention import flash_chunk
from blitzgw.engine.base import RowInput
from blitzgw.engine.gpu import choice as choosing
from blitzgw.engine.gpu import varlen
from blitzgw.engine.gpu.choice import Chooser, choose
from blitzgw.engine.gpu.flash import FlashLayer
from blitzgw.weights.info import resolve_model
from tests.support import flashinfer
from tests.support.capturing import RecordingShell
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import Rig, decode_row
from tests.support.gpurig import PROMPTS, GpuRig, filled, rms

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CPU = torch.device("cpu")
MODELS = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "mistral": {"num_attention_heads": 3, "num_key_value_heads": 1, "sliding_window": 9},
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 128},
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        family: tiny_checkpoint(
            family,
            tmp_path_factory.mktemp(family),
            **sizes | ({} if family == "qwen2" else {"head_dim": 64}),
        )
        for family, sizes in MODELS.items()
    }


def spec_of(folder, dtype=Dtype.BFLOAT16):
    return resolve_model("tested", folder, dtype, None).spec


def missing():
    raise ImportError("No module named 'flashinfer'")


def choice_of(folder, library, dtype=Dtype.BFLOAT16):
    return choose(spec_of(folder, dtype), 512, CPU, RecordingShell(), library)


@pytest.mark.parametrize("family", MODELS)
def test_flashinfer_is_taken_where_it_computes_what_torch_does(folders, family, caplog):
    caplog.set_level("INFO")
    choice = choice_of(folders[family], lambda: flashinfer)
    assert choice.name == "flashinfer", caplog.text
    assert choice.paged is not None


def wrong_rope(positions, query, key, head_size, cos_sin_cache):
    flashinfer.apply_rope_with_cos_sin_cache_inplace(
        positions.flip(0), query, key, head_size, cos_sin_cache
    )


class WrongPages(flashinfer.BatchDecodeWithPagedKVCacheWrapper):
    def run(self, q, paged_kv_cache):
        return super().run(q, [cache.roll(1, 0) for cache in paged_kv_cache])


class Forgetful(flashinfer.BatchDecodeWithPagedKVCacheWrapper):
    """Right in every step, wrong at fixed addresses."""

    def run(self, q, paged_kv_cache):
        out = super().run(q, paged_kv_cache)
        return out.flip(0) if self._graph else out


@pytest.mark.parametrize(
    "wrong",
    [
        {"apply_rope_with_cos_sin_cache_inplace": wrong_rope},
        {"silu_and_mul": lambda x: flashinfer.silu_and_mul(x.flip(-1))},
        {"rmsnorm": lambda x, w, eps: x * torch.nan},
        {"BatchDecodeWithPagedKVCacheWrapper": WrongPages},
        {"BatchDecodeWithPagedKVCacheWrapper": Forgetful},
    ],
    ids=["rope", "activation", "nan", "pages", "fixed"],
)
def test_a_library_that_computes_something_else_is_left(folders, wrong, caplog):
    library = SimpleNamespace(**vars(flashinfer) | wrong)
    choice = choice_of(folders["llama"], lambda: library)
    assert (choice.name, choice.paged) == ("torch", None)
    assert "kernels_wrong model=tested kernels=flashinfer" in caplog.text


class WithoutWindow(flashinfer.BatchDecodeWithPagedKVCacheWrapper):
    def plan(self, *args, window_left, **options):
        super().plan(*args, **options)


def test_a_window_that_is_not_kept_is_found_though_it_is_longer_than_what_is_tried(folders):
    spec = spec_of(folders["mistral"])
    spec = replace(spec, shape=replace(spec.shape, window=400))
    wrong = vars(flashinfer) | {"BatchDecodeWithPagedKVCacheWrapper": WithoutWindow}
    for library, name in ((flashinfer, "flashinfer"), (SimpleNamespace(**wrong), "torch")):
        assert choose(spec, 512, CPU, RecordingShell(), lambda: library).name == name  # noqa: B023


def test_without_the_library_torch_serves(folders, caplog):
    caplog.set_level("INFO")
    choice = choice_of(folders["llama"], missing)
    assert (choice.name, choice.paged) == ("torch", None)
    assert "kernels=flash error=No module named 'flashinfer'" in caplog.text


def test_the_library_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("BLITZGW_FLASHINFER", "0")
    choosing.flashinfer.cache_clear()
    with pytest.raises(ImportError, match="BLITZGW_FLASHINFER=0"):
        choosing.flashinfer()


def test_heads_that_it_has_no_kernels_for_are_left_to_torch(folders, caplog):
    caplog.set_level("INFO")
    assert choice_of(folders["llama"], lambda: flashinfer, Dtype.FLOAT32).name == "torch"
    assert "no kernels for float32 heads of 64" in caplog.text


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa, seqused_k,
    block_table,
):  # fmt: skip
    """What torch documents, for one query each."""
    assert cu_seq_q.tolist() == list(range(len(query) + 1))
    assert cu_seq_k is None
    assert enable_gqa
    assert max_q == 1
    assert key.shape[1] == max_k
    assert block_table.dtype is seqused_k.dtype is torch.int32
    keys, values = (pages[block_table[:, 0].long()].transpose(1, 2) for pages in (key, value))
    positions, stops = torch.arange(max_k), seqused_k[:, None]
    seen = positions < stops
    if window_size != (-1, -1):
        seen &= positions >= stops - 1 - window_size[0]
        assert window_size[1] == 0
    q_BHTD = query[:, :, None]
    out = F.scaled_dot_product_attention(q_BHTD, keys, values, seen[:, None, None], enable_gqa=True)
    return out[:, :, 0]


@pytest.mark.parametrize("family", MODELS)
def test_torch_s_block_tables_are_the_second_choice(folders, family, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attention", lambda: varlen_attn)
    choice = choice_of(folders[family], missing)
    assert choice.name == "torch, varlen"


def test_slots_that_are_no_whole_pages_are_not_for_block_tables(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attention", lambda: varlen_attn)
    with pytest.raises(ValueError, match="slots of 400 positions are no multiple of 256"):
        varlen.VarlenDecode(400, 0, CPU)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_goes_over_to_flashinfer_while_it_serves(folders, family):
    """First torch's kernels, then FlashInfer's layer by layer, then captured; always its logits."""
    plain = Rig(folders[family], Dtype.BFLOAT16)
    gpu = GpuRig(folders[family], dtype=Dtype.BFLOAT16)
    choice, gpu.choice = choice_of(folders[family], lambda: flashinfer), None
    ours, theirs = filled(gpu), filled(plain)

    def decode(count):
        for mine, other in zip(ours, theirs, strict=True):
            other.tokens[:] = mine.tokens
        assert rms(gpu.decode(ours[:count], 1), plain.decode(theirs[:count], 1)) < 0.05

    decode(5)
    assert gpu.engine.moment_s() is None
    gpu.choice = choice
    decode(5)
    assert all(isinstance(layer, FlashLayer) for layer in gpu.engine._layers.values())
    assert gpu.capture_all() == 4
    for count in (5, 3, 5, 1):
        decode(count)
    theirs[0].tokens[:] = ours[0].tokens
    for rig, sequence in ((gpu, ours[0]), (plain, theirs[0])):  # beside a prompt, not captured
        rig.step([decode_row(sequence), RowInput(rig.sequence(PROMPTS[2], 7), 0, 45, True)])
    assert gpu.shell.replays == 4
    decode(5)


@pytest.mark.parametrize(("count", "positions"), [(1, 1), (7, 7), (5, 33), (1, 40)])
def test_a_chunk_by_flash_is_a_chunk_under_a_mask(count, positions):
    generator = torch.Generator().manual_seed(positions)
    q = torch.randn(count, 6, 16, generator=generator)
    k, v = torch.randn(2, 2, positions, 16, generator=generator)
    seen = torch.ones(count, positions, dtype=torch.bool).tril(positions - count)
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], seen, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(flash_chunk(q, k, v), expected)


def test_choosing_holds_nobody_up():
    go = threading.Event()

    def slowly():
        go.wait(30)
        return choice_of_nothing

    choice_of_nothing = object()
    chooser = Chooser(slowly)
    assert chooser() is None
    go.set()
    deadline = time.monotonic() + 30
    while chooser() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert chooser() is choice_of_nothing
