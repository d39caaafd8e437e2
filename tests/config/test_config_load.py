"""Whole files: all mistakes at once, what follows from the machine, options, warnings."""

import pytest

from blitzgw.config import Config, HttpConfig
from blitzgw.configfile.load import Option, load
from blitzgw.core.instance import DeviceKind, DeviceSpec, PacedCost
from blitzgw.core.model import Dtype
from blitzgw.core.view import ScaleTerms
from blitzgw.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path."""

    def write_text(text):
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write_text


def problems(path, *options):
    with pytest.raises(ConfigError) as caught:
        load(path, options)
    return caught.value.problems


def test_no_file_is_one_small_model_on_this_machine(monkeypatch):
    monkeypatch.setenv("BLITZGW_CACHE", "/some/where")
    config = load()
    assert config.node.name
    assert config.node.cache_dir == "/some/where"
    assert config.http.host == "127.0.0.1"
    assert config.devices == (DeviceSpec("cpu0", DeviceKind.CPU),)
    [model] = config.models
    assert (model.name, model.path, model.devices) == ("smollm2-135m", "smollm2-135m", ("cpu0",))
    assert config.warnings == ()
    assert config.http.admin_key_file == "/some/where/admin.key"
    assert (config.http, config.cluster, config.devices, config.models) == (
        HttpConfig(admin_key_file="/some/where/admin.key"),
        Config().cluster,
        Config().devices,
        Config().models,
    )


def test_any_free_port_cannot_be_shared(write):
    path = write("[http]\nport = 0\nreuse_port = true")
    wrong = f"{path}: http.reuse_port: port 0 is another one for each node; give http.port"
    assert problems(path) == [wrong]


def test_five_mistakes_are_five_problems_with_key_and_remedy(write):
    path = write("""
        [http]
        port = 99999
        bodytimeout_s = 3
        [[devices]]
        id = "a"
        kind = "gpu"
        [[models]]
        name = "x"
        dtype = "int3"
        [[models]]
        name = "x"
        devices = ["a"]
    """)
    found = problems(path)
    assert len(found) == 5
    expected = [
        ("http.port", "0 to 65535"),
        ("http.bodytimeout_s", 'did you mean "body_timeout_s"'),
        ("devices[0].kind", "one of auto, cpu, cuda, paced"),
        ("models[0].dtype", "one of auto, bfloat16"),
        ("models[1].name", "names are given once"),
    ]
    for key, remedy in expected:
        [problem] = [p for p in found if p.startswith(f"{path}: {key}: ")]
        assert remedy in problem


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("[modles]", "modles", 'did you mean "models"'),
        ("models = {}", "models", "leave it out"),
        ("node = 3", "node", "write it as [node]"),
        ('[[models]]\npath="./nope"', "models[0].path", "does not exist"),
        ('[[models]]\npath="/nope.gguf"', "models[0].path", "does not exist"),
        ('[[models]]\nname="*"', "models[0].name", "put it into aliases"),
        ('[[models]]\nname="x"\naliases=["x"]', "models[0].aliases[0]", "models[0].name"),
        (
            '[[models]]\nname="a"\naliases=["*"]\n[[models]]\nname="b"\naliases=["*"]',
            "models[1].aliases[0]",
            "models[0].aliases[0]",
        ),
        ("[[models]]\n[[models]]", "models[1].name", "names are given once"),
        ('[[models]]\ndevices=["gpu"]', "models[0].devices[0]", "known here: cpu0"),
        ('[[models]]\ndevices=["cup0"]', "models[0].devices[0]", 'did you mean "cpu0"'),
        ("[[models]]\nmax_num_seqs=513", "models[0].max_batched_tokens", "lower max_num_seqs"),
        ('[[devices]]\nid="a"\n[[devices]]\nid="a"\nkind="cpu"', "devices[1].id", "its own id"),
        ("[[devices]]\n[[devices]]", "devices[1].kind", "keep one"),
        ('[[devices]]\nkind="cpu"\nindex=1', "devices[0].index", 'set kind = "cuda"'),
        (
            '[[devices]]\nkind="cpu"\ncost={fixed_us=1}',
            "devices[0].cost",
            'set kind = "paced"',
        ),
        ('[[devices]]\nkind="paced"\ncost={fixed_us=-1}', "devices[0].cost", "0 or more"),
        ('[[devices]]\nkind="paced"\ncost={token_us=nan}', "devices[0].cost", "0 or more"),
        ('[[devices]]\nkind="paced"\ncost={kv_bytes=-1}', "devices[0].cost.kv_bytes", "0 to"),
        (
            '[[devices]]\nkind="paced"\ncost={hidden_bytes=2000000}',
            "devices[0].cost.hidden_bytes",
            "0 to 1048576",
        ),
        ('[[models]]\nlive="zagzig"', "models[0].live", "one of auto, stop"),
        ('[[models]]\nscaling="automatic"', "models[0].scaling", "one of manual, advise, auto"),
        ("[[models]]\nttft_target_s=0", "models[0].ttft_target_s", "above 0"),
        ("[[models]]\ntpot_target_s=-1", "models[0].tpot_target_s", "above 0"),
        ("[[models]]\nmin_instances=-1", "models[0].min_instances", "0 to 4096"),
        (
            "[[models]]\nmin_instances=3\nmax_instances=2",
            "models[0].max_instances",
            "below min_instances (3)",
        ),
        ("[[models]]\nidle_to_zero_s=9", "models[0].idle_to_zero_s", "min_instances keeps 1"),
        ("[[models]]\nscale_down_after_s=-1", "models[0].scale_down_after_s", "0 to 86400"),
        ("[[models]]\npriority=5000", "models[0].priority", "-1000 to 1000"),
        ('[[devices]]\nkind="paced"\ncost={token=1}', "devices[0].cost.token", '"token_us"'),
        ('[[devices]]\nkind="paced"\ncost={token_us="1"}', "devices[0].cost.token_us", "a number"),
        ('[[models]]\npath="~nobody-here/x"', "models[0].path", "does not exist"),
        (f'[[models]]\npath="./{"x" * 5000}"', "models[0].path", "does not exist"),
        ('[node]\ncache_dir="a\\u0000b"', "node.cache_dir", "a path"),
        ('[http]\napi_key_file="a\\u0000b"', "http.api_key_file", "a path"),
        ('[http]\napi_key_file="nope"', "http.api_key_file", "create it"),
    ],
)
def test_one_mistake_is_one_problem(write, text, key, remedy):
    path = write(text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: {key}: ")
    assert remedy in problem


def test_names_follow_from_paths(write, tmp_path):
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    (tmp_path / "tiny.Q8_0.gguf").touch()
    path = write("""
        [[models]]
        path = "models/qwen"
        [[models]]
        path = "tiny.Q8_0.gguf"
        [[models]]
        path = "org/Some-Model"
        [[models]]
        path = "./models/../models/qwen/"
        name = "again"
    """)
    assert [(m.name, m.path) for m in load(path).models] == [
        ("qwen", str(tmp_path / "models" / "qwen")),
        ("tiny.Q8_0", str(tmp_path / "tiny.Q8_0.gguf")),
        ("org/Some-Model", "org/Some-Model"),
        ("again", str(tmp_path / "models" / "qwen")),
    ]


def gpus():
    return [DeviceSpec(f"cuda{i}", DeviceKind.CUDA, index=i) for i in range(2)]


def test_an_automatic_device_is_every_gpu_and_its_id_stands_for_all(write):
    path = write("""
        [[devices]]
        id = "all"
        kv_bytes = "1GiB"
        [[devices]]
        kind = "paced"
        cost = { fixed_us = 5, token_us = 0.5, kv_bytes = 96, hidden_bytes = 48 }
        [[models]]
        devices = ["all", "cuda1"]
        [[models]]
        name = "b"
        devices = ["cuda1"]
        [[models]]
        name = "c"
    """)
    config = load(path, discover=gpus)
    assert [(d.id, d.index, d.kv_bytes) for d in config.devices] == [
        ("cuda0", 0, 1 << 30),
        ("cuda1", 1, 1 << 30),
        ("paced0", 0, 0),
    ]
    assert config.devices[2].cost == PacedCost(5.0, 0.5, 0.0, 96, 48)
    assert [m.devices for m in config.models] == [
        ("cuda0", "cuda1"),
        ("cuda1",),
        ("cuda0", "cuda1", "paced0"),
    ]


def test_an_automatic_device_without_gpus_is_one_cpu(write):
    assert load(write('[[devices]]\nid="main"\nthreads=2')).devices == (
        DeviceSpec("main", DeviceKind.CPU, threads=2),
    )


def test_devices_without_ids_are_numbered(write):
    text = "\n".join(f'[[devices]]\nkind="{kind}"' for kind in ("cpu", "paced", "cpu", "paced"))
    ids = [device.id for device in load(write(text)).devices]
    assert ids == ["cpu0", "paced0", "cpu1", "paced1"]
    two = '[[devices]]\nkind="cuda"\nindex=3\n[[devices]]\nkind="cuda"'
    assert [device.id for device in load(write(two)).devices] == ["cuda3", "cuda0"]


def test_what_is_written_of_scaling_is_what_owners_are_told(write):
    text = """
