"""Building the kernels: with whatever compiler there is, or none, by several processes at once."""

from __future__ import annotations

import os
import threading

import pytest

from blitzgw.engine.native import build

uncached = build.library.__wrapped__


@pytest.fixture(autouse=True)
def able(monkeypatch, tmp_path):
    """A machine whose CPU has all that is needed, and an empty cache."""
    monkeypatch.setattr(build, "cpu_flags", lambda: build.NEEDED_FLAGS)
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BLITZGW_NATIVE", raising=False)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that is a shell script: `compiler(body)` makes it $CXX, with an argument."""

    def make(body):
        script = tmp_path / "c++"
        script.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/runs\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", f"{script} -g0")
        return tmp_path / "runs"

    return make


WRITES = """
[ "$1" = -g0 ] || exit 9
while [ $# -gt 1 ]; do shift; done  # the last argument is the file
sleep 0.05; echo made > "$1"
"""


def test_without_a_compiler_torch_serves_and_the_log_says_what_to_do(monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert uncached() is None
    assert "no C++ compiler: install g++, or set CXX" in caplog.text


def test_a_compiler_that_fails_is_quoted(compiler, caplog):
    compiler("echo 'error: unrecognized -mavx512bf16' >&2; echo more >&2; exit 3")
    assert uncached() is None
    assert "ended with 3 and said error: unrecognized -mavx512bf16" in caplog.text
    assert not any(build.cache_dir().rglob("*.so"))


def test_a_compiler_that_is_not_there_is_named(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert uncached() is None
    assert "/nowhere/c++" in caplog.text


def test_what_no_machine_can_load_is_left(compiler, caplog):
    compiler(WRITES)
    assert uncached() is None
    assert "reason=build_failed" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(compiler, monkeypatch, tmp_path, caplog):
    compiler(WRITES)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "file"))
    assert uncached() is None
    assert str(tmp_path / "file") in caplog.text


def test_it_is_compiled_once_and_anew_for_other_sources(compiler, monkeypatch, tmp_path):
    runs = compiler(WRITES)
    first = build.build("avx512")
    assert build.build("avx512") == first
    assert len(runs.read_text().splitlines()) == 1
    source = tmp_path / "source"
    source.mkdir()
    for file in build.SOURCE.glob("*.[hc]*"):
        (source / file.name).write_bytes(file.read_bytes())
    (source / "simd.h").write_text("// another version")
    monkeypatch.setattr(build, "SOURCE", source)
    assert build.build("avx512") != first


def test_several_may_build_at_once(compiler):
    compiler(WRITES)
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(build.build("avx512"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 4
    assert {path.read_text() for path in made} == {"made\n"}
    assert os.listdir(made[0].parent) == [made[0].name]


@pytest.mark.parametrize("missing", sorted(build.NEEDED_FLAGS))
def test_a_cpu_that_lacks_something_compiles_nothing(compiler, monkeypatch, missing):
    runs = compiler(WRITES)
    monkeypatch.setattr(build, "cpu_flags", lambda: build.NEEDED_FLAGS - {missing})
    assert uncached() is None
    assert not runs.exists()


def test_it_can_be_switched_off(compiler, monkeypatch):
    runs = compiler(WRITES)
    monkeypatch.setenv("BLITZGW_NATIVE", "0")
    assert uncached() is None
    assert not runs.exists()


@pytest.mark.parametrize(
    ("chosen", "flags", "units"),
    [
        ("", build.UNITS["amx"], ["amx", "avx512"]),
        ("1", build.UNITS["amx"], ["amx", "avx512"]),
        ("avx512", build.UNITS["amx"], ["avx512"]),
        ("", build.UNITS["avx512"], ["avx512"]),
        ("amx", build.UNITS["avx512"], []),
    ],
)
def test_the_best_unit_is_tried_first_and_what_fails_leaves_the_next(
    compiler, monkeypatch, chosen, flags, units
):
    runs = compiler(
        'case "$*" in *-mamx-tile*) echo amx;; *) echo avx512;; esac >> "$0.units"; exit 3'
    )
    monkeypatch.setattr(build, "cpu_flags", lambda: flags)
    monkeypatch.setenv("BLITZGW_NATIVE", chosen)
    assert uncached() is None
    tried = runs.with_name("c++.units")
    assert (tried.read_text().split() if tried.exists() else []) == units
