"""The control plane's section: keys and where they come from, addresses, nodes with nothing."""

import pytest

from blitzgw.config import ModelConfig
from blitzgw.configfile.cluster import join_address, split_address
from blitzgw.configfile.load import Option, load
from blitzgw.errors import ConfigError

KEY, OTHER, THIRD = "k" * 32, "o" * 40, "t" * 64


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("BLITZGW_CLUSTER_KEY", raising=False)


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path."""

    def write_text(text):
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write_text


@pytest.fixture
def keyed(write, tmp_path):
    """Write a configuration file with a key file."""

    def write_both(cluster="", keys=KEY, top=""):
        secret = tmp_path / "cluster.key"
        secret.write_text(keys)
        secret.chmod(0o600)
        return write(f'{top}\n[cluster]\nkey_file = "cluster.key"\n{cluster}')

    return write_both


def problems(path, *options):
    with pytest.raises(ConfigError) as caught:
        load(path, options)
    return caught.value.problems


# -- keys ------------------------------------------------------------------------------------------


def test_without_a_key_a_node_is_a_cluster_of_one():
    assert load().cluster_keys == ()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (KEY, (KEY,)),
        (f"# new\n{KEY}\r\n\n # old\n  {OTHER}  \n", (KEY, OTHER)),
        (f"{KEY}\n{KEY}\n{OTHER}\n", (KEY, OTHER)),
        ("!~,#" * 8, ("!~,#" * 8,)),
    ],
)
def test_keys_come_from_the_key_file(keyed, text, keys):
    config = load(keyed(keys=text))
    assert config.cluster_keys == keys
    assert config.warnings == ()
    assert KEY not in repr(config)


@pytest.mark.parametrize(
    "text",
    ["", "# none\n", "k" * 31, f"{KEY}\nshort\n", f"{KEY}\n{OTHER}\n{THIRD}\n", "k" * 31 + "é",
     "k" * 16 + " " + "k" * 16, "k" * 31 + "\0"],
)  # fmt: skip
def test_a_key_file_without_proper_keys_is_one_mistake_that_shows_none(keyed, tmp_path, text):
    path = keyed('host = "0.0.0.0"\njoin = ["a:1"]', keys=text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: cluster.key_file: {tmp_path / 'cluster.key'} does not hold")
    assert "openssl rand -hex 32 > cluster.key; chmod 600 cluster.key" in problem
    assert "kkk" not in problem
    assert "short" not in problem


def test_a_key_file_that_cannot_be_read_is_one_mistake(write, tmp_path):
    path = write('[cluster]\nkey_file = "nope"\njoin = ["a:1"]')
    [problem] = problems(path)
    assert problem.startswith(f"{path}: cluster.key_file: {tmp_path / 'nope'} cannot be read (No s")
    assert "openssl rand" in problem
    [problem] = problems(None, Option("--cluster-key-file", "cluster.key_file", "/nope"))
    assert problem.startswith("--cluster-key-file: /nope cannot be read")


def test_a_key_file_that_others_can_read_is_warned_of(keyed, tmp_path):
    path = keyed()
    (tmp_path / "cluster.key").chmod(0o640)
    [warning] = load(path).warnings
    assert warning == f"{tmp_path / 'cluster.key'} can be read by others: chmod 600 it"


@pytest.mark.parametrize(
    ("value", "keys"),
    [(KEY, (KEY,)), (f"{KEY},{OTHER}", (KEY, OTHER)), (f" {KEY} , {OTHER} ", (KEY, OTHER))],
)
def test_keys_come_from_the_environment(monkeypatch, value, keys):
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", value)
    config = load()
    assert config.cluster_keys == keys
    assert config.warnings == ()


@pytest.mark.parametrize("value", ["short", f"{KEY},", f"{KEY},{OTHER},{THIRD}", f"{KEY} {OTHER}"])
def test_a_bad_key_in_the_environment_is_told_without_it(monkeypatch, write, value):
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", value)
    [problem] = problems(write('[cluster]\njoin=["a:1"]'))
    assert problem.startswith("$BLITZGW_CLUSTER_KEY: does not hold one or two")
    assert "kkk" not in problem
    assert "short" not in problem


def test_the_environment_goes_before_the_file_and_an_option_before_both(
    monkeypatch, keyed, tmp_path
):
    path = keyed()
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", OTHER)
    config = load(path)
    assert config.cluster_keys == (OTHER,)
    assert config.warnings == (
        "$BLITZGW_CLUSTER_KEY is set: it replaces the keys of cluster.key_file",
    )
    option = Option("--cluster-key-file", "cluster.key_file", str(tmp_path / "cluster.key"))
    config = load(path, [option])
    assert (config.cluster_keys, config.warnings) == ((KEY,), ())
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", "")
    assert load(path).cluster_keys == (KEY,)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('join = ["10.0.0.1:7946"]', "cluster.join"),
        ('host = "0.0.0.0"', "cluster.host"),
        ('host = "::"', "cluster.host"),
        ('host = "192.0.2.1"', "cluster.host"),
        ('host = "inner.example.net"', "cluster.host"),
    ],
)
def test_what_others_can_reach_needs_a_key(write, keyed, text, key):
    path = write(f"[cluster]\n{text}")
    [problem] = problems(path)
    assert problem.startswith(f"{path}: {key}: ")
    assert "openssl rand -hex 32 > cluster.key; chmod 600 cluster.key" in problem
    assert "$BLITZGW_CLUSTER_KEY" in problem
    assert load(keyed(text)).cluster_keys == (KEY,)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(write, host):
    assert load(write(f'[cluster]\nhost = "{host}"\nport = 7946')).cluster_keys == ()


def test_all_mistakes_of_the_section_are_told_at_once(write):
    path = write("""
        [cluster]
        host = "0.0.0.0"
        port = 70000
        advertise = "::"
        join = ["a", "b:0", "10.0.0.1:1", "0.0.0.0:1"]
        probe_interval_s = 0
    """)
    found = [problem.split(": ")[1] for problem in problems(path)]
    assert found == [
        "cluster.port",
        "cluster.probe_interval_s",
        "cluster.advertise",
        "cluster.join[1]",
        "cluster.join[3]",
        "cluster.join",
        "cluster.host",
    ]


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("a", "a", None),
        ("a:1", "a", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("10.0.0.1", "10.0.0.1", None),
        ("node-1.example.net.:80", "node-1.example.net.", 80),
        ("::1", "::1", None),
        ("[::1]", "::1", None),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
    ],
)
def test_addresses_of_nodes(written, host, port):
    assert split_address(written) == (host, port)
    if port is not None:
        assert join_address(host, port) == written


@pytest.mark.parametrize(
    "written",
    ["", ":", ":80", "a:", "a:0", "a:65536", "a:x", "a:٣", "a:b:1", "[::1", "::1]", "[::1]:", "[]",
     "[a]:1", "[10.0.0.1]:1", "[::1]:0", "http://a:1", "a b", "a/b", "-a", "10.0.0.256", "1",
     "a..b", "[::1]:1:1", "a:000001", "x" * 64],
)  # fmt: skip
def test_what_is_no_address(written):
    with pytest.raises(ValueError, match="is no"):
        split_address(written)


def test_join_becomes_hosts_with_ports(keyed):
    text = 'host = "10.0.0.1"\nport = 7946\njoin = ["a", "a:7946", "b:1", "::1", "[::1]:2"]'
    assert load(keyed(text)).cluster.join == ("a:7946", "b:1", "[::1]:7946", "[::1]:2")


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ('join = ["a"]', "cluster.join[0]", "add :PORT"),
        ('join = ["a:99999"]', "cluster.join[0]", "[IPv6]:PORT"),
        ('join = ["b:1", "[::]:1"]', "cluster.join[1]", "the address of a node"),
        ('join = "a:1"', "cluster.join", "a list"),
        ('advertise = "0.0.0.0"', "cluster.advertise", "leave it empty"),
        ('advertise = "::"', "cluster.advertise", "leave it empty"),
        ('advertise = "a:1"', "cluster.advertise", "without a port"),
        ('advertise = "[::1]"', "cluster.advertise", "without a port"),
        ('host = "10.0.0.1:80"', "cluster.host", "without a port"),
        ('host = ""', "cluster.host", "a name"),
        ("probe_interval_s = 0.001", "cluster.probe_interval_s", "0.01 to 60"),
    ],
)
def test_one_mistake_is_one_problem(keyed, text, key, remedy):
    path = keyed(text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: {key}: ")
    assert remedy in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_needs_no_address_to_advertise(keyed, host):
    cluster = load(keyed(f'host = "{host}"')).cluster
    assert (cluster.host, cluster.advertise) == (host, "")


def test_joining_from_loopback_is_warned_of(keyed):
    [warning] = load(keyed('join = ["127.0.0.1:1", "10.0.0.1:1", "b:1"]')).warnings
    assert "cluster.join names 10.0.0.1:1, but cluster.host is 127.0.0.1" in warning
    assert load(keyed('join = ["127.0.0.1:1", "[::1]:1", "localhost:1"]')).warnings == ()
    assert load(keyed('host = "10.0.0.2"\njoin = ["10.0.0.1:1"]')).warnings == ()


# -- nodes with nothing ----------------------------------------------------------------------------


def test_an_empty_array_is_none_and_one_left_out_is_the_default(keyed):
    config = load(keyed(top="devices = []\nmodels = []"))
    assert (config.devices, config.models, config.warnings) == ((), (), ())
    config = load(keyed(top="devices = []"))
    assert config.models == (ModelConfig("smollm2-135m"),)
    config = load(keyed('join = ["127.0.0.1:1"]', top="models = []"))
    assert [device.id for device in config.devices] == ["cpu0"]
    config = load(keyed('join = ["127.0.0.1:1"]'))
    assert (len(config.devices), len(config.models)) == (1, 1)


@pytest.mark.parametrize("name", ["models", "devices"])
def test_a_node_with_nothing_and_without_a_cluster_is_warned_of(write, name):
    [warning] = load(write(f"{name} = []")).warnings
    assert warning.startswith(f"there are no {name}, and no cluster key")


def test_a_model_cannot_name_a_device_that_is_not_there(keyed):
    [problem] = problems(keyed('[[models]]\ndevices = ["cpu0"]', top="devices = []"))
    assert 'models[0].devices[0]: there is no device "cpu0"' in problem


def test_an_option_puts_a_model_or_a_device_where_there_was_none(keyed):
    path = keyed(top="devices = []\nmodels = []")
    options = [
        Option("MODEL", "models", [{"path": "m"}]),
        Option("--device", "devices", [{"kind": "paced"}]),
        Option("--dtype", "models[0].dtype", "fp32"),
    ]
    config = load(path, options)
    assert [(m.path, m.dtype, m.devices) for m in config.models] == [("m", "float32", ("paced0",))]
    [problem] = problems(path, options[2])
    assert problem.startswith("--dtype: is for a single model")
