"""`blitzgw run --local-nodes N`: what each node is told, signals, deaths, nothing left behind."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blitzgw.cli.ask import ask
from blitzgw.cli.children import MAX_LINE_BYTES, Output
from blitzgw.cli.main import main
from tests.cli.local_kit import ROOT, family
from tests.support.nodes import is_gone
from tests.support.ports import free_port

KEY = "k" * 40


def test_each_node_has_its_name_ports_and_share_and_knows_the_others(tmp_path):
    port = free_port()
    options = ("--local-nodes", "3", "--port", str(port), "--api-key", "secret", "--device", "cpu")
    with family(tmp_path, *options) as ours:
        ours.ready()
        nodes = [ours.facts(f"node-{i}") for i in (1, 2, 3)]
        assert ours.end(signal.SIGTERM) == 0
    addresses = [f"127.0.0.1:{node['port']}" for node in nodes]
    assert len(set(addresses)) == 3
    assert [node["http"] for node in nodes] == [port, port + 1, port + 2]
    for i, node in enumerate(nodes):
        assert (node["host"], node["advertise"]) == ("127.0.0.1", "127.0.0.1")
        assert node["join"] == addresses[:i] + addresses[i + 1 :]
        assert node["threads"] == [max(1, len(os.sched_getaffinity(0)) // 3)]
        assert node["kv_bytes"][0] > 0
        assert node["api_keys"] == ["secret"]
        assert node["keys"] == nodes[0]["keys"]
        assert len(node["keys"][0]) == 64
        assert node["variable"] is None, "workers do not inherit it"
        assert "secret" not in " ".join(node["argv"])
        assert node["keys"][0] not in " ".join(node["argv"])
        assert "serving" in ours.lines(f"node-{i + 1}")
        assert f"  node-{i + 1}  http://127.0.0.1:{port + i}\n" in ours.log
        assert node["keys"][0] not in ours.log
    assert "\x1b" not in ours.log


def test_a_configured_key_ports_threads_and_seeds_are_kept(tmp_path):
    (tmp_path / "cluster.key").write_text(KEY)
    (tmp_path / "cluster.key").chmod(0o600)
    port = free_port()
    config = f"""
        models = []
        [cluster]
        port = {port}
        host = "0.0.0.0"
        advertise = "10.0.0.1"
        join = ["127.0.0.1:9"]
        key_file = "cluster.key"
        [[devices]]
        kind = "cpu"
        threads = 3
        kv_bytes = 5
        [[devices]]
        kind = "paced"
    """
    options = ("--local-nodes", "2", "--port", "0", "--name", "east")
    with family(tmp_path, *options, config=config) as ours:
        ours.ready()
        one, two = ours.facts("east-1"), ours.facts("east-2")
        assert ours.end(signal.SIGHUP) == 0
    assert 0 != one["http"] != two["http"] != 0
    assert one["keys"] == two["keys"] == [KEY]
    assert (one["port"], two["port"]) == (port, port + 1)
    assert (one["host"], one["advertise"]) == ("127.0.0.1", "127.0.0.1")
    assert one["join"] == ["127.0.0.1:9", f"127.0.0.1:{port + 1}"]
    assert two["join"] == ["127.0.0.1:9", f"127.0.0.1:{port}"]
    assert (one["threads"], one["kv_bytes"]) == ([3, 0], [5, 0])


def test_the_first_signal_stops_gracefully(tmp_path):
    with family(tmp_path, "--local-nodes", "2", "--port", "0") as ours:
        ours.ready()
        groups = {ours.facts(f"node-{i}")["group"] for i in (1, 2)}
        assert os.getpgid(ours.process.pid) not in groups, "^C in a terminal must come once"
        assert ours.end(signal.SIGINT) == 0
    for node in ("node-1", "node-2"):
        assert [line for line in ours.lines(node) if "signal" in line] == ["signal SIGINT"]
    assert "ended" not in ours.log


def test_the_second_signal_makes_them_hurry(tmp_path):
    (tmp_path / "patient").touch()
    with family(tmp_path, "--local-nodes", "2", "--port", "0") as ours:
        ours.ready()
        assert ours.end(signal.SIGTERM, signal.SIGTERM) == 130
    for node in ("node-1", "node-2"):
        assert ours.lines(node)[-1] == "signal SIGINT"


def test_what_does_not_listen_is_ended_after_a_while(tmp_path):
    (tmp_path / "stubborn").touch()
    with family(tmp_path, "--local-nodes", "1", "--port", "0") as ours:
        ours.ready()
        assert ours.end(signal.SIGTERM, signal.SIGTERM) == 130
    assert "node-1 was ended by SIGKILL" in ours.log


def test_the_third_signal_ends_it_at_once(tmp_path):
    (tmp_path / "stubborn").touch()
    with family(tmp_path, "--local-nodes", "1", "--port", "0") as ours:
        ours.ready()
        ours.end(*[signal.SIGINT] * 3)
        assert ours.process.returncode == 130
        assert ours.lines("node-1")[-2:] == ["signal SIGINT"] * 2
    assert "node-1 was ended by SIGKILL" in ours.log


def test_nodes_that_die_are_reported_and_the_others_go_on(tmp_path):
    (tmp_path / "node-1.fails").touch()
    with family(tmp_path, "--local-nodes", "3", "--port", "0") as ours:
        ours.ready()
        port = ours.facts("node-2")["http"]
        os.kill(ours.facts("node-3")["pid"], signal.SIGKILL)
        ours.until(lambda: "was ended" in ours.log, "report")
        assert ours.process.poll() is None
        assert not is_gone(ours.facts("node-2")["pid"])
        assert ours.end(signal.SIGTERM) == 1
    assert "cannot do it" in ours.lines("node-1")
    assert "blitzgw: node-1 ended with exit code 7; 2 of 3 go on\n" in ours.log
    assert "blitzgw: node-3 was ended by SIGKILL; 1 of 3 go on\n" in ours.log
    assert "  node-1  ended with exit code 7\n  node-2  http" in ours.log
    assert f"blitzgw inspect nodes --url http://127.0.0.1:{port}\n" in ours.log


def test_when_all_have_died_it_is_over(tmp_path):
    for i in (1, 2):
        (tmp_path / f"node-{i}.fails").touch()
    with family(tmp_path, "--local-nodes", "2", "--port", "0") as ours:
        assert ours.end() == 1
    assert "Ready" not in ours.log
    assert "blitzgw: node-2 ended with exit code 7" in ours.log


def test_no_node_outlives_a_parent_that_was_killed(tmp_path):
    with family(tmp_path, "--local-nodes", "2", "--port", "0") as ours:
        ours.ready()
        pids = [ours.facts(f"node-{i}")["pid"] for i in (1, 2)]
        ours.process.kill()
        ours.process.wait()
        ours.until(lambda: all(map(is_gone, pids)), "end of every node")


def test_no_node_outlives_a_parent_that_was_killed_early(tmp_path):
    with family(tmp_path, "--local-nodes", "2", "--port", "0") as ours:
        file = Path(f"/proc/{ours.process.pid}/task/{ours.process.pid}/children")
        pids = ours.until(lambda: file.read_text().split(), "child process")
        ours.process.kill()
        ours.process.wait()
        ours.until(lambda: all(is_gone(int(pid)) for pid in pids), "end of every node")


def test_nodes_go_on_when_nobody_reads_what_they_say(tmp_path):
    reader, writer = os.pipe()
    with family(tmp_path, "--local-nodes", "2", "--port", "0", stderr=writer) as ours:
        os.close(writer)
        os.close(reader)
        pids = [ours.facts(f"node-{i}")["pid"] for i in (1, 2)]
        time.sleep(0.3)
        assert ours.process.poll() is None
        assert not any(map(is_gone, pids))
        assert ours.end(signal.SIGTERM) == 0


def test_names_are_coloured_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    with family(tmp_path, "--local-nodes", "1", "--port", "0", stderr=theirs) as run:
        os.close(theirs)
        text = b""
        while b"Ready" not in text or b"serving" not in text:
            text += os.read(ours, 65536)
        assert run.end(signal.SIGTERM) == 0
    os.close(ours)
    assert b"\x1b[36mnode-1 |\x1b[0m serving" in text


def test_real_nodes_find_each_other(tmp_path):
    config = "models = []\ndevices = []\n"
    with family(tmp_path, "--local-nodes", "2", "--port", "0", fake=False, config=config) as ours:
        url = ours.until(lambda: re.search(r"listening url=(http\S+)", ours.log), "URL")[1]
        ours.until(lambda: alive(url) == ["node-1", "node-2"], "two nodes")
        assert "warning" not in ours.log
        assert ours.end(signal.SIGTERM) == 0
    assert "Traceback" not in ours.log


def alive(url):
    nodes = ask(url, "/cluster/nodes", None)["nodes"]
    return [node["name"] for node in nodes if node["status"] == "alive" and node["http"]]


# -- in this process -------------------------------------------------------------------------------


def test_ports_must_suffice(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path))
    (tmp_path / "node.toml").write_text("models = []")
    command = ["run", "--config", str(tmp_path / "node.toml"), "--local-nodes", "3"]
    assert main([*command, "--port", "65534"]) == 2
    err = capsys.readouterr().err
    assert "--local-nodes: 3 nodes need http.port 65534 to 65536, and 65535 is the last" in err
    assert main([*command, "--cluster-port", "65534"]) == 2
    assert "cluster.port" in capsys.readouterr().err
    assert main([*command, "--host", "192.0.2.1", "--port", "0"]) == 1
    assert "no free port on 192.0.2.1: Cannot assign" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "65", "x"])
def test_the_number_of_nodes_is_checked(number):
    assert main(["run", "--local-nodes", number]) == 2


def test_a_local_node_whose_parent_has_gone_does_not_start():
    command = [sys.executable, "-m", "blitzgw.cli.main", "run", "--part-of", "1", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("blitzgw: process 1, for which this is a local node, has gone")


@pytest.mark.parametrize(("no_colour", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_respected(monkeypatch, no_colour, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", no_colour)
    said = []
    monkeypatch.setattr(Output, "say", lambda self, text: said.append(text))
    Output(["a"]).relay("a", io.BytesIO(b"x"))
    assert ("\x1b" in said[0]) is coloured


def test_lines_without_end_are_broken(capsys):
    output = Output(["a", "long-name"])
    output.relay("a", io.BytesIO(b"x" * (MAX_LINE_BYTES + 1) + b"\r\n\xff\nlast"))
    lines = capsys.readouterr().err.splitlines()
    assert [len(line) for line in lines] == [12 + MAX_LINE_BYTES, 13, 13, 16]
    assert lines[2:] == ["a         | \ufffd", "a         | last"]
