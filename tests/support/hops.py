"""What can stand between a client and a node: another node of the cluster, routers, a proxy.

Each is started on a free port of loopback, in front of one node, and ended with its context.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.gateway import CONTEXT, MODEL, PATIENCE_S, Node, cpu_s, run_node
from tests.support.nodes import children
from tests.support.ports import free_port
from tests.support.servers import serving

SERVING = """
[node]
name = "serving"
drain_timeout_s = 0.1
[http]
max_queue = 4096
[cluster]
port = {port}
key_file = "{key_file}"
[[devices]]
kind = "paced"
kv_bytes = "64GiB"
cost.fixed_us = {layer_us}
[[models]]
path = "{model}"
max_model_len = {context}
max_num_seqs = {max_num_seqs}
host_copies = 0
"""
FORWARDING = """
devices = []
models = []
[node]
name = "forwarding"
drain_timeout_s = 0.1
[http]
max_queue = 4096
[cluster]
port = {port}
join = ["127.0.0.1:{join}"]
key_file = "{key_file}"
"""

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream node {{ server 127.0.0.1:{node}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://node;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
POLL_S = 0.05


@dataclass(frozen=True)
class Hop:
    """Something that listens at `port`; what it costs is the time of the processes `pids`."""

    name: str
    port: int
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        """Return the processor time of all of it, in seconds."""
        return sum(map(cpu_s, self.pids))


@contextlib.contextmanager
def two_nodes(layer_us: float, max_num_seqs: int) -> Iterator[tuple[Node, Hop]]:
    """Start a node with a paced device, and one without any that forwards to it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key_file = folder / "cluster.key"
        key_file.touch(mode=0o600)
        key_file.write_text(f"{secrets.token_hex(32)}\n")
        join, port = free_port(), free_port()
        serves = SERVING.format(
            port=join,
            key_file=key_file,
            layer_us=layer_us,
            model=MODEL,
            context=CONTEXT,
            max_num_seqs=max_num_seqs,
        )
        forwards = FORWARDING.format(port=port, join=join, key_file=key_file)
        with (
            run_node("--config", str(_written(folder / "serving.toml", serves))) as node,
            run_node("--config", str(_written(folder / "forwarding.toml", forwards))) as peer,
        ):
            node.await_ready()
            peer.await_ready()
            _await_model(peer)
            yield node, Hop("blitzgw", peer.port, _family(peer.pid))


@contextlib.contextmanager
def vllm_router(program: Path, node: int) -> Iterator[Hop]:
    """Start vllm-router in front of the node that listens at a port."""
    words = [str(program), *_router_words(node), "--log-level", "warning"]
    with _in_front("vllm-router", words) as hop:
        yield hop


@contextlib.contextmanager
def sglang_router(program: Path, node: int) -> Iterator[Hop]:
    """Start sglang-router in front of the node that listens at a port."""
    words = [str(program), "launch", *_router_words(node), "--log-level", "warn"]
    with _in_front("sglang-router", words) as hop:
        yield hop


@contextlib.contextmanager
def nginx(program: Path, node: int) -> Iterator[Hop]:
    """Start nginx in front of the node that listens at a port, with one worker."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        file = _written(
            Path(folder) / "nginx.conf", NGINX.format(folder=folder, node=node, port=port)
        )
        words = [str(program), "-p", folder, "-e", "stderr", "-c", str(file)]
        with _in_front("nginx", words, port) as hop:
            yield hop


def _router_words(node: int) -> Sequence[str]:
    """Options that both routers know: the policy that has the least to do, and nobody to scrape."""
    words = ["--worker-urls", f"http://127.0.0.1:{node}", "--policy", "round_robin"]
    return [*words, "--prometheus-port", str(free_port()), "--prometheus-host", "127.0.0.1"]


@contextlib.contextmanager
def _in_front(name: str, words: Sequence[str], port: int = 0) -> Iterator[Hop]:
    """Start a program; without a port it takes one by its options."""
    if not port:
        port = free_port()
        words = [*words, "--host", "127.0.0.1", "--port", str(port)]
    ready = f"http://127.0.0.1:{port}/v1/models"
    with serving(name, words, ready, PATIENCE_S) as process:
        yield Hop(name, port, _family(process.pid))


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def _family(pid: int) -> tuple[int, ...]:
    """A process and all that come from it."""
    return (pid, *(each for child in children(pid) for each in _family(child)))


def _await_model(peer: Node) -> None:
    """Wait until a node has heard of the model that another one serves."""
    deadline = time.monotonic() + PATIENCE_S
    while MODEL.encode() not in peer.get("/v1/models")[1]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the forwarding node has not heard of {MODEL} in {PATIENCE_S:g} s")
        time.sleep(POLL_S)
