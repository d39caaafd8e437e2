"""The admin key's file: made once, whoever comes first, and readable by its owner alone."""

import os
import stat
import subprocess
import sys

import pytest

from blitzgw.configfile.adminkey import ensure_admin_keys, load_admin_keys
from blitzgw.configfile.load import load
from blitzgw.errors import ConfigError

KEY, OTHER = "k" * 32, "o" * 64


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def configured(tmp_path, text=""):
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_it_is_in_the_cache_folder_unless_told_otherwise(tmp_path, cache):
    assert load().http.admin_key_file == str(cache / "admin.key")
    own = configured(tmp_path, f'[node]\ncache_dir = "{tmp_path}/own"')
    assert load(own).http.admin_key_file == str(tmp_path / "own/admin.key")
    named = configured(tmp_path, '[http]\nadmin_key_file = "keys/admin"')
    assert load(named).http.admin_key_file == str(tmp_path / "keys/admin")


def test_reading_a_configuration_makes_no_file(cache):
    assert load().warnings == ()
    assert not cache.exists()


def test_it_is_made_once_for_its_owner_alone(cache):
    path = cache / "admin.key"
    before = os.umask(0)
    try:
        [key] = ensure_admin_keys(path)
    finally:
        os.umask(before)
    assert len(key) == 64
    assert int(key, 16) >= 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_admin_keys(path) == (key,) == load_admin_keys(path)
    assert os.listdir(cache) == ["admin.key"]
    assert load().warnings == ()


def test_nodes_that_start_together_get_the_same_key(tmp_path):
    path = tmp_path / "cache/admin.key"
    code = (
        "import sys, pathlib; from blitzgw.configfile.adminkey import ensure_admin_keys;"
        "sys.stdin.readline(); print(ensure_admin_keys(pathlib.Path(sys.argv[1]))[0])"
    )
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for node in nodes:
        node.stdin.write("\n")
        node.stdin.flush()
    keys = {node.communicate(timeout=60)[0].strip() for node in nodes}
    assert keys == {path.read_text().strip()}
    assert os.listdir(path.parent) == ["admin.key"]


def test_one_who_comes_second_takes_the_key_of_the_first(tmp_path, monkeypatch):
    path = tmp_path / "admin.key"
    path.write_text(f"{KEY}\n")
    monkeypatch.setattr(type(path), "exists", lambda self: False)  # it was not there a moment ago
    assert ensure_admin_keys(path) == (KEY,)
    assert os.listdir(tmp_path) == ["admin.key"]


def test_a_file_by_hand_may_have_comments_and_two_keys(tmp_path, cache):
    cache.mkdir()
    path = cache / "admin.key"
    path.write_text(f"# new\n {KEY}\r\n\n#old\n{OTHER}")
    path.chmod(0o600)
    assert load_admin_keys(path) == (KEY, OTHER)
    assert load().warnings == ()


def test_a_file_that_others_can_read_is_warned_of(cache):
    cache.mkdir()
    (cache / "admin.key").write_text(KEY)
    (cache / "admin.key").chmod(0o640)
    assert load().warnings == (f"{cache / 'admin.key'} can be read by others: chmod 600 it",)


@pytest.mark.parametrize(
    "text", ["", "# none", "short", "k" * 31, f"{KEY}\n{OTHER}\n{'z' * 32}", "kk " * 20, "é" * 40]
)
def test_a_file_without_proper_keys_is_a_mistake_that_shows_none(cache, text):
    cache.mkdir()
    path = cache / "admin.key"
    path.write_text(text)
    path.chmod(0o600)
    for read in (load, lambda: load_admin_keys(path), lambda: ensure_admin_keys(path)):
        with pytest.raises(ConfigError) as caught:
            read()
        [problem] = caught.value.problems
        assert f"{path} does not hold one or two keys" in problem
        assert "remove it" in problem
        assert "kkk" not in problem
        assert "short" not in problem


def test_a_file_that_cannot_be_read_is_a_mistake(cache):
    (cache / "admin.key").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"http\.admin_key_file: .* cannot be read \(Is a dir"):
        load()
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); make one: openssl"):
        ensure_admin_keys(cache / "admin.key")


def test_a_file_that_cannot_be_made_is_told_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made .*make it yourself: openssl rand"):
        ensure_admin_keys(tmp_path / "file/admin.key")
