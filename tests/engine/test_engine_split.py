"""An engine cut at any layer: hidden states and KV handed over change nothing, bit for bit."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from blitzgw.core.model import Dtype
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.decoder import TorchEngine
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import CPU, Rig, decode_row

PROMPT = [random.Random(5).randrange(3, 300) for _ in range(45)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Six layers with heads that the C++ kernels take."""
    folder = tmp_path_factory.mktemp("split")
    sizes = {"num_hidden_layers": 6, "head_dim": 32, "vocab_size": 304}
    return tiny_checkpoint("llama", folder, **sizes)


def hand_over(
    source: TorchEngine,
    target: TorchEngine,
    from_: SequenceState,
    to: SequenceState,
    k: int,
    n: int,
) -> None:
    target.import_kv(to.table, source.export_kv(from_.table, 0, n, Span(0, k)))


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_a_handoff_at_every_layer_is_bit_identical(tiny, dtype):
    """[0, k) here, [k, L) there, then the other one goes on alone with all layers."""
    whole, first, second = (Rig(tiny, dtype) for _ in range(3))
    alone = whole.sequence(PROMPT, 0)
    expected = whole.prefill(alone)
    whole.decode([alone], 8)
    for k in range(whole.spec.shape.n_layers + 1):
        here, there = first.sequence(PROMPT, 1), second.sequence(PROMPT, 2)
        rows = [RowInput(here, 0, len(PROMPT), True)]
        hidden = first.engine.forward(rows, Span(0, k), None)
        moved = second.engine.import_hidden(first.engine.export_hidden(hidden))
        hand_over(first.engine, second.engine, here, there, k, len(PROMPT))
        rest = [RowInput(there, 0, len(PROMPT), True)]
        out = second.engine.forward(rest, Span(k, second.spec.shape.n_layers), moved)
        logits = second.engine.logits(rest, out)
        assert torch.equal(logits, expected), f"k = {k}"
        there.tokens.append(second.engine.sample(rest, logits)[0].token)
        second.decode([there], 8)
        assert there.tokens == alone.tokens, f"k = {k}"


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_spans_in_turn_on_two_engines_decode_identically(tiny, dtype):
    """A pipeline of two: every token passes both, with the same batch."""
    whole, first, second = (Rig(tiny, dtype) for _ in range(3))
    layers = whole.spec.shape.n_layers
    for k in range(layers + 1):
        alone = [whole.sequence(PROMPT[:n], n % 3) for n in (9, 16, 31)]
        here = [first.sequence(PROMPT[:n], n % 3) for n in (9, 16, 31)]
        there = [second.sequence(PROMPT[:n], n % 3) for n in (9, 16, 31)]
        for step in range(5):
            expected = whole.step([row(s, step) for s in alone])
            hidden = first.engine.forward([row(s, step) for s in here], Span(0, k), None)
            rows = [row(s, step) for s in there]
            moved = second.engine.import_hidden(first.engine.export_hidden(hidden))
            out = second.engine.forward(rows, Span(k, layers), moved)
            logits = second.engine.logits(rows, out)
            assert torch.equal(logits, expected), f"k = {k}"
            for mine, other, token in zip(here, there, logits.argmax(-1).tolist(), strict=True):
                mine.tokens.append(token)
                other.tokens.append(token)
        assert [s.tokens for s in there] == [s.tokens for s in alone]


def row(sequence: SequenceState, step: int) -> RowInput:
    if step:
        return decode_row(sequence)
    return RowInput(sequence, 0, len(sequence.tokens), True)


def test_a_span_needs_its_layers_and_an_embedding_only_at_the_start(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    bare = TorchEngine(rig.spec, rig.kv, CPU)
    sequence = rig.sequence(PROMPT, 0)
    rows = [RowInput(sequence, 0, 4, True)]
    with pytest.raises(ValueError, match="not resident"):
        bare.forward(rows, Span(0, 1), None)
    for index in (2, 3):
        bare.blob_buffer(index)[:] = rig.engine.blob_buffer(index)
        bare.blob_arrived(index)
    hidden = rig.engine.forward(rows, Span(0, 1), None)
    assert torch.equal(
        bare.forward(rows, Span(1, 3), hidden), rig.engine.forward(rows, Span(1, 3), hidden)
    )
    with pytest.raises(ValueError, match=r"layers \[3\]"):
        bare.forward(rows, Span(1, 4), hidden)
    with pytest.raises(ValueError, match="head"):
        bare.logits(rows, hidden)


def test_handed_over_hidden_states_are_not_changed(tiny):
    rig = Rig(tiny, Dtype.BFLOAT16)
    rows = [RowInput(rig.sequence(PROMPT, 0), 0, 9, True)]
    hidden = rig.engine.forward(rows, Span(0, 2), None)
    before = hidden.clone()
    rig.engine.forward(rows, Span(2, 6), hidden)
    assert torch.equal(hidden, before)


def test_kv_that_does_not_fit_is_refused(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    sequence = rig.sequence(PROMPT, 0)
    rig.prefill(sequence)
    kv = rig.engine.export_kv(sequence.table, 0, 45, Span(0, 6))
    with pytest.raises(ValueError, match=r"\[0, 45\) in 2 blocks"):
        rig.engine.import_kv(sequence.table[:2], kv)
    with pytest.raises(ValueError, match="does not fit"):
        rig.engine.import_kv(sequence.table, type(kv)(kv.span, 0, 44, kv.data))
    with pytest.raises(ValueError, match="whole hidden"):
        rig.engine.import_hidden(b"\0" * 20)
    with pytest.raises(ValueError, match="run of blocks"):
        rig.engine.export_kv([1, 2], 0, BLOCK_TOKENS, Span(0, 6))


def test_kv_is_exported_while_others_compute(tiny):
    """Another thread reads a sequence's KV by layer and range, the same every time."""
    rig = Rig(tiny, Dtype.BFLOAT16)
    sequence, busy = rig.sequence(PROMPT, 0), rig.sequence(PROMPT[::-1], 1)
    rig.prefill(sequence)
    layers = [Span(i, i + 1) for i in range(6)]

    def export() -> list[bytes]:
        return [bytes(rig.engine.export_kv(sequence.table, 7, 40, s).data) for s in layers]

    expected, seen, over = export(), [], threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(export() == expected)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(20):
        rig.engine.forward([RowInput(busy, 0, len(PROMPT), True)], rig.whole, None)
    over.set()
    thread.join(10)
    assert seen
    assert all(seen)


def test_hidden_states_that_begin_anywhere_and_cannot_be_written_are_taken(tiny):
    rig = Rig(tiny, Dtype.FLOAT32)
    rows = [RowInput(rig.sequence(PROMPT, 0), 0, 9, True)]
    hidden = rig.engine.forward(rows, Span(0, 2), None)
    data = bytes(rig.engine.export_hidden(hidden))
    shifted = memoryview(bytearray(b"\0" + data))[1:]
    for given in (data, memoryview(data), shifted):
        assert torch.equal(rig.engine.import_hidden(given), hidden)
    parts = [hidden[:4], hidden[4:5], hidden[5:]]
    assert torch.equal(rig.engine.join_hidden(parts), hidden)
    assert (
        bytes(rig.engine.export_hidden(hidden[4:5])) == data[len(data) // 9 * 4 :][: len(data) // 9]
    )
