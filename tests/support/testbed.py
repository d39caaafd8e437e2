"""Several hosts on one machine: a network namespace for each, cables that are shaped at both ends.

```
   node 0            node 1            node 2          one namespace each; 10.77.0.1, .2, .3 …
    eth0 ─tbf→        eth0 ─tbf→        eth0 ─tbf→     what it sends is shaped here …
      │                 │  fast1 ─────── fast1         a further cable, unshaped; 10.78.1.1, .2
    ←tbf─ p0          ←tbf─ p1          ←tbf─ p2       … and what it receives, there
   ────────────────── br0 ───────────────────────      the switch: a namespace; 10.77.255.254
```
The namespace of the machine itself is not touched. Needs root and iproute2; `netns.NotPermitted`
says what is missing. Whatever happens to this process, `scripts/testbed clean` removes the rest.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support import netns
from tests.support.netns import CommandFailed, Counters

SWITCH_ADDRESS = "10.77.255.254"
MAX_NODES = 64
END_S = 10.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What a testbed is like. `fast` are pairs of nodes with a cable of their own, unshaped.

    `cores` is the share of the processors that each node may use; 0: whatever it gets. A rate of 0
    leaves the cables as fast as they are.
    """

    nodes: int
    rate_mbit: float
    mtu: int = 1500
    fast: tuple[tuple[int, int], ...] = ()
    cores: float = 0.0

    @property
    def payload_bytes_per_s(self) -> float:
        """What TCP can carry over a shaped cable, in each direction."""
        return self.rate_mbit * 1e6 / 8 * netns.payload_share(self.mtu)


