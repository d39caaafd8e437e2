"""The data plane's section: addresses, networks and their rates, and what needs a key."""

import pytest

from blitzgw.config import NetworkEntry, parse_rate
from blitzgw.configfile.load import load
from blitzgw.errors import ConfigError

KEY = "k" * 32


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a configuration file with a [transfer] section and return its path."""
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", KEY)

    def write_text(transfer, rest=""):
        path = tmp_path / "node.toml"
        path.write_text(f"[transfer]\n{transfer}\n{rest}")
        return path

    return write_text


def problems(path):
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


def test_workers_listen_where_the_node_does_unless_told_otherwise(write):
    cluster = '[cluster]\nhost = "10.0.0.5"'
    assert load(write("", cluster)).transfer.host == "10.0.0.5"
    assert load(write('host = "10.1.0.5"', cluster)).transfer.host == "10.1.0.5"
    assert load(write("")).transfer.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("written", "bytes_per_s"),
    [
        ("400Mbit", 50e6),
        ("10 Gbit/s", 1.25e9),
        ("1.5GB/s", 1.5e9),
        ("8kbit", 1000.0),
        ("100gbit", 12.5e9),
        (12.5, 12.5),
        (7, 7),
    ],
)
def test_a_rate_is_bytes_per_second_or_text_with_a_unit(write, written, bytes_per_s):
    assert parse_rate(written) == bytes_per_s
    value = f'"{written}"' if isinstance(written, str) else written
    entry = f'{{ name = "fast", host = "10.1.0.1", rate = {value} }}'
    transfer = load(write(f"rate = {value}\nnetworks = [{entry}]")).transfer
    assert transfer.rate == bytes_per_s
    assert transfer.networks == (NetworkEntry("fast", "10.1.0.1", bytes_per_s),)


def test_networks_may_be_written_as_tables_too(write):
    text = '[[transfer.networks]]\nname = "a"\nhost = "::1"\n[[transfer.networks]]\nname = "b"\n'
    transfer = load(write("zone = 'r1'", f'{text}host = "10.0.0.1"')).transfer
    assert transfer.networks == (NetworkEntry("a", "::1"), NetworkEntry("b", "10.0.0.1"))
    assert transfer.zone == "r1"


@pytest.mark.parametrize(
    ("text", "key", "right"),
    [
        ('host = "a b"', "host", "give a host name or an IP address, without a port"),
        ('host = "10.0.0.1:80"', "host", "without a port"),
        ('host = "10.0.0.256"', "host", "without a port"),
        ('rate = "fast"', "rate", '"10Gbit"'),
        ('rate = "10Gib"', "rate", '"10Gbit"'),
        ("rate = -1", "rate", '"10Gbit"'),
        ("rate = inf", "rate", '"10Gbit"'),
        ('max_weight_rate = "1 furlong"', "max_weight_rate", '"10Gbit"'),
        ('zone = "a b"', "zone", "letters, digits"),
        ("networks = 3", "networks", "a list such as"),
        ('networks = "fast"', "networks", "a list such as"),
        ("networks = [3]", "networks[0]", "write it as { … }"),
        ('networks = [{ host = "10.0.0.1" }]', "networks[0].name", "is missing; it is to be"),
        ('networks = [{ name = "a" }]', "networks[0].host", "is missing; it is to be a name"),
        ('networks = [{ name = "", host = "a" }]', "networks[0].name", "is empty; give the name"),
        ('networks = [{ name = "a b", host = "a" }]', "networks[0].name", "letters, digits"),
        ('networks = [{ name = "a", host = "" }]', "networks[0].host", "a name"),
        ('networks = [{ name = "a", host = "x:1" }]', "networks[0].host", "without a port"),
        ('networks = [{ name = "a", host = "0.0.0.0" }]', "networks[0].host", "on that network"),
        ('networks = [{ name = "a", host = "b", rate = "x" }]', "networks[0].rate", '"10Gbit"'),
        ('networks = [{ name = "a", host = "b", mtu = 9 }]', "networks[0].mtu", "known here: host"),
        ('networks = [{ name = "a", host = "b" }, { name = "a", host = "c" }]',
         "networks[1].name", '"a" is already transfer.networks[0].name'),
        ('networks = [{ name = "a", host = "::1" }, { name = "b", host = "0::1" }]',
         "networks[1].host", "is already transfer.networks[0].host"),
        ('host = "10.0.0.1"\nnetworks = [{ name = "a", host = "10.0.0.1" }]',
         "networks[0].host", "is already transfer.host"),
        ('networks = [{ name = "a", host = "127.0.0.1" }]', "networks[0].host",
         "is already transfer.host; give each network an address of its own"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_key_and_what_is_right(write, text, key, right):
    path = write(text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: transfer.{key}: ")
    assert right in problem


def test_all_mistakes_are_told_at_once(write):
    path = write('host = "a b"\nnetworks = [{ name = "", host = "x y" }, { name = "b" }]')
    keys = {problem.split(": ")[1] for problem in problems(path)}
    assert keys == {f"transfer.{key}" for key in ("host", "networks[0].name", "networks[0].host",
                                                  "networks[1].host")}  # fmt: skip


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "::", "gw.example.com"])
def test_workers_off_loopback_need_a_key(write, monkeypatch, host):
    path = write(f'host = "{host}"')
    assert load(path).transfer.host == host
    monkeypatch.delenv("BLITZGW_CLUSTER_KEY")
    [problem] = problems(path)
    assert problem.startswith(f"{path}: transfer.host: {host} can be reached by others")
    assert "openssl rand" in problem


def test_networks_off_loopback_need_a_key_too(write, monkeypatch):
    monkeypatch.delenv("BLITZGW_CLUSTER_KEY")
    path = write(
        'networks = [{ name = "a", host = "127.0.0.2" }, { name = "b", host = "10.0.0.1" }]'
    )
    [problem] = problems(path)
    assert problem.startswith(f"{path}: transfer.networks[1].host: 10.0.0.1 can be reached")
    assert load(write('networks = [{ name = "a", host = "127.0.0.2" }]')).transfer.networks


def test_an_exposed_node_without_a_key_is_told_so_once(write, monkeypatch):
    monkeypatch.delenv("BLITZGW_CLUSTER_KEY")
    [problem] = problems(write("", '[cluster]\nhost = "10.0.0.5"'))
    assert "cluster.host" in problem


def test_a_key_file_that_cannot_be_read_is_the_only_mistake(write, monkeypatch):
    monkeypatch.delenv("BLITZGW_CLUSTER_KEY")
    [problem] = problems(write('host = "10.0.0.1"', '[cluster]\nkey_file = "nope"'))
    assert "cluster.key_file" in problem


def test_the_folder_of_copies_counts_from_the_file_and_is_no_file(write, tmp_path):
    assert load(write('copies_dir = "shm"')).transfer.copies_dir == str(tmp_path / "shm")
    assert load(write("")).transfer.copies_dir == ""
    (tmp_path / "shm").write_text("")
    [problem] = problems(write('copies_dir = "shm"'))
    assert "transfer.copies_dir" in problem
    assert "is no folder" in problem
