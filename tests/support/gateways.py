"""Nodes of blitzgw on a testbed: their configurations, their life, what they say of themselves."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

from tests.support.netns import Counters
from tests.support.testbed import Testbed

HTTP_PORT, CLUSTER_PORT = 8000, 7946
PATIENCE_S = 90.0
POLL_S = 0.05
MODEL = "bench"

CONFIG = """
{nothing}
[node]
name = "{name}"
cache_dir = "{cache}"
drain_timeout_s = 1.0
dilation = {dilation}
[http]
host = "0.0.0.0"
port = {http_port}
admin_key_file = "{key_file}"
[cluster]
host = "{address}"
port = {cluster_port}
join = [{seeds}]
[transfer]
host = "{address}"
rate = {rate}
networks = [{networks}]
max_disk_rate = {disk_rate}
copies_dir = "{copies}"
[[devices]]
id = "p0"
{device}
{models}
"""
NO_TIME = """kind = "paced"
kv_bytes = "1GiB"
cost = { fixed_us = 0, token_us = 0, context_us = 0 }"""
"""A device that computes as fast as it can hash."""

ONE_MODEL = """
[[models]]
name = "{name}"
path = "{path}"
load_at_start = {load}
host_copies = {host_copies}
{settings}
"""
NETWORK = '{{ name = "{name}", host = "{host}", rate = {rate} }}'
FAST_RATE_BYTES_PER_S = 1.25e9
"""What is said of an unshaped cable: 10 Gbit/s, about what two busy cores make of it."""

TRACER = Path(__file__).with_name("live_trace.py")

T = TypeVar("T")


class ClusterFailed(Exception):
    """A node ended, or something did not come to pass; the ends of logs follow."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How nodes compute: TOML of their device and of their model, and how slowly time passes.

    What the nodes are told of links is dilated as their clock is. With `traced` they write down
    what they compute (live_trace.py).
    """

    device: str = NO_TIME
    settings: str = "max_model_len = 512\nkeep_s = 0.0"
    dilation: float = 1.0
    traced: bool = False
    disk_bytes_per_s: float = 0.0
    """Undilated; 0: as fast as it goes."""

    @property
    def of_node(self) -> dict[str, Any]:
        """What CONFIG asks of them."""
        disk = self.disk_bytes_per_s
        return {"device": self.device, "dilation": self.dilation, "disk_rate": disk}


@dataclass(frozen=True, slots=True)
class Roles:
    """What nodes are for: the first `sources` hold the model at the start, all have a device.

    The first `definers` define it at least, so that it is configured when a source is dead.
    """

    model: Path | str
    sources: int = 1
    host_copies: int = 0
    definers: int = 0
    terms: Terms = field(default_factory=Terms)


class Gateways:
    """`blitzgw run` in each node of a testbed; the node `front` is the one that is asked."""

    def __init__(self, bed: Testbed, roles: Roles, env: Mapping[str, str] | None = None) -> None:
        self.bed, self.roles = bed, roles
        self.nodes = range(bed.spec.nodes)
        self.running: set[int] = set()
        self.front = 0
        self._env = {"BLITZGW_CLUSTER_KEY": secrets.token_hex(32), **(env or {})}
        self._key_file = bed.folder / "admin.key"
        self._key_file.touch(mode=0o600)
        self._key_file.write_text(secrets.token_hex(32) + "\n")
        self._key = self._key_file.read_text().strip()

    def start_all(self, patience_s: float = PATIENCE_S) -> None:
        """Start all nodes, and wait until each has told of every other and the sources serve."""
        for node in self.nodes:
            self.start(node)
        self.await_whole(patience_s)

    def await_whole(self, patience_s: float = PATIENCE_S) -> None:
        what = "all nodes in one cluster, with the model at its sources"
        self.until(self._is_whole, what, patience_s)

    def start(self, node: int) -> None:
        file = self.bed.folder / f"n{node}.toml"
        file.write_text(self.configuration(node))
        command = [str(Path(sys.executable).with_name("blitzgw"))]
        if self.roles.terms.traced:
            command = [sys.executable, "-P", str(TRACER), str(self.trace(node))]
        self.bed.start(node, [*command, "run", "--config", str(file)], self._env)
        self.running.add(node)

    def trace(self, node: int) -> Path:
        """Where a node that is traced writes down what it computes."""
        return self.bed.folder / f"n{node}.trace"

    def kill(self, node: int) -> float:
        """Kill a node and its workers, as if its machine had lost its power; return when."""
        at_s = time.monotonic()
        self.running.discard(node)
        self.bed.end(node, signal.SIGKILL)
        self._forget(node)
        return at_s

    def restart(self, patience_s: float = PATIENCE_S) -> None:
        """Begin anew with all nodes, on the same links."""
        self.stop_all()
        for node in self.nodes:
            self._forget(node)
        self.front = 0
        self.start_all(patience_s)

    def stop_all(self) -> None:
        self.running.clear()
        self.bed.end_all()

    def name(self, node: int) -> str:
        """Return a node's name; of equals a scale-down takes the first, so sources are last."""
        return f"s{node}" if node < self.roles.sources else f"n{node}"

    def configuration(self, node: int) -> str:
        """Return a node's configuration."""
        bed, terms = self.bed, self.roles.terms
        seeds = [
            f'"{bed.address(other)}:{CLUSTER_PORT}"' for other in (0, 1) if other in self.nodes
        ]
        model = ""
        if node < max(self.roles.sources, self.roles.definers):
            values = {"path": self.roles.model, "host_copies": self.roles.host_copies}
            values["settings"] = terms.settings
            load = str(node < self.roles.sources).lower()
            model = ONE_MODEL.format(name=MODEL, load=load, **values)
        fast = bed.fast_address(node)
        network = NETWORK.format(name="fast", host=fast, rate=FAST_RATE_BYTES_PER_S)
        return CONFIG.format(
            nothing="" if model else "models = []",
            name=self.name(node),
            cache=bed.folder / f"cache{node}",
            http_port=HTTP_PORT,
            key_file=self._key_file,
            address=bed.address(node),
            cluster_port=CLUSTER_PORT,
            seeds=", ".join(seeds),
            rate=bed.spec.rate_mbit * 1e6 / 8 * terms.dilation,
            networks=network if fast else "",
            copies=bed.memory(node),
            models=model,
            **terms.of_node,
        )

    def get(self, path: str, node: int | None = None) -> tuple[int, Any]:
        """Ask a node; (0, why) where it does not answer."""
        return self._request(node, "GET", path, None)

    def post(self, path: str, body: Any, node: int | None = None) -> tuple[int, Any]:
        """Ask a node for a change, with the admin key; (0, why) where it does not answer."""
        return self._request(node, "POST", path, body)

    def begin_post(self, path: str, body: Any, node: int | None = None) -> HTTPConnection:
        """Ask a node for a change that takes long; closing the connection gives it up."""
        node = self.front if node is None else node
        return self.bed.begin_request(node, HTTP_PORT, path, body, key=self._key)

    def instances(self, node: int | None = None) -> dict[str, list[str]]:
        """Return the states of the model's instances by node, as a node sees them."""
        status, told = self.get("/cluster/instances", node)
        found: dict[str, list[str]] = {}
        if status == 200:
            for one in told["instances"]:
                if one["model"] == MODEL and one["state"] not in {"gone", "kept"}:
                    found.setdefault(one["node"], []).append(one["state"])
        return found

    def sources(self) -> set[str]:
        """The nodes that serve the model from the start."""
        return {self.name(node) for node in range(self.roles.sources)}

    def names_by_boot(self) -> dict[str, str]:
        """Return nodes' names by what else they are called."""
        status, told = self.get("/cluster/nodes")
        return {one["boot"]: one["name"] for one in told["nodes"]} if status == 200 else {}

    def holders(self, node: int | None = None) -> set[str]:
        """The nodes that serve the model."""
        return {name for name, states in self.instances(node).items() if "serving" in states}

    def until(self, condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
        """Wait for something to be true, and return it; raises ClusterFailed."""
        deadline_s = time.monotonic() + patience_s
        while not (value := condition()):
            self.check()
            if time.monotonic() > deadline_s:
                raise ClusterFailed(f"no {what} in {patience_s:g} s\n{self.tails()}")
            time.sleep(POLL_S)
        return value

    def check(self) -> None:
        """Raise ClusterFailed if a node has ended by itself."""
        for node in self.running:
            for process in self.bed.processes.get(node, []):
                if process.poll() is not None:
                    raise ClusterFailed(f"{self.name(node)} has ended\n{self.tails([node])}")

    def tails(self, nodes: Sequence[int] | None = None, lines: int = 12) -> str:
        """The last lines of nodes."""
        parts = []
        for node in self.nodes if nodes is None else nodes:
            with contextlib.suppress(OSError):
                text = self.bed.log(node).read_text(errors="replace").splitlines()
                parts += [f"-- {self.name(node)}", *text[-lines:]]
        return "\n".join(parts)

    def counters(self) -> dict[str, Counters]:
        """The bytes that each node's interface to the switch has received and sent."""
        return {self.name(node): self.bed.counters(node) for node in self.nodes}

    def held_bytes(self, nodes: Sequence[int] | None = None) -> dict[int, int]:
        """Return what nodes keep in shared memory of the model's weights."""
        return {
            node: sum(
                path.stat().st_size
                for path in self.bed.memory(node).rglob("*")
                if path.is_file() and not path.is_symlink()
            )
            for node in (sorted(self.running) if nodes is None else nodes)
        }

    def _forget(self, node: int) -> None:
        """Empty a machine's memory: it has lost its power."""
        memory = self.bed.memory(node)
        memory.mkdir(mode=0o700, exist_ok=True)  # a node that ended well has taken it along
        for path in memory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _is_whole(self) -> bool:
        """Whether each node knows all others with workers that listen, and who has the model.

        Any of them may be the one that decides.
        """
        wanted = {self.name(node) for node in self.nodes}
        for node in self.nodes:
            status, told = self.get("/cluster/nodes", node)
            if status != 200 or wanted != {one["name"] for one in told["nodes"] if _is_up(one)}:
                return False
            if self.holders(node) != self.sources():
                return False
        return True

    def _request(self, node: int | None, method: str, path: str, body: Any) -> tuple[int, Any]:
        node = self.front if node is None else node
        try:
            return self.bed.request(node, HTTP_PORT, method, path, body, key=self._key)
        except OSError as error:
            return 0, str(error)


def _is_up(node: Mapping[str, Any]) -> bool:
    return node["status"] == "alive" and any(one["data_ports"] for one in node["devices"])
