"""Manifests: the same for any files of the same weights, kept, and never believed blindly."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace

import pytest

from blitzgw.cli.main import main
from blitzgw.config import Config, ModelConfig
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.placement import load_models
from blitzgw.weights import cache, manifest
from blitzgw.weights.digests import blob_digest
from blitzgw.weights.info import open_checkpoint, resolve_model
from blitzgw.weights.loader import load_blobs
from blitzgw.weights.manifest import (
    UNUSED_S,
    check_manifest,
    compute_manifest,
    kept_manifest,
    manifest_of,
)
from tests.support.checkpoints import tiny_checkpoint
from tests.support.ggufs import tiny_gguf

F32, BF16 = Dtype.FLOAT32, Dtype.BFLOAT16


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("manifest") / "m")


@pytest.fixture
def folder(original, tmp_path, own_cache):
    """A copy that a test may spoil, and a cache folder of its own."""
    return shutil.copytree(original, tmp_path / "m")


def opened(path, use):
    checkpoint = open_checkpoint(path)
    try:
        return use(checkpoint)
    finally:
        checkpoint.close()


def of(path, dtype=F32, progress=None):
    return opened(path, lambda checkpoint: manifest_of(checkpoint, dtype, progress))


def never(*_):
    raise AssertionError("it should have been kept")


def test_it_holds_the_digests_of_the_blobs_as_they_are_loaded(original):
    checkpoint = open_checkpoint(original)
    layouts = blob_layouts(checkpoint.shape, BF16)
    buffers = [bytearray(b"\xee" * layout.size_bytes) for layout in layouts]
    load_blobs(checkpoint, layouts, BF16, lambda i: memoryview(buffers[i]), lambda i: None)
    found = compute_manifest(checkpoint, BF16)
    checkpoint.close()
    assert found.blobs == tuple(map(blob_digest, buffers))
    assert (found.shape, found.dtype) == (checkpoint.shape, BF16)
    check_manifest(found)


def test_the_files_do_not_matter(original, tmp_path):
    sharded = tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    assert len([*sharded.glob("*.safetensors")]) > 2
    gguf = tiny_gguf("llama", original, tmp_path / "m.gguf")
    roots, blobs = set(), set()
    for path in (original, sharded, gguf):
        for threads in (1, 3):
            found = opened(path, lambda it, n=threads: compute_manifest(it, F32, threads=n))
            blobs.add(found.blobs)
            if path is not gguf:
                roots.add(found.root())
    assert len(blobs) == 1
    assert len(roots) == 1


def test_other_weights_types_and_shapes_have_other_roots(original, tmp_path):
    other = tiny_checkpoint("llama", tmp_path / "other", seed=1)
    first, second = (
        opened(path, lambda it: compute_manifest(it, F32)) for path in (original, other)
    )
    half = opened(original, lambda it: compute_manifest(it, BF16))
    rope = replace(first, shape=replace(first.shape, norm_eps=1e-6))
    assert len({m.root() for m in (first, second, half, rope)}) == 4


def test_memory_is_bounded_by_a_few_blobs(tmp_path, monkeypatch):
    folder = tiny_checkpoint("llama", tmp_path / "deep", num_hidden_layers=24)
    sizes = []
    monkeypatch.setattr(
        manifest, "_memory", lambda n: (sizes.append(n), memoryview(bytearray(n)))[1]
    )
    found = opened(folder, lambda it: compute_manifest(it, F32, threads=2))
    assert len(found.blobs) == 26
    assert len(sizes) <= 3 + 2  # layers share three, and each end has its own


def test_progress_is_told_in_bytes(folder):
    seen = []
    found = of(folder, progress=lambda *facts: seen.append(facts))
    total = sum(blob.size_bytes for blob in found.blobs)
    assert seen[-1] == ("digesting", total, total)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_it_is_computed_once_for_each_type(folder, monkeypatch):
    first, half = of(folder), of(folder, BF16)
    assert first.root() != half.root()
    monkeypatch.setattr(manifest, "compute_manifest", never)
    assert (of(folder), of(folder, BF16)) == (first, half)
    resolved = resolve_model("m", folder, None, None)
    assert resolved.manifest == first
    assert resolved.spec.weights == first.root()
    assert resolve_model("m", folder, BF16, None).spec.weights == half.root()


def flip(folder):
    """Change one bit of the weights in place."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    return path


def test_a_file_that_is_written_to_is_read_again(folder):
    before = of(folder)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    path = flip(folder)
    os.utime(path, ns=(stamp, stamp + 1))
    after = of(folder)
    assert after.root() != before.root()
    assert len(set(after.blobs) - set(before.blobs)) == 1
    assert of(folder) == after


def test_a_file_that_replaces_another_is_read_again(folder, tmp_path):
    before = of(folder)
    path = folder / "model.safetensors"
    facts = path.stat()
    shutil.copy(path, tmp_path / "model.safetensors")
    os.replace(flip(tmp_path), path)
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    assert of(folder).root() != before.root()


def test_a_file_that_changes_meanwhile_is_refused(folder, own_cache):
    def progress(what, done, total):
        os.utime(folder / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match="changed while it was read"):
        of(folder, progress=progress)
    assert not [*own_cache.glob("manifests/*.json")]


def kept_file(own_cache):
    [path] = own_cache.glob("manifests/*.json")
    return path


def edit(change):
    def spoil(path):
        kept = json.loads(path.read_text())
        change(kept)
        path.write_text(json.dumps(kept))

    return spoil


