"""`blitzgw top`: what it draws at any size, and that it leaves the terminal as it was."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from blitzgw.cli import snapshot as snapshots
from blitzgw.cli.ask import Asker
from blitzgw.cli.dashboard import LEAST_ROWS, frame, shares
from blitzgw.cli.dashrows import against
from blitzgw.cli.keys import Keys, orderly_end
from blitzgw.cli.main import main
from blitzgw.cli.snapshot import Poller, look
from blitzgw.errors import BlitzError
from tests.cli.inspect_kit import instance, model, node, serving
from tests.cli.top_kit import answers, explained, loading, scaling, snapshot

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blitzgw.cli.main", "top"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("BLITZGW_URL", "BLITZGW_API_KEY", "COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def drawn(shown, width=80, height=None):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(frame(shown, width, height))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return [re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", line) for line in lines]


AT_80 = """\
blitzgw  3 nodes, 4 instances, 3 running, 12 waiting, 181 tokens/s      hh:mm:ss
MODEL         HAS  PRESS   ETA      TTFT P50/P90    TPOT P50/P90  RUN  WAIT
m             1→3   1.64  1.3s  0.12/1.64! of 1s  21/30 of 100ms    3    12
smollm2-135m    2   0.20                 - of 1s      - of 100ms    0     0
INSTANCE OF   ON      STATE    LAYERS        HELPS             RUN  WAIT   KV
m             node-1  serving  ██████ 30/30                      3    12  42%
m             node-2  loading  ██░░░░ 10/30  → node-1            0     0   0%
m             node-3  loading  ███░░░ 17/30  → node-1 [0, 12)    0     0   0%
smollm2-135m  node-3  serving  ██████ 30/30                      0     0  42%
NODE    STATUS  INSTANCES  RUN  WAIT  DEVICES     HTTP                      UP
"""


def test_the_picture_at_80_columns():
    lines = drawn(snapshot(), 80, 24)
    assert lines[:10] == AT_80.splitlines()
    assert lines[10].startswith("node-1  alive           1    3    12  cpu 16 GiB  http://")
    assert lines[13].startswith("node-4  dead            0    0     0  cpu 16 GiB")
    assert lines[14] == "EVENTS"
    assert lines[15] == "hh:mm:ss  operation  m: op-1 begins, 1 → 4 instances, by chain"
    assert lines[16].startswith("hh:mm:ss  decision   m: grow 1 → 3: 18400 prompt tokens")
    assert lines[16].endswith("…")
    assert len(lines) == 17


def test_a_wide_terminal_has_more_columns_and_air():
    lines = drawn(snapshot(), 140, 40)
    assert lines[0].endswith("http://127.0.0.1:8000  hh:mm:ss  q ends")
    assert lines[2].split()[:5] == ["MODEL", "MODE", "HAS", "PRESS", "ETA"]
    assert lines[4].split()[:4] == ["smollm2-135m", "set", "to", "2"]
    assert lines[6].split()[-2:] == ["PREFILL/S", "TOKENS/S"]
    assert lines[7].split()[-2:] == ["2,267", "181"]
    assert [i for i, line in enumerate(lines) if not line] == [1, 5, 11, 17]


def test_tokens_per_second_are_shown_at_80_columns_while_nobody_helps():
    calm = snapshot(instances=(instance(), instance(running=0, decode_step_s=None)))
    lines = drawn(calm, 80, 24)
    assert lines[4].split()[-1] == "TOKENS/S"
    assert [line.split()[-1] for line in lines[5:7]] == ["181", "0"]


def test_one_of_several_devices_has_its_name():
    pair = node(devices=[*node()["devices"], *node()["devices"]])
    lines = drawn(snapshot(nodes=(pair, node("node-2"))), 140)
    assert "node-1/cpu0" in lines[7]
    assert "→ node-1/cpu0" in lines[8]


def test_what_is_not_known_is_left_blank():
    unknown = dict.fromkeys(
        ("running", "waiting", "queued_tokens", "kv_usage", "prefill_tokens_per_s",
         "decode_step_s", "load_age_s")
    )  # fmt: skip
    older = {key: value for key, value in model().items() if key != "scaling"}
    bare = snapshot(
        nodes=(node(host=None, http=None, devices=[]),),
        instances=(instance(**unknown),),
        models=(older, model(name="x", scaling=None, wish=None), model(prevails=False)),
        why=(),
        operations=(),
        missing=("why", "operations"),
    )
    lines = drawn(bare)
    assert lines[1] == "not told: why, operations"
    assert lines[4].split() == ["smollm2-135m", "1", "0", "0"]
    assert "none yet" in lines


def test_a_cluster_of_nothing_says_so():
    empty = snapshot(nodes=(), instances=(), models=(), why=(), operations=())
    lines = drawn(empty, 80, 24)
    assert lines[1:] == ["no models", "no instances", "no nodes", "EVENTS", "none yet"]


def test_what_is_wrong_stands_below_the_head():
    text = drawn(replace(snapshot(), problem="cannot reach it\x1b", silent_s=4.4))[1]
    assert text == "nothing new for 4 s: cannot reach it?"


@pytest.mark.parametrize("no_color", [True, False])
def test_missed_targets_are_red_and_marked_for_those_who_see_no_colours(monkeypatch, no_color):
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(width=120, force_terminal=True, record=True, color_system="256")
    with console.capture() as capture:
        console.print(frame(snapshot(), 120, 30))
    text = capture.get()
    assert "1.64! of 1s" in text
    assert ("\x1b[31m" in text) != no_color


def test_names_cannot_command_the_terminal():
    bad = "\x1b[31m\x07\r\n"
    shown = snapshot(
        nodes=(node(bad, bad, http=bad),),
        instances=(instance(model=bad, node=bad, device=bad, state=bad, helps=bad),),
        models=(model(name=bad, wish=None, scaling=scaling(mode=bad)),),
        why=(explained(bad),),
    )
    text = "\n".join(drawn(replace(shown, url=bad, problem=bad), 140, 40))
    assert "\x1b" not in text
    assert "\x07" not in text


LONG = "Some-Organisation/A-Model-With-A-Long-Name-Instruct-v2"


def large():
    """A cluster of many nodes, with names that are long or wide."""
    return snapshot(
        nodes=tuple(node(f"a-host-with-a-long-name-{i}.example.com") for i in range(64)),
        instances=(
            *(instance(id=f"i{i}", model=LONG, node=f"a-host-{i}") for i in range(60)),
            instance(model="日本語" * 20, waiting=500),
            loading(2),
        ),
        models=tuple(model(name=f"{LONG}-{i}", wish=None, scaling=scaling()) for i in range(8)),
    )


@pytest.mark.parametrize("width", [60, 80, 100, 140, 300])
@pytest.mark.parametrize("height", [4, 10, 24, 31, 60, 200])
@pytest.mark.parametrize("make", [snapshot, large])
def test_it_fits_any_terminal(make, width, height):
    lines = drawn(make(), width, height)
    console = Console()
    assert len(lines) <= max(height, 5)
    assert all(console.measure(line).maximum <= width for line in lines)


def test_what_does_not_fit_is_counted_and_what_matters_stays():
    lines = drawn(large(), 100, 24)
    text = "\n".join(lines)
    assert re.search(r"… \d+ more", text)
    assert "loading" in text, "an instance that changes is shown before those that serve"
    assert "日本語" in text, "so is the busiest one"
    assert any("EVENTS" in line for line in lines)
    whole = drawn(large(), 100)
    assert "more" not in "\n".join(whole)
    assert len(whole) > 130


@settings(max_examples=200)
@given(st.lists(st.integers(0, 100), max_size=6), st.integers(-5, 200))
def test_lines_are_shared_out_fairly(wanted, room):
    given_ = shares(wanted, room)
    assert all(0 <= got <= want for got, want in zip(given_, wanted, strict=True))
    assert sum(given_) == min(max(0, room), sum(wanted))
    if room >= LEAST_ROWS * len(wanted):
        pairs = zip(given_, wanted, strict=True)
        assert all(got >= min(want, LEAST_ROWS) for got, want in pairs)


@pytest.mark.parametrize("more", [{"nodes": ({},)}, {"models": (3,)}, {"instances": ({"id": 1},)}])
def test_a_snapshot_of_another_form_is_told(more):
    with pytest.raises(BlitzError, match="as new as this command"):
        frame(snapshot(**more), 80, 24)


# -- looking ---------------------------------------------------------------------------------------


def test_one_picture_and_one_snapshot(capsys, monkeypatch):
    with serving(answers()) as url:
        monkeypatch.setenv("BLITZGW_URL", url)
        assert main(["top", "--once"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("blitzgw  3 nodes, 4 instances")
        assert "q ends" not in lines[0]
        assert any("grow 1 → 3: 18400 prompt tokens are queued" in line for line in lines)
        assert main(["top", "--format", "json"]) == 0
        told = json.loads(capsys.readouterr().out)
    assert list(told) == [
        "url", "at_s", "nodes", "instances", "models", "why", "operations", "missing", "problem",
        "silent_s",
    ]  # fmt: skip
    assert (told["url"], told["missing"]) == (url, [])
    assert told["why"][0]["quantiles"]["ttft_p90_s"] == 1.64


def test_off_a_terminal_it_says_what_to_do(capsys):
    assert main(["top"]) == 2
    assert "elsewhere use --once, or --format json" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--once"], ["--format", "json"]])
def test_no_node_is_told_with_a_remedy(capsys, options):
    assert main(["top", "--url", "http://127.0.0.1:9", *options]) == 1
    assert "--url or $BLITZGW_URL" in capsys.readouterr().err


def test_a_node_that_knows_no_reasons_is_looked_at_all_the_same():
    full = answers()

    def answer(path, headers):
        return (503, {}) if path in ("/cluster/why", "/cluster/operations") else full(path, headers)

    with serving(answer) as url:
        seen = look(Asker(url))
    assert (len(seen.nodes), seen.why, seen.missing) == (4, (), ("why", "operations"))
    with serving(lambda *_: (200, {})) as url, pytest.raises(BlitzError, match="as new as"):
        look(Asker(url))


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def test_a_node_out_of_reach_is_asked_on(monkeypatch):
    monkeypatch.setattr(snapshots, "POLL_S", 0.01)
    full, away = answers(), threading.Event()

    def answer(path, headers):
        return (503, {}) if away.is_set() else full(path, headers)

    with serving(answer) as url:
        first = look(Asker(url))
        with Poller(Asker(url), first) as poller:
            until(lambda: poller.latest().at_s > first.at_s)
            away.set()
            until(lambda: poller.latest().problem)
            last = poller.latest()
            assert "answered 503" in last.problem
            assert (last.nodes, last.silent_s >= 0) == (first.nodes, True)
            away.clear()
            until(lambda: not poller.latest().problem)
            thread = poller._thread
        until(lambda: not thread.is_alive())


# -- on a terminal ---------------------------------------------------------------------------------


class Terminal:
    """`blitzgw top` on a terminal of its own, which its own session has."""

    def __init__(self, url, rows=24, columns=80, **environment):
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.resize(rows, columns)
        more = {"TERM": "xterm-256color", "BLITZGW_URL": url, **environment}
        self.process = subprocess.Popen(
            COMMAND, cwd=ROOT, env=os.environ | more, stdin=self.theirs, stdout=self.theirs,
            stderr=self.theirs, start_new_session=True,
        )  # fmt: skip
        self.text = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds):
        if select.select([self.ours], [], [], seconds)[0]:
            self.text += os.read(self.ours, 65536).decode(errors="replace")
            return True
        return False

    def until(self, text, seconds=60.0):
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, self.text[-2000:]
            self.read(0.1)

    def press(self, keys):
        os.write(self.ours, keys)

    def end(self):
        """Wait for the end; return the exit code and the terminal's modes afterwards."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.05)
        while self.read(0.05):
            pass
        return self.process.wait(1), termios.tcgetattr(self.theirs)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal():
    opened = []

    def make(url, **more):
        opened.append(Terminal(url, **more))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


