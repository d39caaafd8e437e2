"""Commands in this process, through click's runner and through `main`."""

import json
import os
import sys
import types

import click
import pytest
from click.testing import CliRunner

from blitzgw.cli.announce import curl_command
from blitzgw.cli.main import cli, main
from blitzgw.cli.output import ProgressLine, columns, size
from blitzgw.cli.serve import KEYS, run
from blitzgw.config import ClusterConfig, Config, HttpConfig, ModelConfig
from blitzgw.errors import CheckpointError, ConfigError
from blitzgw.weights import cache


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Give each test a cache and a working folder of its own, and no GPUs."""
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "cache"))
    for name in ("BLITZGW_API_KEY", "BLITZGW_CLUSTER_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("blitzgw.worker.discovery.discover", list)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def served(monkeypatch):
    """Catch the configurations that `run` would serve; the node returns their number."""
    configs = []
    monkeypatch.setattr(cache, "add_bundled", lambda name, progress: None)

    def fake_run(config):
        configs.append(config)
        return len(configs) - 1

    node = types.ModuleType("blitzgw.node")
    node.run = fake_run
    monkeypatch.setitem(sys.modules, "blitzgw.node", node)
    monkeypatch.setattr("blitzgw.node", node, raising=False)
    return configs


COMMANDS = [
    [],
    ["run"],
    ["check-config"],
    ["models"],
    ["models", "add"],
    ["inspect"],
    *(["inspect", what] for what in ("nodes", "instances", "models", "requests", "plan", "events")),
    ["inspect", "why"],
    ["top"],
    ["scale"],
    ["probe"],
    ["simulate"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "blitzgw" in result.output.split("Options:")[1]


def test_the_version_is_printed():
    result = CliRunner().invoke(cli, ["--version"])
    assert result.output.startswith("blitzgw ")


def test_run_without_anything_serves_the_small_model(served):
    assert main(["run"]) == 0
    assert [model.name for model in served[0].models] == ["smollm2-135m"]


def test_run_fetches_the_small_model_where_it_is_missing(served, monkeypatch):
    asked = []
    monkeypatch.setattr(cache, "add_bundled", lambda name, progress: asked.append(name))
    assert main(["run"]) == 0
    assert asked == ["smollm2-135m"]


def test_run_does_not_start_without_its_model(served, monkeypatch, capsys):
    def fail(name, progress):
        raise CheckpointError("no network")

    monkeypatch.setattr(cache, "add_bundled", fail)
    assert main(["run"]) == 1
    assert served == []
    assert capsys.readouterr().err == "blitzgw: no network\n"


def test_run_returns_the_exit_code_of_the_node(served):
    assert [main(["run"]), main(["run"])] == [0, 1]


def test_run_understands_the_options_of_vllm(served):
    words = "--model org/m --host ::1 --port 9 --api-key a --api-key b --served-model-name x"
    words += " --served-model-name y --max-model-len 128 --max-num-seqs 3 --dtype half"
    words += " --max-num-batched-tokens 99 --device paced --log-level debug"
    assert main(["run", *words.split()]) == 0
    [config] = served
    assert (config.http.host, config.http.port) == ("::1", 9)
    assert config.http.api_keys == ("a", "b")
    assert config.models == (
        ModelConfig(
            "x",
            "org/m",
            ("y",),
            "float16",
            128,
            max_num_seqs=3,
            max_batched_tokens=99,
            devices=("paced0",),
        ),
    )
    assert config.node.log_level == "debug"


def test_every_option_has_its_key():
    options = {parameter.name for parameter in run.params}
    rest = {"model", "model_option", "config_file", "served_model_name", "device"}
    rest |= {"local_nodes", "part_of"}
    assert options == KEYS.keys() | rest


def test_run_takes_the_model_as_an_argument_too(served, tmp_path):
    (tmp_path / "folder").mkdir()
    assert main(["run", "./folder"]) == 0
    assert served[0].models[0].path == str(tmp_path / "folder")
    assert main(["run", "a", "--model", "b"]) == 2


def test_keys_come_from_the_environment_too(served, monkeypatch):
    monkeypatch.setenv("BLITZGW_API_KEY", "one two")
    assert main(["run"]) == 0
    assert served[0].http.api_keys == ("one", "two")


def test_run_joins_a_cluster(served, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "node.toml").write_text("[cluster]\nport = 1\n")
    (tmp_path / "a.key").write_text("k" * 32)
    (tmp_path / "a.key").chmod(0o600)
    words = "--config sub/node.toml --name east --join a --join [::1]:2 --cluster-key-file a.key"
    words += " --cluster-host 0.0.0.0 --cluster-port 7946 --cluster-advertise 10.0.0.1"
    assert main(["run", *words.split()]) == 0
    [config] = served
    assert config.node.name == "east"
    assert config.cluster_keys == ("k" * 32,)
    assert config.cluster == ClusterConfig(
        "0.0.0.0", 7946, "10.0.0.1", ("a:7946", "[::1]:2"), str(tmp_path / "a.key")
    )


def test_the_cluster_key_comes_from_the_environment_and_does_not_stay_there(served, monkeypatch):
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", "k" * 32)
    assert main(["run", "--join", "127.0.0.1:1"]) == 0
    assert served[0].cluster_keys == ("k" * 32,)
    assert "BLITZGW_CLUSTER_KEY" not in os.environ


def test_joining_without_a_key_is_a_mistake(served, capsys):
    assert main(["run", "--join", "a:1", "--cluster-host", "0.0.0.0"]) == 2
    err = capsys.readouterr().err
    assert "blitzgw: --join: needs a key that all nodes share (openssl rand -hex 32" in err
    assert "blitzgw: --cluster-host: 0.0.0.0 can be reached by others" in err


def test_options_override_the_file(served, tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "node.toml"
    file.write_text('[http]\nport = 1\nhost = "127.0.0.2"\n[[models]]\npath = "a"\n')
    assert main(["run", "--config", str(file), "--port", "2", "--served-model-name", "b"]) == 0
    assert (served[0].http.port, served[0].http.host) == (2, "127.0.0.2")
    assert (served[0].models[0].path, served[0].models[0].name) == ("a", "b")


def test_workers_inherit_the_cache_folder(served, tmp_path, monkeypatch):
    (tmp_path / "node.toml").write_text('[node]\ncache_dir = "elsewhere"')
    assert main(["run", "--config", "node.toml"]) == 0
    assert cache.list_models() == []
    assert (tmp_path / "elsewhere").is_dir()


def test_warnings_go_to_stderr(served, capsys):
    assert main(["run", "--host", "0.0.0.0"]) == 0
    assert "warning: http.host is 0.0.0.0 and there are no API keys" in capsys.readouterr().err


def test_all_mistakes_are_told_with_exit_code_2(served, capsys):
    assert main(["run", "--port", "99999", "--dtype", "int3", "--api-key", "se cret"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[1].strip() for line in err.splitlines()] == [
        "--port",
        "--api-key",
        "--dtype",
    ]
    assert "se cret" not in err
    assert served == []


def test_check_config_prints_what_a_file_comes_to(capsys, tmp_path):
    (tmp_path / "node.toml").write_text('[http]\nport = 9\napi_keys = ["secret"]\n')
    assert main(["check-config", "node.toml"]) == 0
    out = capsys.readouterr().out
    assert "port                     9\n" in out
    assert "api_keys                 1\n" in out
    assert "max_body_bytes           16 MiB\n" in out
    assert "cpu0  cpu" in out
    assert main(["check-config", "node.toml", "--format", "json"]) == 0
    out += capsys.readouterr().out
    facts = json.loads(out[out.index("{") :])
    assert facts["models"][0]["devices"] == ["cpu0"]
    assert facts["http"]["api_keys"] == 1
    assert "secret" not in out


def test_check_config_shows_the_cluster_and_counts_its_keys(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BLITZGW_CLUSTER_KEY", f"{'k' * 32},{'o' * 32}")
    text = 'devices = []\nmodels = []\n[cluster]\nport = 7946\njoin = ["127.0.0.1", "[::1]:1"]\n'
    (tmp_path / "node.toml").write_text(text)
    assert main(["check-config", "node.toml"]) == 0
    out = capsys.readouterr().out
    section = out[out.index("cluster\n") :]
    assert "  join              127.0.0.1:7946 [::1]:1\n" in section
    assert "  keys              2\n" in section
    assert section.endswith("devices\n  none\n\nmodels\n  none\n")
    assert main(["check-config", "node.toml", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["cluster"]["keys"], facts["models"]) == (2, [])
    assert "kkk" not in f"{out}{facts}"
    assert "ooo" not in f"{out}{facts}"


def test_check_config_shows_the_data_plane(capsys, tmp_path):
    (tmp_path / "node.toml").write_text(
        '[transfer]\nrate = "400Mbit"\nzone = "r1"\n'
        'networks = [{ name = "fast", host = "127.0.0.2", rate = "100Gbit" },'
        ' { name = "b", host = "127.0.0.3" }]'
    )
    assert main(["check-config", "node.toml"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "rate 400 Mbit/s" in lines
    assert "networks fast at 127.0.0.2 (100 Gbit/s), b at 127.0.0.3" in lines
    assert "max_weight_rate no limit" in lines
    assert main(["check-config", "node.toml", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["transfer"]
    assert told["networks"][0] == {"name": "fast", "host": "127.0.0.2", "rate": 12.5e9}


def test_check_config_tells_every_mistake(capsys, tmp_path):
    (tmp_path / "node.toml").write_text("[htpp]\n[node]\ndilation = 0\n")
    assert main(["check-config", "node.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "node.toml: htpp: " in err
    assert "node.toml: node.dilation: " in err


def test_models_are_listed(monkeypatch, capsys, tmp_path):
    assert main(["models", "list"]) == 0
    assert capsys.readouterr() == ("", "no models yet: blitzgw models add smollm2-135m\n")
    added = [cache.AddedModel("m", tmp_path / "a"), cache.AddedModel("longer", tmp_path / "b")]
    monkeypatch.setattr(cache, "list_models", lambda: added)
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out == (
        f"NAME    DIGEST  PATH\nm       -       {tmp_path / 'a'}\n"
        f"longer  -       {tmp_path / 'b'}\n"
    )
    assert main(["models", "list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "longer",
        "digest": None,
        "path": f"{tmp_path}/b",
    }


def test_adding_a_model_shows_progress_beside_the_result(monkeypatch, capsys, tmp_path):
    def add_model(source, name, progress):
        progress("downloading", 0, 100)
        progress("downloading", 100, 100)
        progress("unpacking", 5, 0)
        return cache.AddedModel(name or source, tmp_path)

    monkeypatch.setattr(cache, "add_model", add_model)
    assert main(["models", "add", "src", "--name", "n"]) == 0
    out, err = capsys.readouterr()
    assert out == f"n  {tmp_path}\n"
    assert err == "downloading 100 B\nunpacking\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("the disk is full"), 1),
        (ConfigError(["a is wrong", "b is wrong"]), 2),
        (KeyboardInterrupt(), 130),
        (click.UsageError("no"), 2),
    ],
)
def test_errors_become_messages_and_exit_codes(monkeypatch, capsys, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(cache, "add_model", fail)
    assert main(["models", "add", "x"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_in_the_program_is_not_hidden(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(cache, "add_model", fail)
    with pytest.raises(ZeroDivisionError):
        main(["models", "add", "x"])


def test_columns_line_up():
    assert columns([["a", "bb"], ["ccc"], ["", "d"]], indent=1) == " a    bb\n ccc\n      d"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (16 << 20, "16 MiB"), (3 << 39, "1.5 TiB")],
)
def test_sizes_are_readable(size_bytes, text):
    assert size(size_bytes) == text


def test_progress_redraws_one_line_on_a_terminal():
    class Terminal:
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    with ProgressLine(terminal) as progress:
        progress("downloading", 50, 100)
        progress("downloading", 50, 100)
        progress("checking", 1, 0)
    lines = terminal.text.split("\r\x1b[K")
    assert lines[1].startswith("downloading  ████████████░░░░░░░░░░░░  50 %")
    assert lines[2:] == ["checking", ""]


def test_the_curl_line_reaches_the_server():
    config = Config(http=HttpConfig("::", 81, api_keys=("k",)), models=(ModelConfig("it's"),))
    line = curl_command(config)
    assert line.startswith("curl -N http://[::1]:81/v1/chat/completions")
    assert "Bearer $BLITZGW_API_KEY" in line
    assert '"model": "it\'\\\'\'s"' in line


def test_a_node_without_models_is_asked_for_those_of_others():
    config = Config(http=HttpConfig("0.0.0.0", 81), models=())
    assert curl_command(config) == "curl http://127.0.0.1:81/v1/models"
