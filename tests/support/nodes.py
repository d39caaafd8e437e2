"""Nodes as real processes, and clients that talk to them over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from blitzgw.cli.main import main; sys.exit(main())"

PATIENCE_S = 60.0
"""Longest wait for anything in these tests; none should come near it."""

MODEL = "smollm2-135m"

BASE = """
[node]
name = "test"
{node}
[http]
port = 0
{http}
[cluster]
{cluster}
"""
PACED = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "{kv}"
cost = {{ fixed_us = {fixed_us} }}
[[models]]
path = "smollm2-135m"
max_model_len = 2048
{model}
"""
CPU = """
[[devices]]
kind = "cpu"
threads = 2
kv_bytes = "{kv}"
[[models]]
path = "smollm2-135m"
dtype = "float32"
max_model_len = 2048
{model}
"""


def paced(*, fixed_us=100.0, kv="1GiB", model="", **tables) -> str:
    """A configuration with the real model's text and a device that makes tokens up."""
    return _base(tables) + PACED.format(fixed_us=fixed_us, kv=kv, model=model)


def cpu(*, kv="1GiB", model="", **tables) -> str:
    """A configuration with the real model in float32."""
    return _base(tables) + CPU.format(kv=kv, model=model)


def _base(tables) -> str:
    return BASE.format(**{"node": "", "http": "", "cluster": ""} | tables)


def children(pid: int) -> list[int]:
    """The processes that a process has started and not reaped."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, and after
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # an orphan that nobody reaps


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE_S} s"
        time.sleep(0.01)
    return found


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class Node:
    """A `blitzgw run` that listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self.port = 0
        self.workers_seen: set[int] = set()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._log.read_text()

    def workers(self) -> list[int]:
        found = [pid for pid in children(self.pid) if b"blitzgw.worker" in _command_line(pid)]
        self.workers_seen.update(found)
        return found

    def worker(self) -> int:
        """The pid of the only worker, once there is one."""
        return until(self.workers, "a worker")[0]

    def kill_worker(self) -> None:
        """Kill the only worker and wait until it is dead."""
        pid = self.worker()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid), "the worker's death")

    def listen(self) -> Node:
        """Wait until it listens; the log says where."""

        def port() -> int:
            assert self.process.poll() is None, self.log()
            found = re.search(r"listening url=http://\S+:(\d+) ", self.log())
            return int(found[1]) if found else 0

        self.port = until(port, "listening")
        return self

    def ready(self) -> Node:
        """Wait until it takes requests."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.get("/ready").status == 200

        until(is_ready, "being ready")
        self.workers()
        return self

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, headers)

    def request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            typed = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, typed | headers)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def complete(self, prompt: Any, max_tokens: int = 16, **fields: Any) -> dict[str, Any]:
        """A completion, greedy unless told otherwise; it must succeed."""
        body = completion(prompt, max_tokens, **fields)
        reply = self.post("/v1/completions", body)
        assert reply.status == 200, reply.body
        return reply.json

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} "))
        )

    def load(self) -> tuple[int, int]:
        """How many requests run and wait."""
        models = self.get("/load").json["models"].values()
        return sum(m["running"] for m in models), sum(m["waiting"] for m in models)

    def resident_mib(self) -> int:
        """The resident memory of the asyncio process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[1]) >> 10

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end and return the exit status; no worker may be left."""
        code = self.process.wait(PATIENCE_S)
        left = [pid for pid in self.workers_seen if not is_gone(pid)]
        assert not left, f"workers {left} have been left behind"
        return code


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def start(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, before: str = ""
) -> Node:
    """Start `blitzgw run` with arguments, after some code; its log goes to a file in `folder`."""
    log = folder / f"node-{time.monotonic_ns()}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", before + MAIN, "run", *arguments],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **(env or {})},
        )
    return Node(process, log)


@contextlib.contextmanager
def running(folder: Path, toml: str, *, ready: bool = True) -> Iterator[Node]:
    """A node with a configuration. At the end it is asked to stop, and must leave nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "node.toml"
    file.write_text(toml)
    node = start(folder, "--config", str(file))
    try:
        node.listen()
        yield node.ready() if ready else node
        if node.process.poll() is None:
            node.workers()
            node.signal(signal.SIGTERM)
            assert node.end() == 0, node.log()
        assert "Traceback" not in node.log()
    finally:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()
        sys.stdout.write(node.log()[-20_000:])  # pytest shows it where a test fails


def completion(prompt: Any, max_tokens: int = 16, **fields: Any) -> dict[str, Any]:
    """The body of a completion, greedy unless told otherwise."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return body | fields


@dataclass
class Answer:
    """What came out of a stream."""

    status: int = 0
    texts: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    on_text: Callable[[], None] = lambda: None,
    answer: Answer | None = None,
) -> Answer:
    """Stream a completion to its end."""
    answer = answer or Answer()
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        answer.status = response.status
        if response.status != 200:
            answer.error = (await response.json())["error"]
            return answer
        async for line in response.content:
            _take(answer, line.decode().strip(), on_text)
    return answer


def _take(answer: Answer, line: str, on_text: Callable[[], None]) -> None:
    if not line:
        return
    assert line.startswith("data: "), line
    if line == "data: [DONE]":
        answer.done = True
        return
    assert not answer.done, "something after the end"
    chunk = json.loads(line.removeprefix("data: "))
    if "error" in chunk:
        answer.error = chunk["error"]
        return
    answer.usage = chunk.get("usage") or answer.usage
    for choice in chunk["choices"]:
        answer.texts.append(choice["text"])
        answer.at_s.append(time.monotonic())
        answer.finish = choice["finish_reason"] or answer.finish
        on_text()


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=2 * PATIENCE_S),
    )


async def stream_all(
    url: str, bodies: list[dict[str, Any]], on_text: Callable[[], None] = lambda: None
) -> list[Answer]:
    """Stream all at once."""
    async with client() as session:
        return await asyncio.gather(*(stream(session, url, body, on_text) for body in bodies))