ENDS = {
    "q": (lambda t: t.press(b"q"), 0),
    "Q after others": (lambda t: t.press(b"xyz Q"), 0),
    "interrupt": (lambda t: t.process.send_signal(signal.SIGINT), 130),
    "SIGTERM": (lambda t: t.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    "SIGHUP": (lambda t: t.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_leaves_the_terminal_as_it_was(terminal, end):
    act, code = ENDS[end]
    with serving(answers()) as url:
        screen = terminal(url)
        screen.until("EVENTS")
        during = termios.tcgetattr(screen.theirs)
        assert not during[3] & (termios.ICANON | termios.ECHO)
        act(screen)
        ended, after = screen.end()
    assert ended == code
    assert after == screen.before
    assert screen.text.index("\x1b[?1049h") < screen.text.rindex("\x1b[?1049l")
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")
    assert "Traceback" not in screen.text


def test_it_goes_on_without_its_node_fits_a_new_size_and_ignores_arrows(terminal):
    full, away = answers(), threading.Event()

    def answer(path, headers):
        return (503, {}) if away.is_set() else full(path, headers)

    with serving(answer) as url:
        screen = terminal(url, NO_COLOR="1")
        screen.until("EVENTS")
        assert "q ends" not in screen.text
        screen.press(b"\x1b[A\x1bq")
        screen.resize(40, 140)
        screen.until("q ends")
        away.set()
        screen.until("nothing new for")
        away.clear()
        seen = len(screen.text)
        screen.until("EVENTS", 60)
        until(lambda: screen.read(1.0) and "EVENTS" in screen.text[seen:])
        screen.press(b"q")
        code, after = screen.end()
    assert (code, after) == (0, screen.before)
    assert "\x1b[31m" not in screen.text


def test_an_answer_of_another_form_in_the_middle_leaves_the_terminal_as_it_was(terminal):
    full, odd = answers(), threading.Event()

    def answer(path, headers):
        if odd.is_set() and path == "/cluster/nodes":
            return 200, {"nodes": [{"name": 1}]}
        return full(path, headers)

    with serving(answer) as url:
        screen = terminal(url)
        screen.until("EVENTS")
        odd.set()
        screen.until("as new as this command")
        screen.press(b"q")
        code, after = screen.end()
    assert (code, after) == (0, screen.before)
    assert "Traceback" not in screen.text


def test_off_a_terminal_there_are_no_keys(tmp_path):
    with (tmp_path / "file").open("w+") as file, Keys(file) as keys:
        assert keys.wait(0.01) == ""


def test_a_terminal_that_goes_away_has_no_more_keys():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stream, Keys(stream) as keys:
        os.close(ours)
        assert keys.wait(0.01) == ""
        assert keys.wait(0.01) == ""


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)

    def stay():
        with orderly_end():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    with pytest.raises(SystemExit) as ended:
        stay()
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("p50", "p90", "target", "text"),
    [
        (0.0248, 0.0516, 1.0, "0.02/0.05 of 1s"),
        (0.021, 0.03, 0.1, "21/30 of 100ms"),
        (0.0076, 12.34, 0.1, "0.01/12.3! of 0.1s"),
        (None, 0.5, 1.0, "-/0.50 of 1s"),
        (None, None, 1.0, "- of 1s"),
        (None, None, None, ""),
        (0.5, 1.5, None, "0.50/1.50s"),
    ],
)
def test_latencies_stand_against_their_target_in_one_unit(p50, p90, target, text):
    known = {"ttft_p50_s": p50, "ttft_p90_s": p90}
    assert against({"quantiles": known, "targets": {"ttft": target}}, "ttft") == text
