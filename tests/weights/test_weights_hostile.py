"""Damaged and hostile files: a CheckpointError, soon, and nothing else."""

from __future__ import annotations

import json
import struct
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blitzgw.errors import CheckpointError
from blitzgw.weights.info import open_checkpoint, resolve_model
from tests.support.checkpoints import tiny_checkpoint
from tests.support.ggufs import tiny_gguf

FUZZ = settings(
    max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def header(*parts: bytes, version=3, tensors=0, keys=0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", shape=(32,), kind=0, offset=0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


HUGE = (1 << 64) - 1

HOSTILE_GGUF = {
    "empty": b"",
    "other magic": b"GGML" + bytes(100),
    "version 1": header(version=1),
    "big endian": header(version=3 << 24),
    "too many keys": header(keys=HUGE),
    "too many tensors": header(tensors=HUGE),
    "many keys, no data": header(keys=4096),
    "key as long as the address space": header(struct.pack("<Q", HUGE), keys=1),
    "long string": header(text(b"k"), struct.pack("<IQ", 8, HUGE), keys=1),
    "huge array": header(text(b"k"), struct.pack("<IIQ", 9, 8, HUGE), keys=1),
    "large array of nothing": header(text(b"k"), struct.pack("<IIQ", 9, 8, 1 << 22), keys=1),
    "array of numbers": header(text(b"k"), struct.pack("<IIQ", 9, 12, 1 << 22), keys=1),
    "array of arrays": header(text(b"k"), struct.pack("<IIQ", 9, 9, 1), bytes(64), keys=1),
    "string in an array beyond the end": header(
        text(b"k"), struct.pack("<IIQQ", 9, 8, 2, HUGE), bytes(64), keys=1
    ),
    "unknown type": header(text(b"k"), struct.pack("<I", 13), bytes(64), keys=1),
    "bad UTF-8": header(text(b"\xff\xfe"), struct.pack("<II", 4, 1), keys=1),
    "key twice": header(*[text(b"k") + struct.pack("<II", 4, 1)] * 2, keys=2),
    "alignment 0": header(text(b"general.alignment"), struct.pack("<II", 4, 0), keys=1),
    "no dimensions": header(tensor(shape=()), bytes(200), tensors=1),
    "five dimensions": header(tensor(shape=(1,) * 5), bytes(200), tensors=1),
    "product overflows": header(tensor(shape=(1 << 62, 1 << 62)), bytes(200), tensors=1),
    "zero elements": header(tensor(shape=(0, 5)), bytes(200), tensors=1),
    "odd block": header(tensor(shape=(33,), kind=2), bytes(200), tensors=1),
    "unknown kind": header(tensor(kind=99), bytes(200), tensors=1),
    "offset beyond the file": header(tensor(offset=1 << 40), bytes(200), tensors=1),
    "offset overflows": header(tensor(offset=HUGE - 31), bytes(200), tensors=1),
    "unaligned": header(tensor(offset=4), bytes(400), tensors=1),
    "overlap": header(tensor(b"a"), tensor(b"b"), bytes(400), tensors=2),
    "tensor twice": header(tensor(), tensor(offset=128), bytes(600), tensors=2),
    "long tensor name": header(tensor(b"n" * 300), bytes(400), tensors=1),
    "no architecture": header(bytes(64)),
}


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_hostile_gguf(tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE_GGUF[name])
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        open_checkpoint(path)
    assert time.perf_counter() - start < 2


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint("llama", folder / "m")
    return tiny_gguf("llama", folder / "m", folder / "m.gguf").read_bytes()


@FUZZ
@given(st.integers(0, 30_000), st.binary(min_size=1, max_size=12))
@example(at=8, patch=b"\xff" * 8)
def test_patched_gguf(tmp_path, own_cache, whole_gguf, at, patch):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole_gguf[:at] + patch + whole_gguf[at + len(patch) :])
    tolerant(path)


@FUZZ
@given(st.integers(0, 1 << 20))
def test_truncated_gguf(tmp_path, whole_gguf, length):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole_gguf[: min(length, len(whole_gguf) - 1)])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@FUZZ
@given(st.binary(max_size=400))
def test_random_gguf(tmp_path, body):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + body)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def tolerant(path) -> None:
    """Open, describe and read; whatever is wrong must come out as CheckpointError."""
    try:
        resolve_model("m", path, None, None)
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    try:
        shape = checkpoint.shape
        buffer = bytearray(shape.hidden * 2)
        checkpoint.read("norm", checkpoint.dtype, memoryview(buffer)[: shape.hidden * 2])
    except CheckpointError:
        pass
    finally:
        checkpoint.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("hf") / "m")


