"""`blitzgw run --local-nodes N`: N nodes of one service on this machine.

Each is an ordinary `blitzgw run` with the same options and file, but a name and ports of its own,
a share of the cores and memory, and the others to join. They speak over loopback and are sealed by
a key that only they know, unless one is configured.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from blitzgw.configfile.keys import CLUSTER_KEY_VARIABLE
from blitzgw.errors import BlitzError, ConfigError

if TYPE_CHECKING:
    from blitzgw.config import Config
    from blitzgw.core.instance import DeviceSpec

LOOPBACK = "127.0.0.1"

MAX_PORT = 65535

SEEDS = 3
"""Each node is told the first few, so that one that does not start keeps nobody apart."""

KEY_BYTES = 32
"""Randomness of the key for one run."""

PORT_TRIES = 100
"""A port that is free for TCP is nearly always free for UDP too."""

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

_OWN = frozenset(
    {"api_key", "cluster_advertise", "cluster_host", "cluster_port", "join", "local_nodes", "name"}
    | {"part_of", "port"}
)
"""Parameters of `run` that each node gets anew, or by its environment."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node to be started. `host` and `port` are where clients of this machine reach its API."""

    name: str
    host: str
    port: int
    command: tuple[str, ...]

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://{_bracketed(self.host)}:{self.port}"


def fresh_key() -> dict[str, str]:
    """Return an environment with a cluster key for one run."""
    return {CLUSTER_KEY_VARIABLE: secrets.token_hex(KEY_BYTES)}


def run_nodes(context: click.Context, config: Config) -> int:
    """Run the nodes of a command line until they have ended; return the exit code.

    Raises BlitzError where there are not enough free ports.
    """
    from blitzgw.cli.children import Children  # noqa: PLC0415  keeps --help quick

    nodes = plan(context, config)
    patience_s = config.node.drain_timeout_s * config.node.dilation
    key = next(iter(config.http.api_keys), "")
    children = Children(nodes, _environment(context.params, config), patience_s, key)
    for text in _crowding(config):
        click.echo(f"warning: {text}", err=True)
    return children.run()


def plan(context: click.Context, config: Config) -> list[LocalNode]:
    """Return the nodes with their command lines; raises BlitzError and ConfigError."""
    from blitzgw.cli.announce import reachable_host  # noqa: PLC0415

    count = context.params["local_nodes"]
    prefix = context.params["name"] or "node"
    http = _ports("http.port", config.http.host, config.http.port, count)
    cluster = _ports("cluster.port", LOOPBACK, config.cluster.port, count)
    seeds = [f"{LOOPBACK}:{port}" for port in cluster[:SEEDS]]
    base, rest = _words(context)
    nodes = []
    for i in range(count):
        name, me = f"{prefix}-{i + 1}", f"{LOOPBACK}:{cluster[i]}"
        own = [
            f"--name={name}",
            f"--port={http[i]}",
            f"--cluster-host={LOOPBACK}",
            f"--cluster-advertise={LOOPBACK}",
            f"--cluster-port={cluster[i]}",
            *(f"--join={seed}" for seed in (*config.cluster.join, *seeds) if seed != me),
        ]
        command = (*base, *own, "--part-of", str(os.getpid()), str(count), *rest)
        nodes.append(LocalNode(name, reachable_host(config), http[i], command))
    return nodes


def follow_parent(pid: int) -> None:
    """Ask Linux to kill this process when process `pid`, its parent, dies; end if it has already.

    The parent must have started it from its main thread: it is the thread that counts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != pid:
        raise BlitzError(f"process {pid}, for which this is a local node, has gone")


def with_share(config: Config, count: int) -> Config:
    """Return the configuration of one of `count` nodes that share this machine's cores and memory.

    Divided is what a cpu device would take automatically; what is written stays.
    """
    if not any(device.kind == "cpu" for device in config.devices):
        return config
    from blitzgw.placement import CPU_KV_SHARE  # noqa: PLC0415  keeps the parent small
    from blitzgw.worker.discovery import available_memory_bytes  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = max(1, cores // count)
    kv_bytes = int(CPU_KV_SHARE * available_memory_bytes()) // count

    def share(device: DeviceSpec) -> DeviceSpec:
        if device.kind != "cpu":
            return device
        return replace(
            device, threads=device.threads or threads, kv_bytes=device.kv_bytes or kv_bytes
        )

    return replace(config, devices=tuple(map(share, config.devices)))


def _crowding(config: Config) -> list[str]:
    """Warn where each node would take most of the same GPU's memory for KV."""
    greedy = [
        device.id for device in config.devices if device.kind == "cuda" and not device.kv_bytes
    ]
    text = f"all nodes share {', '.join(greedy)}: set kv_bytes in [[devices]] to a part for each"
    return [text] if greedy else []


def _words(context: click.Context) -> tuple[list[str], list[str]]:
    """Return what all nodes' command lines share: before their own options, and after them."""
    words = [sys.executable, "-P", "-m", "blitzgw.cli.start", "run"]
    rest: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name in _OWN or value in (None, ()):
            continue
        if isinstance(parameter, click.Argument):
            rest += ["--", str(value)]
        else:
            values = value if parameter.multiple else (value,)
            words += [f"{parameter.opts[0]}={one}" for one in values]
    return words, rest


def _environment(parameters: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Return the nodes' environment: keys go this way, because command lines can be seen."""
    environment = dict(os.environ)
    if parameters["api_key"]:
        environment["BLITZGW_API_KEY"] = " ".join(parameters["api_key"])
    if not config.cluster.key_file:
        environment[CLUSTER_KEY_VARIABLE] = ",".join(config.cluster_keys)
    return environment


def _ports(key: str, host: str, first: int, count: int) -> list[int]:
    """Return a port for each node: `first` and those after it, or any that are free."""
    if not first:
        return list(_free_ports(host, count))
    if first + count - 1 > MAX_PORT:
        text = f"{count} nodes need {key} {first} to {first + count - 1}, and {MAX_PORT} is the"
        raise ConfigError([f"--local-nodes: {text} last; choose a lower port"])
    return list(range(first, first + count))


def _free_ports(host: str, count: int) -> Iterator[int]:
    """Yield different ports of an address that are free for TCP and UDP."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with ExitStack() as taken:
            for _ in range(count):
                yield _take_port(family, str(address[0]), taken)
    except OSError as error:
        raise BlitzError(f"no free port on {host}: {error.strerror}") from error


def _take_port(family: int, host: str, taken: ExitStack) -> int:
    """Bind a port that stays taken while `taken` is open; raises OSError."""
    for _ in range(PORT_TRIES):
        with ExitStack() as sockets:
            stream = sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
            stream.bind((host, 0))
            port = int(stream.getsockname()[1])
            packets = sockets.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            with suppress(OSError):
                packets.bind((host, port))
                taken.enter_context(sockets.pop_all())
                return port
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
