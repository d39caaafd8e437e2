"""`blitzgw inspect`: tables that fit, JSON that is whole, errors that say what to do."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from blitzgw.cli.ask import Asker, ask
from blitzgw.cli.main import main
from blitzgw.cli.tables import age, layers, table
from blitzgw.errors import BlitzError
from tests.cli.inspect_kit import instance, model, node, request, serving

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blitzgw.cli.main", "inspect"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("BLITZGW_URL", "BLITZGW_API_KEY", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def drawn(what, items, width=80, **more):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table(what, {what: items} | more, width))
    return [line.rstrip() for line in capture.get().splitlines()]


# -- tables ----------------------------------------------------------------------------------------


def test_nodes_fit_and_show_what_matters():
    head, first, second = drawn("nodes", [node(), node("node-2", "dead", instances=0)])
    assert head.split()[:2] == ["NODE", "STATUS"]
    assert first.startswith("node-1  alive")
    assert "cpu 16 GiB" in first
    assert "http://127.0.0.1:8000" in first
    assert second.startswith("node-2  dead")


def test_a_draining_node_says_so():
    assert "alive, draining" in drawn("nodes", [node(draining=True)])[1]


def test_nodes_of_which_nothing_is_known_yet_are_shown():
    fresh = node(http=None, address=None, draining=None, devices=[], models=[], instances=0)
    assert drawn("nodes", [fresh])[1].startswith("node-1  alive")


def test_instances_show_load_and_a_bar_while_they_load():
    unknown = dict.fromkeys(
        ("running", "waiting", "queued_tokens", "kv_usage", "prefill_tokens_per_s",
         "decode_step_s", "load_age_s")
    )  # fmt: skip
    loading = instance(node="node-2", state="loading", layers_resident=12, **unknown)
    head, first, second = drawn("instances", [instance(), loading])
    assert head.split() == ["MODEL", "NODE", "DEVICE", "STATE", "LAYERS", "RUN", "WAIT", "KV",
                            "STEP"]  # fmt: skip
    assert first.split() == ["smollm2-135m", "node-1", "cpu0", "serving", "30/30", "3", "12",
                             "42%", "16.6ms"]  # fmt: skip
    assert "███░░░░░ 12/30" in second
    helping = loading | {"helps": "m@node-1/cpu0"}
    head, _, second = drawn("instances", [instance(), helping], width=120)
    assert "HELPS" in head.split()
    assert "12/30  m@node-1/cpu0" in second
    stage = helping | {"stage": [0, 15]}
    _, _, second = drawn("instances", [instance(), stage], width=120)
    assert "m@node-1/cpu0 stage [0, 15)" in second
    older = {name: value for name, value in instance().items() if name != "helps"}
    assert "HELPS" not in drawn("instances", [older], width=120)[0]
    wide = drawn("instances", [instance()], width=200)
    assert wide[0].split()[-5:] == ["TOK/S", "STEP", "CHANGED", "WEIGHTS", "ID"]
    assert "fedcba9876 " in wide[1]
    assert "2,267" in wide[1]


def test_models_show_instances_and_disputes():
    lines = drawn(
        "models",
        [model(), model(name="x", conflict=True), model(name="x", conflict=True, prevails=False)],
    )
    assert "NOTE" in lines[0]
    assert lines[2].endswith("conflict: in use")
    assert lines[3].endswith("conflict: not served")
    assert "NOTE" not in drawn("models", [model()])[0]
    wide = drawn("models", [model(scaling={"wanted": 7}), model(scaling=None), model()], 120)
    assert wide[0].split()[:4] == ["MODEL", "SERVING", "LOADING", "WANTED"]
    assert wide[1].split()[3] == "7"
    assert "1 draining, 2 kept" in drawn("models", [model(instances={"kept": 2, "draining": 1})])[1]


def test_nodes_show_their_host_copies_and_models_how_many_there_should_be():
    copy = {"model": "m", "weights": "w", "device": "cpu0", "size_bytes": 257 << 20,
            "blobs": [0], "complete": True}  # fmt: skip
    head, first, second = drawn("nodes", [node(copies=[copy, copy]), node(host=None)], 140)
    assert "COPIES" in head
    assert "2, 514 MiB" in first
    assert "8 GiB" in first
    assert "8 GiB" not in second
    wide = drawn("models", [model(host_copies=1, host_copies_wanted=2)], 140)
    assert "1/2" in wide[1]
    some = drawn("models", [model(host_copies=1, host_copies_wanted=2, host_cached=3)], 140)
    assert "1+3/2" in some[1], "three more are there for a while"
    assert "fedcba9876 " in wide[1]


def test_requests_show_where_they_are_and_who_did_not_answer():
    items = [request(), request(instance=None)]
    lines = drawn("requests", items, unanswered=["node-3", "node-4"])
    assert "12/64" in lines[1]
    assert "held" in lines[2]
    assert lines[-1] == "no answer from node-3, node-4"


@pytest.mark.parametrize("what", ["nodes", "instances", "models", "requests"])
def test_nothing_is_said_to_be_nothing(what):
    assert drawn(what, []) == [f"no {what}"]


LONG = "Some-Organisation/A-Model-With-A-Long-Name-Instruct-v2"


@pytest.mark.parametrize("width", [50, 60, 80, 120, 300])
@pytest.mark.parametrize(
    ("what", "items"),
    [
        ("nodes", [node("n" * 60, http="http://" + "h" * 50), node("a")]),
        ("instances", [instance(model=LONG, node="n" * 30), instance()]),
        ("instances", [instance(state="loading", layers_resident=3, layers_total=126)]),
        ("models", [model(name=LONG, nodes=["node"] * 40, conflict=True)]),
        ("requests", [request(id="cmpl-" + "x" * 128, model=LONG), request(id="日本語" * 30)]),
    ],
)
def test_every_table_fits_and_cuts_no_figure(what, items, width):
    lines = drawn(what, items, width)
    console = Console()
    assert all(console.measure(line).maximum <= width for line in lines)
    assert len(lines) == 1 + len(items), "nothing is wrapped"
    assert "…" not in "".join(cell for cell in lines[1].split() if cell[:1].isdigit())


def test_names_cannot_command_the_terminal():
    text = "\n".join(drawn("nodes", [node("\x1b[31m[red]x\r\n\x07")], unanswered=["\x1b]0;x\x07"]))
    assert "\x1b" not in text
    assert "?[31m[red]x" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (-2, "0s"), (0, "0s"), (3.4, "3s"), (119, "119s"), (120, "2m"), (7200, "2h"),
     (200_000, "2d")],
)  # fmt: skip
def test_ages_are_short(seconds, text):
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("there", "total", "state", "text"),
    [(0, 30, "loading", "░░░░░░░░ 0/30"), (29, 30, "loading", "███████░ 29/30"),
     (30, 30, "loading", "30/30"), (30, 30, "serving", "30/30"), (0, 0, "loading", "0/0"),
     (3, 30, "gone", "3/30")],
)  # fmt: skip
def test_layers_have_a_bar_while_some_are_missing(there, total, state, text):
    item = {"layers_resident": there, "layers_total": total, "state": state}
    assert layers(item) == text


@pytest.mark.parametrize("answer", [{}, {"nodes": 3}, {"nodes": [3]}, {"nodes": [{"name": "x"}]}])
def test_an_answer_of_another_form_is_told(answer):
    with pytest.raises(BlitzError, match="as new as this command"):
        table("nodes", answer, 80)


# -- asking ----------------------------------------------------------------------------------------


def test_commands_ask_their_routes_and_print(capsys):
    asked = []

    def answer(path, headers):
        asked.append((path, headers["Authorization"]))
        return 200, {path.rpartition("/")[2]: [], "unanswered": []}

    with serving(answer) as url:
        for what in ("nodes", "instances", "models", "requests"):
            assert main(["inspect", what, "--url", url]) == 0
            assert capsys.readouterr().out == f"no {what}\n"
    assert asked == [(f"/cluster/{what}", None) for what in ("nodes", "instances", "models",
                                                             "requests")]  # fmt: skip


def test_json_is_the_answer_as_it_is(capsys):
    body = {"nodes": [node(extra="\x1b")]}
    with serving(lambda *_: (200, body)) as url:
        assert main(["inspect", "nodes", "--url", url, "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == body
    assert "\x1b" not in out


def test_url_and_key_come_from_the_environment_too(monkeypatch, capsys):
    keys = []

    def answer(path, headers):
        keys.append((path, headers["Authorization"]))
        return 200, {"nodes": []}

    with serving(answer) as url:
        monkeypatch.setenv("BLITZGW_URL", f"{url.removeprefix('http://')}/behind/")
        monkeypatch.setenv("BLITZGW_API_KEY", "one two")
        assert main(["inspect", "nodes"]) == 0
        assert main(["inspect", "nodes", "--api-key", "three"]) == 0
    assert keys == [("/behind/cluster/nodes", f"Bearer {key}") for key in ("one", "three")]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, {}, "wants an API key: give one with --api-key or $BLITZGW_API_KEY"),
        (404, {}, "has nothing at /cluster/nodes: is this a blitzgw node"),
        (503, {"error": {"message": "busy"}}, "answered 503: busy"),
        (500, b"<html>", "answered 500"),
        (302, {}, "answered 302"),
        (200, b"hello", "is not a blitzgw node: name one with --url"),
        (200, [1], "is not a blitzgw node"),
    ],
)
def test_refusals_say_what_to_do(capsys, status, body, says):
    with serving(lambda *_: (status, body)) as url:
        assert main(["inspect", "nodes", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"blitzgw: {url} ")
    assert says in err


def test_a_wrong_key_is_told_apart_from_none(capsys):
    with serving(lambda *_: (401, {})) as url:
        assert main(["inspect", "nodes", "--url", url, "--api-key", "secret"]) == 1
    err = capsys.readouterr().err
    assert "does not know this API key" in err
    assert "secret" not in err


def test_no_node_is_told_with_its_url_and_a_remedy(capsys):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert main(["inspect", "nodes", "--url", url]) == 1
    err = capsys.readouterr().err
    assert f"cannot reach {url}: Connection refused" in err
    assert "--url or $BLITZGW_URL" in err


@pytest.mark.parametrize("reply", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_what_does_not_speak_http_is_told(reply):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=once)
        thread.start()
        with pytest.raises(BlitzError):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}", "/cluster/nodes", None)
        thread.join()


def test_a_node_that_does_not_answer_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BlitzError, match=r"did not answer within 0\.1 s"):
            Asker(url, timeout_s=0.1).get("/cluster/nodes")


@pytest.mark.parametrize(
    "url",
    ["", "ftp://a", "http://", "http://a:x", "http://a:0", "http://a:99999", "http://a b",
     "http://u:p@a", "http://a?x=1", "http://a/\r\nX: y", "http://[::1"],
)  # fmt: skip
def test_what_is_no_url_is_a_mistake_of_usage(url, capsys):
    assert main(["inspect", "nodes", "--url", url]) == 2
    assert "write http://HOST:PORT" in capsys.readouterr().err


def test_a_key_that_is_none_is_a_mistake_of_usage():
    assert main(["inspect", "nodes", "--api-key", "schlüssel"]) == 2


# -- watching --------------------------------------------------------------------------------------


def watch(url, *options, **streams):
    command = [*COMMAND, "nodes", "--url", url, "--watch", "0.1", *options]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, **streams)


def interrupt(process):
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err


def test_watching_json_is_a_line_each_time_and_survives_an_outage():
    count = 0

    def answer(path, headers):
        nonlocal count
        count += 1
        return (503, {}) if count == 2 else (200, {"nodes": [], "count": count})

    with serving(answer) as url:
        process = watch(url, "--format", "json", stdout=subprocess.PIPE)
        lines = [json.loads(process.stdout.readline())["count"] for _ in range(3)]
        code, err = interrupt(process)
    assert lines == [1, 3, 4]
    assert code == 130
    assert "answered 503" in err


def test_watching_needs_a_first_answer(capsys):
    with serving(lambda *_: (401, {})) as url:
        assert main(["inspect", "nodes", "--url", url, "--watch", "0.1"]) == 1
    assert main(["inspect", "nodes", "--watch", "0"]) == 2


def test_watching_on_a_terminal_redraws_until_interrupted():
    count = 0

    def answer(path, headers):
        nonlocal count
        count += 1
        return 200, {"nodes": [node(f"number-{count}")]}

    ours, theirs = pty.openpty()
    try:
        with serving(answer) as url:
            environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
            process = watch(url, stdin=theirs, stdout=theirs, env=environment)
            text, deadline = "", time.monotonic() + 60
            while "number-3" not in text and time.monotonic() < deadline:
                text += os.read(ours, 65536).decode()
            code, _ = interrupt(process)
    finally:
        os.close(ours)
        os.close(theirs)
    assert code == 130
    assert "\x1b[1A" in text or "\x1b[2K" in text, "the same lines are drawn again"
