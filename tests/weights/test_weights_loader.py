"""Blobs: order, places, padding, errors."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights import loader
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.loader import load_blobs
from tests.support.checkpoints import FAMILIES, tiny_checkpoint
from tests.support.ggufs import tiny_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint("qwen2", tmp_path_factory.mktemp("loader") / "m", head_dim=17 * 2)


def blobs(checkpoint, dtype, threads=4, on_blob=lambda index: None):
    layouts = blob_layouts(checkpoint.shape, dtype)
    buffers = [bytearray(b"\xee" * layout.size_bytes) for layout in layouts]
    load_blobs(checkpoint, layouts, dtype, lambda i: memoryview(buffers[i]), on_blob, threads)
    return layouts, buffers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threads", [1, 4])
def test_parts_lie_at_their_offsets_and_padding_is_zero(tmp_path, family, threads):
    checkpoint = open_checkpoint(tiny_checkpoint(family, tmp_path / "m"))
    dtype = Dtype.BFLOAT16
    layouts, buffers = blobs(checkpoint, dtype, threads)
    for layout, buffer in zip(layouts, buffers, strict=True):
        rest = bytearray(buffer)
        for part in (part for slot in layout.tensors for part in slot.parts):
            prefix = f"{layout.name}." if layout.name.startswith("layer") else ""
            expected = bytearray(part.size_bytes)
            checkpoint.read(prefix + part.name, dtype, memoryview(expected))
            stop = part.offset + part.size_bytes
            assert buffer[part.offset : stop] == expected
            rest[part.offset : stop] = bytes(part.size_bytes)
        assert not any(rest)
    checkpoint.close()


def test_blobs_are_announced_in_order_in_the_callers_thread(folder):
    seen = []
    checkpoint = open_checkpoint(folder)
    blobs(checkpoint, Dtype.FLOAT32, on_blob=lambda i: seen.append((i, threading.get_ident())))
    assert seen == [(i, threading.get_ident()) for i in range(5)]


def test_a_blob_is_complete_when_it_is_announced(folder, monkeypatch):
    checkpoint = Slow(open_checkpoint(folder))
    layouts = blob_layouts(checkpoint.shape, Dtype.FLOAT32)
    buffers = [bytearray(b"\xee" * layout.size_bytes) for layout in layouts]
    at_call = {}
    load_blobs(
        checkpoint, layouts, Dtype.FLOAT32, lambda i: memoryview(buffers[i]),
        lambda i: at_call.update({i: bytes(buffers[i])}),
    )  # fmt: skip
    assert [at_call[i] for i in range(5)] == [bytes(b) for b in buffers]


def test_cutting_the_embedding_changes_nothing(folder, monkeypatch):
    checkpoint = open_checkpoint(folder)
    _, whole = blobs(checkpoint, Dtype.FLOAT16)
    monkeypatch.setattr(loader, "CHUNK_BYTES", 1000)
    _, cut = blobs(checkpoint, Dtype.FLOAT16)
    assert whole == cut


class Slow:
    """A checkpoint whose reads take a moment, and whose named tensor fails."""

    def __init__(self, inner, fail=None, error=None):
        self.inner, self.fail, self.error, self.reads = inner, fail, error, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read(self, name, dtype, out, start=0):
        time.sleep(0.002)
        self.reads += 1
        if name == self.fail:
            raise self.error
        self.inner.read(name, dtype, out, start)


@pytest.mark.parametrize(
    "error", [CheckpointError("torn"), MemoryError("torn"), ValueError("torn")]
)
def test_an_error_stops_everything(folder, error):
    checkpoint = Slow(open_checkpoint(folder), "layer.1.gate", error)
    announced = []
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="torn"):
        blobs(checkpoint, Dtype.FLOAT32, on_blob=announced.append)
    assert threading.active_count() == before
    assert announced == sorted(announced)
    assert not set(announced) & {2, 3, 4}
    assert checkpoint.reads < 30


def test_an_exception_out_of_the_callback_stops_everything(folder):
    checkpoint = Slow(open_checkpoint(folder))
    before = threading.active_count()

    def on_blob(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs(checkpoint, Dtype.FLOAT32, on_blob=on_blob)
    assert threading.active_count() == before
    assert checkpoint.reads < 20


def test_buffers_must_fit(folder):
    checkpoint = open_checkpoint(folder)
    layouts = blob_layouts(checkpoint.shape, Dtype.FLOAT32)
    for wrong in (bytearray(3), bytes(layouts[0].size_bytes)):
        with pytest.raises(ValueError, match="writable bytes"):
            load_blobs(checkpoint, layouts, Dtype.FLOAT32, lambda i, w=wrong: memoryview(w), print)


def test_a_span_of_blobs(folder):
    checkpoint = open_checkpoint(folder)
    layouts = blob_layouts(checkpoint.shape, Dtype.FLOAT32)[2:4]
    buffers = {layout.index: bytearray(layout.size_bytes) for layout in layouts}
    seen = []
    load_blobs(checkpoint, layouts, Dtype.FLOAT32, lambda i: memoryview(buffers[i]), seen.append)
    assert seen == [2, 3]


def test_any_blobs_in_any_order(folder):
    checkpoint = open_checkpoint(folder)
    _, whole = blobs(checkpoint, Dtype.FLOAT32)
    layouts = blob_layouts(checkpoint.shape, Dtype.FLOAT32)
    buffers = [bytearray(b"\xee" * layout.size_bytes) for layout in layouts]
    seen = []
    load_blobs(
        checkpoint, [layouts[i] for i in (4, 1, 3)], Dtype.FLOAT32,
        lambda i: memoryview(buffers[i]), seen.append,
    )  # fmt: skip
    assert seen == [4, 1, 3]
    assert [buffers[i] == whole[i] for i in range(5)] == [False, True, False, True, True]
    load_blobs(checkpoint, [], Dtype.FLOAT32, lambda i: memoryview(b""), seen.append)
    assert seen == [4, 1, 3]


class Watched(Slow):
    """A checkpoint that notes its reads."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def read(self, name, dtype, out, start=0):
        self.seen.append((name, start, len(out)))
        self.inner.read(name, dtype, out, start)


