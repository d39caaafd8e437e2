"""The two digests of a blob: by their definition, in parts, and by torch."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.engine.lanes import lane_sum as torch_lane_sum
from blitzgw.weights import digests
from blitzgw.weights.digests import BlobHasher, blake3_digest, blob_digest, lane_sum

torch = pytest.importorskip("torch")

BYTES = st.binary(max_size=300)


def by_definition(data: bytes, start_word: int = 0) -> int:
    """Return the lane sum, word by word."""
    padded = data + bytes(-len(data) % 4)
    words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
    return sum(w * (2 * i + 1) for i, w in enumerate(words, start_word)) % (1 << 64)


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\x01", 1),
        (b"\x00\x00\x00\x80", 1 << 31),
        (b"\x01\x00\x00\x00" * 3, 1 + 3 + 5),
        (b"\x01\x00\x00\x00\x02\x00", 1 + 2 * 3),
        (b"\xff" * 8, ((1 << 32) - 1) * 4),
    ],
)
def test_lane_sums_by_hand(data, expected):
    assert lane_sum(data) == expected


@given(BYTES, st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_lane_sums_by_definition(data, start_word):
    assert lane_sum(data, start_word) == by_definition(data, start_word)
    assert lane_sum(memoryview(bytearray(data)), start_word) == by_definition(data, start_word)


def test_a_sum_over_many_chunks_wraps(monkeypatch):
    data = b"\xff" * 40_000
    monkeypatch.setattr(digests, "CHUNK_WORDS", 1000)
    assert lane_sum(data, 1 << 61) == by_definition(data, 1 << 61)
    data = noise((digests.CHUNK_WORDS * 4) * 3 + 7)
    assert lane_sum(data) == by_definition(data)


@given(st.lists(BYTES, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_hasher_takes_bytes_in_any_pieces(pieces):
    data = b"".join(pieces)
    hasher = BlobHasher()
    for piece in pieces:
        hasher.update(piece)
    found = hasher.finish()
    assert found == blob_digest(data)
    assert (found.size_bytes, found.lanes) == (len(data), by_definition(data))
    assert found.blake3 == blake3(data).digest()
    hasher.update(b"more")
    assert hasher.finish() == blob_digest(data + b"more")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(threads):
    data = noise(5_000_003)
    assert blake3_digest(data, threads) == blake3(data).digest()
    assert blob_digest(data, threads) == blob_digest(data)


def test_any_change_of_one_word_changes_the_sum():
    data = bytearray(noise(4096))
    before = lane_sum(data)
    for place in range(0, 4096, 97):
        data[place] ^= 1 << place % 8
        assert lane_sum(data) != before
        data[place] ^= 1 << place % 8
    data[0:4], data[8:12] = data[8:12], data[0:4]
    assert lane_sum(data) != before


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 64, 1000, 70_001])
def test_torch_computes_the_same(size, monkeypatch):
    monkeypatch.setattr("blitzgw.engine.lanes.CHUNK_WORDS", 1000)
    data = noise(size)
    blob = torch.from_numpy(np.frombuffer(bytearray(data) or bytearray(1), np.uint8)[:size])
    assert torch_lane_sum(blob) == lane_sum(data)


def test_torch_sums_blobs_of_any_type():
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        blob = values.to(dtype)
        data = blob.view(torch.uint8).numpy().tobytes()
        assert torch_lane_sum(blob) == lane_sum(data) == by_definition(data)


def test_other_threads_run_while_it_hashes():
    data = np.ones(64 << 20, np.uint8).data
    done = threading.Event()

    def hash_it() -> None:
        blob_digest(data)
        done.set()

    thread = threading.Thread(target=hash_it)
    thread.start()
    turns = 0
    while not done.wait(0.0002):
        turns += 1
    thread.join()
    assert turns > 10  # with the GIL held throughout it would be none or one
