"""`blitzgw run --local-nodes` as a real process, over nodes that only pretend."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.nodes import is_gone

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

FAKE = """
import sys, types
if "blitzgw.cli.start" in sys.orig_argv:
    node = types.ModuleType("blitzgw.node")
    def run(config):
        import local_fake
        return local_fake.run(config)
    node.run = run
    import blitzgw
    blitzgw.node = sys.modules["blitzgw.node"] = node
"""
"""A sitecustomize: stands in for the node wherever `-m blitzgw.cli.start` runs."""

NODE = """
import http.server, json, os, pathlib, signal, sys, threading

def run(config):
    name, folder = config.node.name, pathlib.Path(os.environ["FAKE_DIR"])
    if (folder / f"{name}.fails").exists():
        print("cannot do it", file=sys.stderr)
        return 7
    stubborn, patient = ((folder / word).exists() for word in ("stubborn", "patient"))
    hurry, stop = threading.Event(), threading.Event()

    def on_signal(number, frame):
        print("signal", signal.Signals(number).name, flush=True)
        if stop.is_set() and number == signal.SIGINT:
            hurry.set()
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Authorization"] in {f"Bearer {k}" for k in config.http.api_keys}
            self.send_response(200 if known or not config.http.api_keys else 401)
            self.send_header("x-blitzgw-node", name)
            self.send_header("Content-Length", "0")
            self.end_headers()
        def log_message(self, *_): pass

    server = http.server.ThreadingHTTPServer((config.http.host, config.http.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    facts = {
        "pid": os.getpid(), "group": os.getpgid(0), "argv": sys.argv, "name": name,
        "http": config.http.port, "host": config.cluster.host, "port": config.cluster.port,
        "advertise": config.cluster.advertise, "join": config.cluster.join,
        "keys": config.cluster_keys, "api_keys": config.http.api_keys,
        "threads": [d.threads for d in config.devices],
        "kv_bytes": [d.kv_bytes for d in config.devices],
        "variable": os.environ.get("BLITZGW_CLUSTER_KEY"),
    }
    (folder / f"{name}.tmp").write_text(json.dumps(facts))
    (folder / f"{name}.tmp").rename(folder / f"{name}.json")
    print("serving", file=sys.stderr)
    while not stop.wait(0.02) or stubborn or (patient and not hurry.is_set()):
        stop.is_set() and hurry.wait(0.02)
    return 130 if hurry.is_set() else 0
"""

CONFIG = """
models = []
[node]
drain_timeout_s = 30
[[devices]]
kind = "paced"
"""


class Family:
    """A running parent, and what its nodes tell about themselves."""

    def __init__(self, process: subprocess.Popen, folder: Path, log: Path) -> None:
        self.process, self.folder, self._log = process, folder, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def lines(self, name: str) -> list[str]:
        """What a node has said."""
        prefix = f"{name} | "
        return [line.removeprefix(prefix) for line in self.log.splitlines()
                if line.startswith(prefix)]  # fmt: skip

    def facts(self, name: str) -> dict:
        file = self.folder / f"{name}.json"
        self.until(file.exists, f"{name}'s facts")
        return json.loads(file.read_text())

    def until(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what}:\n{self.log}"
            time.sleep(0.02)
        return found

    def ready(self) -> Family:
        """Wait for the table of URLs."""
        self.until(lambda: "Ready" in self.log or self.process.poll() is not None, "table")
        assert self.process.poll() is None, self.log
        return self

    def end(self, *numbers: int) -> int:
        """Send signals, each after the last one has reached every node; return the exit code."""
        for i, number in enumerate(numbers):
            self.process.send_signal(number)
            if i + 1 < len(numbers):
                time.sleep(0.5)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def family(tmp_path, *options, config=CONFIG, fake=True, env=None, **streams):
    """Run `blitzgw run --local-nodes …` with pretended nodes; nothing may be left behind."""
    (tmp_path / "sitecustomize.py").write_text(FAKE)
    (tmp_path / "local_fake.py").write_text(NODE)
    file = tmp_path / "node.toml"
    if not file.exists():
        file.write_text(config)
    environment = {key: value for key, value in os.environ.items() if "BLITZGW" not in key}
    environment |= {"FAKE_DIR": str(tmp_path), "BLITZGW_CACHE": str(tmp_path), **(env or {})}
    if fake:
        environment["PYTHONPATH"] = str(tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "blitzgw.cli.start", "run", "--config", str(file), *options],
            cwd=ROOT,
            env=environment,
            **({"stdout": stream, "stderr": stream} | streams),
        )
    ours = Family(process, tmp_path, log)
    try:
        yield ours
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        pids = [json.loads(file.read_text())["pid"] for file in tmp_path.glob("*.json")]
        ours.until(lambda: all(map(is_gone, pids)), "end of every node")