class Testbed:
    """Namespaces with cables between them, and the processes that were started in them."""

    __test__ = False  # not for pytest

    def __init__(self, spec: Spec) -> None:
        if not 1 <= spec.nodes <= MAX_NODES:
            raise ValueError(f"{spec.nodes} nodes; 1 to {MAX_NODES}")
        self.spec = spec
        self.name = netns.new_name()
        self.switch = f"{self.name}-switch"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-logs"))
        self.processes: dict[int, list[subprocess.Popen[bytes]]] = {}

    def build(self) -> None:
        """Make it; whoever calls this calls `close`, too. Raises CommandFailed, NotPermitted."""
        nodes = range(self.spec.nodes)
        spaces = [self.switch, *map(self.namespace, nodes)]
        netns.add_namespaces(spaces)
        for space in spaces:
            _without_ipv6(space)
        ip = ["ip", "-n", self.switch]
        netns.command(*ip, "link", "add", "br0", "mtu", str(self.spec.mtu), "type", "bridge")
        netns.command(*ip, "address", "add", f"{SWITCH_ADDRESS}/16", "dev", "br0")
        netns.command(*ip, "link", "set", "br0", "up")
        for node in nodes:
            self._plug_in(node)
        for number, (one, other) in enumerate(self.spec.fast, start=1):
            self._join(number, one, other)

    def namespace(self, node: int) -> str:
        return f"{self.name}-n{node}"

    def address(self, node: int) -> str:
        return f"10.77.0.{node + 1}"

    def fast_address(self, node: int) -> str:
        """Return the address at the further cable; empty: there is none."""
        for number, pair in enumerate(self.spec.fast, start=1):
            if node in pair:
                return f"10.78.{number}.{pair.index(node) + 1}"
        return ""

    def memory(self, node: int) -> Path:
        """The node's own folder in shared memory."""
        return netns.MEMORY / f"{self.name}-n{node}"

    def counters(self, node: int, interface: str = "eth0") -> Counters:
        """Read a node's counters; for its further cable `fast1`, `fast2` …."""
        return netns.counters(self.namespace(node), interface)

    def connect(self, node: int, port: int, timeout_s: float) -> socket.socket:
        """Return a connection from within a node to itself: over loopback, not over a cable."""
        with netns.inside(self.namespace(node)):
            return socket.create_connection((self.address(node), port), timeout_s)

    def request(
        self, node: int, port: int, method: str, path: str, body: Any = None, *, key: str = ""
    ) -> tuple[int, Any]:
        """Ask a node by HTTP; return status and what its JSON says. Raises OSError."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        timeout_s = 30.0
        connection = http.client.HTTPConnection(self.address(node), port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.sock = self.connect(node, port, timeout_s)
            data = None if body is None else json.dumps(body)
            try:
                connection.request(method, path, data, headers)
                reply = connection.getresponse()
                content = reply.read()
            except http.client.HTTPException as error:
                raise ConnectionError(str(error)) from None
        with contextlib.suppress(ValueError):
            return reply.status, json.loads(content)
        return reply.status, content.decode(errors="replace")

    def begin_request(
        self, node: int, port: int, path: str, body: Any, *, key: str = ""
    ) -> http.client.HTTPConnection:
        """Post to a node, and do not wait for its answer. Raises OSError."""
        timeout_s = 30.0
        connection = http.client.HTTPConnection(self.address(node), port, timeout=timeout_s)
        connection.sock = self.connect(node, port, timeout_s)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection

    def start(
        self, node: int, words: Sequence[str], env: Mapping[str, str], log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in a node; what it prints is added to `log` (`n0.log` …)."""
        group = f"{self.name}-n{node}" if self.spec.cores else ""
        with netns.uninterrupted(), (log or self.log(node)).open("ab") as stream:
            process = subprocess.Popen(
                [*netns.entering(self.namespace(node), group), *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **env},
                start_new_session=True,  # ^C is for this process, which ends the others in order
            )
        self.processes.setdefault(node, []).append(process)
        return process

    def log(self, node: int) -> Path:
        return self.folder / f"n{node}.log"

    def end(self, node: int, number: int = signal.SIGTERM) -> None:
        """End what was started in a node, and all that this has started there."""
        processes = self.processes.pop(node, [])
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
        deadline_s = time.monotonic() + END_S
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
        netns.end_processes(netns.members(self.namespace(node)))
        for process in processes:
            process.wait()  # it has been killed

    def end_all(self) -> None:
        """End what was started in all nodes, at once."""
        for processes in self.processes.values():
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        for node in [*self.processes]:
            self.end(node)

    def close(self) -> None:
        """End all processes and remove everything. Raises CommandFailed if something is left."""
        self.end_all()
        if failures := netns.remove_all(self.name):
            raise CommandFailed(f"something of {self.name} is left: {'; '.join(failures)}")

    def description(self) -> dict[str, Any]:
        """What a command that is run beside it may want to know."""
        nodes = [
            {
                "name": f"n{node}",
                "namespace": self.namespace(node),
                "address": self.address(node),
                "fast_address": self.fast_address(node),
                "log": str(self.log(node)),
            }
            for node in range(self.spec.nodes)
        ]
        return {"name": self.name, "switch": self.switch, **asdict(self.spec), "nodes": nodes}

    def _plug_in(self, node: int) -> None:
        """Lay the cable from a node to the switch."""
        space, port = self.namespace(node), f"p{node}"
        netns.join_ends((space, "eth0"), (self.switch, port), self.spec.mtu)
        netns.command("ip", "-n", self.switch, "link", "set", port, "master", "br0")
        address = f"{self.address(node)}/16"
        netns.command("ip", "-n", space, "address", "add", address, "dev", "eth0")
        if self.spec.rate_mbit:
            netns.shape(space, "eth0", self.spec.rate_mbit)
            netns.shape(self.switch, port, self.spec.rate_mbit)
        if self.spec.cores:
            netns.limit_cpu(f"{self.name}-n{node}", self.spec.cores)
        self.memory(node).mkdir(mode=0o700)

    def _join(self, number: int, one: int, other: int) -> None:
        """Lay a further cable between two nodes."""
        ends = [(self.namespace(node), f"fast{number}") for node in (one, other)]
        netns.join_ends(ends[0], ends[1], self.spec.mtu)
        for place, (space, interface) in enumerate(ends, start=1):
            address = f"10.78.{number}.{place}/24"
            netns.command("ip", "-n", space, "address", "add", address, "dev", interface)


@contextlib.contextmanager
def testbed(spec: Spec) -> Iterator[Testbed]:
    """A testbed that is there; whatever happens, nothing of it is left at the end.

    SIGTERM and SIGHUP end the block as ^C does. Raises NotPermitted.
    """
    with _signals_raised():
        netns.check_permitted()
        made = None
        try:
            with netns.uninterrupted():
                made = Testbed(spec)
            made.build()
            yield made
        finally:
            with netns.uninterrupted():  # by a second ^C, too
                if made is not None:
                    made.close()


testbed.__test__ = False  # type: ignore[attr-defined]


def _without_ipv6(space: str) -> None:
    """Keep neighbours' discovery off the cables, and out of the counters."""
    switch = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    with netns.inside(space), contextlib.suppress(OSError):
        switch.write_text("1")


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Let signals that end a process end a block, so that it cleans up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    with netns.handling(leave):
        yield
