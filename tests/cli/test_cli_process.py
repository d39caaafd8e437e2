"""Commands as real processes: start-up time, exit codes, signals, closed pipes."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from blitzgw.cli.start import main; sys.exit(main())"
NODE = """
import sys, time, types
node = types.ModuleType("blitzgw.node")
def run(config):
    print("serving", flush=True)
    time.sleep(60)
    return 0
node.run = run
import blitzgw
blitzgw.node = sys.modules["blitzgw.node"] = node
"""


SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "blitzgw.cli.serve":
            print("reading", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""


def start(*arguments, before="", **options):
    command = [sys.executable, "-c", before + MAIN, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_an_interrupt_while_commands_are_read_is_no_traceback():
    process = start("run", before=SLOW)
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")


def test_help_is_quick():
    """Processor time, because the machine may have more to do than this."""
    durations = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert finish(start("--help"))[0] == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if durations[-1] < 0.25:
            return
    pytest.fail(f"--help took {min(durations):.2f} s at best")


@pytest.mark.parametrize("command", [["run"], ["inspect", "nodes"]])
def test_help_loads_nothing_heavy(command):
    after = "import atexit; atexit.register(lambda: print(*sys.modules))\n"
    _, out, _ = finish(start(*command, "--help", before=f"import sys; {after}"))
    loaded = set(out.splitlines()[-1].split())
    assert "click" in loaded
    heavy = {"torch", "numpy", "msgspec", "asyncio", "aiohttp", "tomllib", "rich", "http.client"}
    heavy |= {"blitzgw.weights"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--version"], 0, ""),
        (["frobnicate"], 2, "No such command"),
        (["run", "--port", "x"], 2, "not a valid integer"),
        (["run", "--port", "-5"], 2, "blitzgw: --port: -5 is not a port"),
        (["run", "--config", "/nowhere.toml"], 2, "blitzgw: /nowhere.toml: cannot be read"),
        (["check-config", "/nowhere.toml"], 2, "blitzgw: /nowhere.toml: cannot be read"),
        (["models", "add", "/nowhere"], 1, "blitzgw: "),
    ],
)
def test_exit_codes(arguments, code, says, tmp_path):
    environment = os.environ | {"BLITZGW_CACHE": str(tmp_path)}
    returned, _, err = finish(start(*arguments, env=environment))
    assert returned == code
    assert says in err
    assert "Traceback" not in err


def test_an_interrupt_ends_without_a_traceback():
    process = start("run", before=NODE)
    assert process.stdout.readline() == "serving\n"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["check-config", "config.example.toml"]])
def test_a_closed_pipe_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*arguments, stdout=writer)
    os.close(writer)
    code, _, err = finish(process)
    assert code != 0
    assert err == ""


def announce(pid, port):
    command = [sys.executable, "-m", "blitzgw.cli.announce", str(pid), "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)


SERVER = """
import http.server, sys, time
begin = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() > begin + 1 else 503)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_ready_server_is_announced_with_a_curl_line(port):
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    try:
        _, err = announce(server.pid, port).communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert re.search(rf"curl -N http://127\.0\.0\.1:{port}/v1/chat/completions", err)


def test_the_announcer_ends_with_a_server_that_never_gets_ready(port):
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"])
    waiter = announce(server.pid, port)
    server.wait()
    _, err = waiter.communicate(timeout=60)
    assert (waiter.returncode, err) == (0, "")
