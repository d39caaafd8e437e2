"""A real node as a process of its own, and a lean client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from tests.support.ports import free_port

MODEL = "smollm2-135m"
CONTEXT = 2048
PATIENCE_S = 60.0
KEPT_BYTES = 2048
PROCESS_CPU = 2  # CPUCLOCK_SCHED of Linux: in ns, where /proc counts in 10 ms
CONTENT, END = b'"delta":{"content":', b"0\r\n\r\n"

PACED = """
node.drain_timeout_s = 0.1
http.max_queue = 4096
[[devices]]
kind = "paced"
kv_bytes = "64GiB"
cost.fixed_us = {layer_us}
[[models]]
path = "{model}"
max_model_len = {context}
max_num_seqs = {max_num_seqs}
max_batched_tokens = {max_batched_tokens}
prefix_caching = {caching}
"""


class NodeFailed(Exception):
    """A node ended, or did not become ready; its log follows."""


class Node:
    """A running `blitzgw run`. `pid` is the asyncio process, `worker` its child."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.pid, self.port = process, process.pid, port

    @property
    def worker(self) -> int:
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def load(self) -> int:
        """Return how many requests run or wait."""
        return int(json.loads(self.get("/load")[1])["server_load"])

    def await_ready(self, path: str = "/ready", poll_s: float = 0.01) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get(path)[0] == 200:
                    return
            time.sleep(poll_s)
        raise NodeFailed


@contextlib.contextmanager
def run_node(*arguments: str) -> Iterator[Node]:
    """Start a node on a free port, and end it whatever happens."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("blitzgw")), "run", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *arguments], stderr=log, start_new_session=True)
        try:
            yield Node(process, port)
        except NodeFailed as failure:
            log.seek(0)
            raise NodeFailed(log.read().decode()) from failure
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()  # its worker ends with it
                process.wait()


@contextlib.contextmanager
def paced_node(layer_us: float, *, caching: bool = True, max_num_seqs: int = 64) -> Iterator[Node]:
    """Start a node on a paced device whose layers take `layer_us`, and wait until it is ready."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        switch = str(caching).lower()
        values = {"layer_us": layer_us, "caching": switch, "max_num_seqs": max_num_seqs}
        values["max_batched_tokens"] = max(512, 2 * max_num_seqs)
        file.write(PACED.format(model=MODEL, context=CONTEXT, **values))
        file.flush()
        with run_node("--config", file.name) as node:
            node.await_ready()
            yield node


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process, all its threads together, ended ones too."""
    return time.clock_gettime(~pid << 3 | PROCESS_CPU)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


class Stream(asyncio.Protocol):
    """One keep-alive connection: sends a request, notes the first token, the bytes and the end."""

    def __init__(self) -> None:
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        """Begin; `first` will be the seconds to the first token, `done` the answer's last bytes."""
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[float] = loop.create_future()
        self.done: asyncio.Future[bytes] = loop.create_future()
        self._tail = b""
        self._sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.bytes += len(data)
        self._tail = data if len(data) >= KEPT_BYTES else (self._tail + data)[-KEPT_BYTES:]
        if not self.first.done() and CONTENT in self._tail:
            self.first.set_result(now - self._sent)
        if data.endswith(END) and not self.done.done():
            self.done.set_result(self._tail)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.first, self.done):
            future.cancel()


async def connect(port: int, count: int) -> list[Stream]:
    loop = asyncio.get_running_loop()
    pairs = [await loop.create_connection(Stream, "127.0.0.1", port) for _ in range(count)]
    return [stream for _, stream in pairs]


def chat(prompt: str, max_tokens: int) -> bytes:
    """Return an HTTP request for exactly so many tokens, with their number at the end."""
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,  # the same tokens each time, among them no special ones without text
    }
    body = json.dumps(fields).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def usage(tail: bytes, field: str) -> int:
    """Return a number of the usage chunk that ends an answer."""
    return int(tail.rpartition(f'"{field}":'.encode())[2].partition(b",")[0])