def set_blob(index, field, value):
    def change(kept):
        kept["blobs"][index][field] = value

    return edit(change)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[]"),
        lambda path: path.write_bytes(b"\xff\x00"),
        edit(lambda kept: kept["blobs"].pop()),
        edit(lambda kept: kept["blobs"].append(kept["blobs"][-1])),
        edit(lambda kept: kept["blobs"].reverse()),
        edit(lambda kept: kept.update(blobs=None)),
        edit(lambda kept: kept.update(blobs=[[1]])),
        edit(lambda kept: kept.update(blobs=[])),
        edit(lambda kept: kept.update(root="0" * 64)),
        edit(lambda kept: kept.pop("root")),
        edit(lambda kept: kept.pop("facts")),
        set_blob(1, 0, 64),
        set_blob(1, 0, "64"),
        set_blob(1, 1, "00" * 31),
        set_blob(1, 1, "zz" * 32),
        set_blob(1, 1, "00" * 32),
        set_blob(1, 2, -1),
        set_blob(1, 2, 1 << 64),
        set_blob(1, 2, 1.5),
        set_blob(1, 2, 7),
        set_blob(1, 2, None),
    ],
)
def test_what_is_damaged_is_computed_anew_and_mended(folder, own_cache, spoil, monkeypatch):
    before = of(folder)
    spoil(kept_file(own_cache))
    assert opened(folder, lambda it: kept_manifest(it, F32)) is None
    assert of(folder) == before
    monkeypatch.setattr(manifest, "compute_manifest", never)
    assert of(folder) == before


def test_a_kept_manifest_serves_its_own_files_only(folder, own_cache, tmp_path):
    of(folder)
    other = tiny_checkpoint("llama", tmp_path / "other", seed=1)
    path = opened(other, lambda it: manifest._path(manifest._facts(it, F32)))
    shutil.copy(kept_file(own_cache), path)
    assert of(other) == opened(other, lambda it: compute_manifest(it, F32))


@pytest.mark.parametrize("block", ["root", "folder", "entry"])
def test_a_cache_that_cannot_be_used_is_only_logged(folder, own_cache, caplog, block):
    place = own_cache / "manifests"
    if block == "entry":
        path = opened(folder, lambda it: manifest._path(manifest._facts(it, F32)))
        path.mkdir(parents=True)
    else:
        blocked = own_cache if block == "root" else place
        blocked.parent.mkdir(exist_ok=True)
        blocked.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert of(folder) == opened(folder, lambda it: compute_manifest(it, F32))
    assert "manifest_not_kept" in caplog.text


def test_a_full_disk_is_only_logged(folder, caplog, monkeypatch, own_cache):
    def write_whole(path, write):
        with open("/dev/full", "wb", buffering=0) as full:
            write(full)

    monkeypatch.setattr(manifest, "write_whole", write_whole)
    assert len(of(folder).blobs) == 5
    assert "manifest_not_kept" in caplog.text
    assert not [*own_cache.glob("manifests/*.json")]


def test_a_checkpoint_that_cannot_be_read_is_an_error(folder):
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    try:
        with pytest.raises(CheckpointError, match="bytes short"):
            manifest_of(checkpoint, F32)
    finally:
        checkpoint.close()


def test_what_is_not_used_makes_room(folder, own_cache, tmp_path):
    of(folder)
    old = kept_file(own_cache)
    stamp = old.stat().st_mtime - UNUSED_S - 10
    os.utime(old, (stamp, stamp))
    of(folder)
    of(folder, BF16)
    assert old.exists()  # it has been used
    os.utime(old, (stamp, stamp))
    of(tiny_checkpoint("llama", tmp_path / "third", seed=2))
    assert not old.exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: replace(m, layout=2), "layout 2"),
        (lambda m: replace(m, blobs=m.blobs[:-1]), "4 blobs"),
        (lambda m: replace(m, blobs=(*m.blobs, m.blobs[0])), "6 blobs"),
        (lambda m: replace(m, blobs=m.blobs[::-1]), "bytes"),
        (lambda m: replace(m, blobs=(replace(m.blobs[0], lanes=1 << 64), *m.blobs[1:])), "none"),
        (lambda m: replace(m, blobs=(replace(m.blobs[0], blake3=b""), *m.blobs[1:])), "none"),
    ],
)
def test_a_manifest_must_fit_its_shape(original, change, why):
    found = opened(original, lambda it: compute_manifest(it, F32))
    with pytest.raises(ValueError, match=why):
        check_manifest(change(found))


def configured(folder, digest):
    return Config(models=(ModelConfig("m", path=str(folder), devices=("cpu0",), digest=digest),))


def test_a_pin_must_be_the_root(folder):
    root = of(folder).root()
    [model] = load_models(configured(folder, root))
    assert model.spec.weights == model.manifest.root() == root
    assert model.manifest.blobs
    flip(folder)
    with pytest.raises(CheckpointError, match="digest") as error:
        load_models(configured(folder, root))
    assert root in str(error.value)
    assert of(folder).root() in str(error.value)
    assert of(folder).root() != root
    load_models(configured(folder, ""))


def test_models_are_listed_with_their_digests(folder, capsys, own_cache):
    cache.add_model(folder)
    root = of(folder).root()
    assert main(["models", "list"]) == 0
    assert f"m     {root[:12]}  {folder}" in capsys.readouterr().out
    for what, expected in (("kept", root), ("changed", None), ("gone", None)):
        if what == "changed":
            flip(folder)
        if what == "gone":
            shutil.rmtree(folder)
        assert main(["models", "list", "--format", "json"]) == 0
        [facts] = json.loads(capsys.readouterr().out)
        assert facts == {"name": "m", "digest": expected, "path": str(folder)}