[[models]]
scaling = "AUTO"
ttft_target_s = 0.5
tpot_target_s = 0.05
min_instances = 0
max_instances = 7
scale_down_after_s = 1.5
idle_to_zero_s = 60
keep_s = 5
priority = -2
"""
    [model] = load(write(text)).models
    assert model.scale_terms == ScaleTerms("auto", 0.5, 0.05, 0, 7, 1.5, 60.0, 5.0, -2)
    [default] = load().models
    assert default.scale_terms == ScaleTerms(), "the defaults are the same in both places"


def test_the_forced_dtype_is_none_for_auto(write):
    assert load().models[0].forced_dtype is None
    assert load(write('[[models]]\ndtype="bf16"')).models[0].forced_dtype is Dtype.BFLOAT16


def test_keys_come_from_the_file_of_keys_too(write, tmp_path):
    secret = tmp_path / "keys"
    secret.write_text("# of the team\none\n\n  sesame \n")
    secret.chmod(0o600)
    config = load(write('[http]\napi_keys=["zero","one"]\napi_key_file="keys"'))
    assert config.http.api_keys == ("zero", "one", "sesame")
    assert config.warnings == ()
    assert "sesame" not in repr(config)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"two words\n", b"\xff\xfe\n"])
def test_a_key_file_without_keys_is_a_mistake(write, tmp_path, content):
    (tmp_path / "keys").write_bytes(content)
    [problem] = problems(write('[http]\napi_key_file="keys"'))
    assert "http.api_key_file" in problem
    assert "one a line" in problem
    assert "words" not in problem


def test_a_key_file_that_others_can_read_is_warned_of(write, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    (tmp_path / "keys").chmod(0o644)
    [warning] = load(write('[http]\napi_key_file="keys"')).warnings
    assert "chmod 600" in warning


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.net"])
def test_an_open_port_without_keys_is_warned_of(write, host):
    path = write(f'[http]\nhost="{host}"')
    [warning] = load(path).warnings
    assert host in warning
    assert "api_key_file" in warning
    assert load(path, [Option("--api-key", "http.api_keys", ["k"])]).warnings == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(write, host):
    assert load(write(f'[http]\nhost="{host}"')).warnings == ()


def test_devices_that_share_a_gpu_without_shares_are_warned_of(write):
    text = '[[devices]]\nid="a"\nkind="cuda"\n[[devices]]\nid="b"\nkind="cuda"\n'
    assert "GPU 0 is shared" in load(write(text)).warnings[0]
    assert load(write(text + "kv_bytes=1")).warnings == ()


def test_options_override_the_file_and_are_named_in_problems(write):
    path = write('[http]\nport=1\n[[models]]\nname="a"')
    options = [
        Option("--port", "http.port", 2),
        Option("--served-model-name", "models[0].name", "b"),
    ]
    config = load(path, options)
    assert (config.http.port, config.models[0].name) == (2, "b")
    assert problems(path, Option("--port", "http.port", -1)) == [
        "--port: -1 is not a port, 0 to 65535 (0: any free one)"
    ]


def test_an_option_for_one_model_is_a_mistake_with_several(write):
    path = write('[[models]]\nname="a"\n[[models]]\nname="b"')
    [problem] = problems(path, Option("--dtype", "models[0].dtype", "auto"))
    assert problem.startswith("--dtype: is for a single model; set dtype in each [[models]]")
    config = load(path, [Option("--model", "models", [{"path": "c"}])])
    assert [model.name for model in config.models] == ["c"]


def test_folders_count_from_the_file_and_the_home(write, tmp_path, monkeypatch):
    assert load(write('[node]\ncache_dir="c"')).node.cache_dir == str(tmp_path / "c")
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(write('[node]\ncache_dir="~/c"')).node.cache_dir == "/home/someone/c"
    monkeypatch.delenv("BLITZGW_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert load().node.cache_dir == "/home/someone/.cache/blitzgw"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert load().node.cache_dir == "/xdg/blitzgw"


@pytest.mark.parametrize(("length", "ok"), [(128, True), (129, False)])
def test_a_node_has_a_name_that_gossip_can_carry(write, length, ok):
    path = write(f'[node]\nname = "{"n" * length}"')
    if ok:
        assert len(load(path).node.name) == length
    else:
        [problem] = problems(path)
        assert "node.name" in problem
        assert "at most 128" in problem