def test_a_blob_is_read_in_the_order_of_the_file(folder):
    checkpoint = Watched(open_checkpoint(folder))
    blobs(checkpoint, Dtype.FLOAT32, threads=1)
    layers = [[], [], []]
    for name, _, _ in checkpoint.seen:
        if name.startswith("layer."):
            layers[int(name.split(".")[1])].append(checkpoint.place(name))
    assert all(len(places) == 12 for places in layers)
    assert all(places == sorted(places) for places in layers)
    assert next(name for name, _, _ in checkpoint.seen) == "embedding"


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_large_tensors_are_cut_except_where_heads_are_rearranged(tmp_path, kind, monkeypatch):
    path = tiny_checkpoint("llama", tmp_path / "m")
    if kind == "gguf":
        path = tiny_gguf("llama", path, tmp_path / "m.gguf", quantise="Q8_0")
    checkpoint = Watched(open_checkpoint(path))
    _, whole = blobs(checkpoint, Dtype.BFLOAT16)
    checkpoint.seen.clear()
    monkeypatch.setattr(loader, "CHUNK_BYTES", 2000)
    _, cut = blobs(checkpoint, Dtype.BFLOAT16)
    assert whole == cut
    parts = {name for name, start, _ in checkpoint.seen if start}
    assert {"embedding", "head", "layer.0.gate", "layer.2.down", "layer.1.out"} <= parts
    assert not {name for name in parts if name.endswith((".q", ".k"))}
    checkpoint.close()


def test_a_blob_that_cannot_be_cut_into_reads_is_an_error(folder):
    class Lost(Slow):
        def place(self, name):
            raise CheckpointError(f"{name} is nowhere")

    with pytest.raises(CheckpointError, match="embedding is nowhere"):
        blobs(Lost(open_checkpoint(folder)), Dtype.FLOAT32)


def test_the_real_model_loads_quickly(smollm2):
    checkpoint = open_checkpoint(smollm2)
    layouts = blob_layouts(checkpoint.shape, Dtype.BFLOAT16)
    slabs = [np.zeros(layout.size_bytes, np.uint8) for layout in layouts]
    best = float("inf")  # seconds of all threads; 0.4 s of wall time on two idle cores
    for _ in range(3):
        start = time.process_time()
        load_blobs(checkpoint, layouts, Dtype.BFLOAT16, lambda i: slabs[i].data, lambda i: None)
        best = min(best, time.process_time() - start)
    assert best < 2.0
    checkpoint.close()
