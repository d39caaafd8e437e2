"""Several nodes as real processes that share a key and find each other."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.nodes import PATIENCE_S, Node, is_gone, start, until
from tests.support.ports import free_port

PACED = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "1GiB"
cost = {{ fixed_us = {fixed_us} }}
[[models]]
path = "smollm2-135m"
max_model_len = 2048
host_copies = 0
{model}
"""
CPU = """
[[devices]]
kind = "cpu"
threads = {threads}
kv_bytes = "512MiB"
[[models]]
path = "smollm2-135m"
dtype = "float32"
max_model_len = 2048
host_copies = 0
{model}
"""
SPARE = """
models = []
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "1GiB"
cost = {{ fixed_us = {fixed_us} }}
"""
NOTHING = """
devices = []
models = []
"""


def paced(fixed_us: float = 100.0, model: str = "") -> str:
    """Devices and models of a node that makes tokens up."""
    return PACED.format(fixed_us=fixed_us, model=model)


def spare(fixed_us: float = 100.0) -> str:
    """A device like that of `paced`, and no model."""
    return SPARE.format(fixed_us=fixed_us)


def cpu(threads: int = 1, model: str = "") -> str:
    """Devices and models of a node with the real model in float32."""
    return CPU.format(threads=threads, model=model)


@dataclass
class Cluster:
    """Nodes by name, in the order of their start.

    They share a key that nodes of other tests, which may get ports that these have had, do not.
    """

    folder: Path
    ports: list[int] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    key: str = field(default_factory=secrets.token_hex)

    def add(
        self,
        name: str,
        rest: str = "",
        *,
        cluster: str = "",
        node: str = "",
        transfer: str = "",
        http: str = "",
    ) -> Node:
        """Start a node, and do not wait for it."""
        port = free_port()
        joined = ", ".join(f'"127.0.0.1:{other}"' for other in self.ports)
        self.ports.append(port)
        empty = [line for line in rest.splitlines() if line.endswith("= []")]
        head, tables = "\n".join(empty), re.sub(r"(?m)^\w+ = \[\]$", "", rest)
        toml = f"""{head}
[node]
name = "{name}"
{node}
[http]
port = 0
admin_key_file = "admin.key"
{http}
[cluster]
port = {port}
join = [{joined}]
{cluster}
[transfer]
copies_dir = "copies-{name}"
{transfer}
{tables}"""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}.toml"
        file.write_text(toml)
        self.nodes[name] = started = start(
            self.folder, "--config", str(file), env={"BLITZGW_CLUSTER_KEY": self.key}
        )
        return started

    def get(self, asked: str, what: str) -> list[dict[str, Any]]:
        """What a node tells of the whole cluster."""
        return self.nodes[asked].get(f"/cluster/{what}").json[what]

    def alive(self, asked: str) -> set[str]:
        """The names of the nodes that a node believes to be alive."""
        return {node["name"] for node in self.get(asked, "nodes") if node["status"] == "alive"}

    def serving(self, asked: str) -> set[str]:
        """The nodes that have a serving instance, as a node sees it."""
        found = self.get(asked, "instances")
        return {each["node"] for each in found if each["state"] == "serving"}

    def settle(self, n_serving: int | None = None) -> Cluster:
        """Wait until everybody sees everybody, and `n_serving` instances where that is given."""
        for node in self.nodes.values():
            node.listen()
        names = {name for name, node in self.nodes.items() if node.process.poll() is None}

        def settled() -> bool:
            return all(
                self.alive(name) >= names
                and (n_serving is None or len(self.serving(name)) >= n_serving)
                for name in names
            )

        until(settled, "a settled cluster")
        for name in names:
            self.nodes[name].ready()
        return self

    def kill(self, name: str) -> None:
        """Kill a node and its workers, all at once, as a machine dies."""
        node = self.nodes[name]
        workers = node.workers()
        node.process.kill()
        node.process.wait()
        until(lambda: all(is_gone(pid) for pid in workers), "the workers' end")

    def stop(self) -> None:
        """Ask all living nodes to stop; they end well and leave nothing."""
        living = [node for node in self.nodes.values() if node.process.poll() is None]
        for node in living:
            node.workers()
            node.signal(signal.SIGTERM)
        for node in living:
            assert node.end() == 0, node.log()
        for node in living:
            assert "Traceback" not in node.log(), node.log()

    def end(self) -> None:
        """Kill what is left."""
        for name, node in self.nodes.items():
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()
            print(f"==== {name}\n{node.log()[-8000:]}")


@contextlib.contextmanager
def cluster(folder: Path, **nodes: str) -> Iterator[Cluster]:
    """Nodes by name with their devices and models. They are asked to stop, and leave nothing."""
    made = Cluster(folder)
    try:
        for name, rest in nodes.items():
            made.add(name.replace("_", "-"), rest)
        yield made
        made.stop()
    finally:
        made.end()


def within(seconds: float, condition: Callable[[], Any], what: str) -> float:
    """Wait for a condition that must hold soon; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < min(seconds, PATIENCE_S), f"no {what} in {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began