@pytest.fixture
def rewrite(tmp_path, folder):
    """Copy the folder with a safetensors file whose table has been changed."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())

    def write(change=None, raw=None, claimed=None, body=None):
        if change is not None:
            change(table)
        encoded = raw if raw is not None else json.dumps(table).encode()
        claimed = len(encoded) if claimed is None else claimed
        rest = data[8 + length :] if body is None else body
        path = tmp_path / "model.safetensors"
        path.write_bytes(claimed.to_bytes(8, "little") + encoded + rest)
        return tmp_path

    return write


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[NORM].update(data_offsets=[0, 256]), "overlap"),
        (lambda t: t[NORM].update(data_offsets=[0, 1 << 40]), "truncated"),
        (lambda t: t[NORM].update(data_offsets=[256, 0]), "damaged"),
        (lambda t: t[NORM].update(data_offsets=[-256, 0]), "data_offsets"),
        (lambda t: t[NORM].update(data_offsets=[0, 256.0]), "data_offsets"),
        (lambda t: t[NORM].update(data_offsets="x"), "data_offsets"),
        (lambda t: t[NORM].update(shape=[65]), "shape asks for"),
        (lambda t: t[NORM].update(shape=[-64]), "shape"),
        (lambda t: t[NORM].update(shape=[1 << 62, 1 << 62]), "shape asks for"),
        (lambda t: t[NORM].update(shape=[8, 8]), r"\[8, 8\]"),
        (lambda t: t[NORM].update(dtype="F12"), "unknown dtype"),
        (lambda t: t[NORM].update(dtype="I32"), "stored as I32"),
        (lambda t: t.update({NORM: 5}), "unknown dtype"),
        (lambda t: t.pop(NORM), "lacks the tensors model.norm"),
    ],
)
def test_hostile_safetensors_tables(rewrite, change, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(rewrite(change))


@pytest.mark.parametrize(
    "arguments",
    [
        {"claimed": 1 << 63},
        {"claimed": 100_000_001},
        {"claimed": 0},
        {"raw": b"[]"},
        {"raw": b"{"},
        {"raw": b'{"a": 1, "a": 2}'},
        {"raw": b"\xff" * 10},
        {"raw": b"[" * 100_000},
        {"body": b""},
    ],
)
def test_hostile_safetensors_headers(rewrite, arguments):
    with pytest.raises(CheckpointError):
        open_checkpoint(rewrite(**arguments))


@pytest.mark.parametrize(
    "shard",
    ["../m.safetensors", "/etc/m.safetensors", "a/b.safetensors", "a\\b.safetensors", "m.bin", 5,
     ".safetensors", "a\0.safetensors", ""],
)  # fmt: skip
def test_shard_names_stay_in_the_folder(tmp_path, folder, shard):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    index = {"weight_map": {NORM: shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"plain \.safetensors file name"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", ['{"weight_map": {}}', '{"weight_map": 1}', "{}", "[]", "nope"])
def test_damaged_index(tmp_path, folder, index):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(tmp_path)


def test_index_that_names_what_a_shard_lacks(tmp_path):
    folder = tiny_checkpoint("llama", tmp_path / "m", max_shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.x"] = index["weight_map"][NORM]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="does not hold"):
        open_checkpoint(folder)


@FUZZ
@given(st.integers(0, 6000), st.binary(min_size=1, max_size=8))
def test_patched_safetensors(tmp_path, folder, at, patch):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:at] + patch + data[at + len(patch) :])
    tolerant(tmp_path)


def test_a_pipe_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "m.gguf")
