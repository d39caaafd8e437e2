"""The engine of a GPU with a CPU in its place: captured or launched ahead, the same tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blitzgw.core.model import Dtype
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.engine.base import PENDING, LaunchingEngine, RowInput
from blitzgw.engine.gpu.captures import SPACING_S
from tests.support.capturing import Recording, RecordingShell
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import GREEDY, Rig, decode_row
from tests.support.gpurig import PROMPTS, SLOTS, GpuRig, filled

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SAMPLED = SamplingParams(max_tokens=64, temperature=0.8, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_captured_steps_give_the_tokens_and_the_kv_of_the_plain_engine(family, tmp_path):
    folder = tiny_checkpoint(family, tmp_path)
    plain, gpu = Rig(folder, Dtype.FLOAT32), GpuRig(folder)
    ours, theirs = filled(gpu), filled(plain)
    gpu.decode(ours, 2)
    plain.decode(theirs, 2)
    assert gpu.capture_all() == 4  # 1, 2, 4 and 8 rows
    for count in (5, 3, 1, 2, 4, 5, 5):
        logits = gpu.decode(ours[:count], 1)
        expected = plain.decode(theirs[:count], 1)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert gpu.shell.replays == 7
    for i in gpu.whole.layers():
        for mine, other in zip(gpu.engine._kv.layer(i), plain.engine._kv.layer(i), strict=True):
            for sequence, slot in zip(ours, SLOTS, strict=True):
                stop = len(sequence.tokens) - 1
                torch.testing.assert_close(
                    mine[slot, :, :stop], other[slot, :, :stop], atol=1e-4, rtol=1e-4
                )


def test_a_capture_writes_nothing(llama):
    rig = GpuRig(llama)
    sequences = filled(rig)
    rig.decode(sequences, 1)
    before, latest = rig.kv_of_all(), rig.engine._latest.clone()
    assert rig.capture_all() == 4
    assert torch.equal(rig.kv_of_all(), before)
    assert torch.equal(rig.engine._latest, latest)


def test_a_replay_touches_no_slot_but_its_rows(llama):
    rig = GpuRig(llama)
    sequences = filled(rig)
    rig.decode(sequences, 1)
    rig.capture_all()
    before = rig.kv_of_all()
    rig.decode(sequences[:3], 1)  # in a bucket of 4
    after = rig.kv_of_all()
    others = [slot for slot in range(8) if slot not in SLOTS[:3]]
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.equal(after, before)


def test_only_whole_decode_steps_are_captured(llama):
    rig = GpuRig(llama)
    layers = rig.whole.stop
    sequence = rig.sequence(PROMPTS[2], 0)
    rig.prefill(sequence, chunk=20)
    assert rig.engine.moment_s() is None  # no batch has decoded
    row = decode_row(sequence)
    hidden = rig.engine.forward([row], Span(0, 1), None)
    rig.engine.forward([row], Span(1, layers), hidden)
    rig.engine.forward([replace(row, sample=False)], rig.whole, None)
    rig.engine.forward([row, RowInput(rig.sequence(PROMPTS[1], 1), 0, 16, True)], rig.whole, None)
    assert rig.engine.moment_s() is None
    rig.engine.forward([row], rig.whole, None)
    assert rig.engine.moment_s() == 0
    rig.capture_all()
    rig.engine.forward([row], Span(0, 1), None)
    assert rig.shell.replays == 0


def test_a_batch_that_no_bucket_covers_is_served_layer_by_layer(llama, monkeypatch):
    monkeypatch.setattr("blitzgw.engine.gpu.captures.MAX_BUCKET", 2)
    plain, gpu = Rig(llama, Dtype.FLOAT32), GpuRig(llama)
    ours, theirs = filled(gpu), filled(plain)
    gpu.decode(ours, 1)
    assert gpu.capture_all() == 2
    gpu.decode(ours, 3)
    plain.decode(theirs, 4)
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert gpu.shell.replays == 0


def test_captures_keep_their_distance(llama):
    rig = GpuRig(llama)
    rig.decode(filled(rig), 1)
    rig.engine.use_moment()
    assert rig.engine.moment_s() == SPACING_S
    rig.time += 1.0
    assert rig.engine.moment_s() == 0


def test_a_device_that_cannot_capture_serves_on(llama, caplog):
    plain, gpu = Rig(llama, Dtype.FLOAT32), GpuRig(llama)
    ours, theirs = filled(gpu), filled(plain)
    gpu.decode(ours, 1)
    gpu.shell.fail = True
    gpu.engine.use_moment()
    assert gpu.engine.moment_s() is None
    assert "capture_failed model=tested rows=8" in caplog.text
    gpu.decode(ours, 3)
    plain.decode(theirs, 4)
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]


def test_weights_that_arrive_again_void_what_is_captured(llama):
    plain, gpu = Rig(llama, Dtype.FLOAT32), GpuRig(llama)
    ours, theirs = filled(gpu), filled(plain)
    gpu.decode(ours, 1)
    gpu.capture_all()
    gpu.engine.blob_arrived(1)
    gpu.decode(ours, 1)
    assert gpu.shell.replays == 0
    assert gpu.capture_all() == 4
    gpu.decode(ours, 1)
    assert gpu.shell.replays == 1
    plain.decode(theirs, 3)
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_steps_are_launched_before_the_tokens_that_they_read_are_known(llama, sampling, captured):
    plain, gpu = Rig(llama, Dtype.FLOAT32), GpuRig(llama)
    ours, theirs = filled(gpu, sampling), filled(plain, sampling)
    gpu.decode(ours, 1)
    plain.decode(theirs, 1)
    if captured:
        gpu.capture_all()
    engine = gpu.engine
    assert isinstance(engine, LaunchingEngine)
    waiting = []
    for _ in range(6):
        rows = [decode_row(s) for s in ours]
        assert engine.can_follow(rows)
        waiting.append(
            engine.launch(rows, engine.logits(rows, engine.forward(rows, gpu.whole, None)))
        )
        for sequence in ours:
            sequence.tokens.append(PENDING)
    plain.decode(theirs, 6)
    drawn = [[one.token for one in each.wait()] for each in waiting]
    assert list(map(list, zip(*drawn, strict=True))) == [s.tokens[-6:] for s in theirs]
    assert gpu.shell.replays == (6 if captured else 0)


def test_a_pending_token_at_the_end_of_a_chunk_is_found(llama):
    rig = GpuRig(llama)
    sequence = rig.sequence(PROMPTS[2], 4)
    rig.prefill(sequence)
    expected = rig.engine.forward([RowInput(sequence, 40, 6, True)], rig.whole, None)
    sequence.tokens[-1] = PENDING
    assert torch.equal(
        rig.engine.forward([RowInput(sequence, 40, 6, True)], rig.whole, None), expected
    )


def test_rows_that_need_the_host_are_sampled_among_others(llama):
    plain, gpu = Rig(llama, Dtype.FLOAT32), GpuRig(llama)
    wishes = [
        {},
        {"logprobs": 2},
        {"frequency_penalty": 0.7, "presence_penalty": 0.2},
        {"temperature": 0.0, "logit_bias": ((9, 4.0),)},
        {"min_tokens": 60},
    ]
    both = []
    for rig in (gpu, plain):
        sequences = [
            rig.sequence(p, slot, replace(SAMPLED, **wish))
            for p, slot, wish in zip(PROMPTS, SLOTS, wishes, strict=True)
        ]
        for sequence in sequences:
            rig.prefill(sequence)
        rig.decode(sequences, 1)
        if rig is gpu:
            rig.capture_all()
            assert not gpu.engine.can_follow([decode_row(s) for s in sequences])
        rig.decode(sequences, 5)
        rows = [decode_row(s) for s in sequences]
        sampled = rig.engine.sample(
            rows, rig.engine.logits(rows, rig.engine.forward(rows, rig.whole, None))
        )
        both.append((sequences, sampled))
    (ours, mine), (theirs, others) = both
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert [one.token for one in mine] == [one.token for one in others]
    assert mine[1].logprobs.chosen == pytest.approx(others[1].logprobs.chosen, abs=1e-4)
    assert mine[0].logprobs is None


def test_the_stand_in_refuses_what_a_capture_refuses():
    numbers = torch.zeros(3)
    with Recording(), pytest.raises(RuntimeError, match="may not wait"):
        numbers.sum().item()


def test_the_stand_in_replays_on_the_same_memory():
    held = torch.zeros(2)
    factor = 2.0
    outputs = []

    def work():
        outputs.append(held * factor + 1)

    replay = RecordingShell().capture(work)
    factor, held[:] = 9.0, 5.0
    replay()
    assert outputs[0].tolist() == [11.0, 11.0]
