"""The ends of probes on a node's own workers: opened for whoever asks, and ended in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blitzgw.core.plan import node_of
from blitzgw.core.probe import ProbeDone, ProbeOrder
from blitzgw.core.transfer import (
    MAX_PROBE_BYTES,
    PROBE,
    CloseEdge,
    EdgeClosed,
    EdgeProgress,
    EdgeTerms,
    OpenReceive,
    OpenSend,
    probe_blobs,
)
from blitzgw.device import DeviceRunner

MAX_PROBES = 4
"""Of a node at a time: more measure nothing but each other."""

MAX_SECONDS = 60.0
"""However long is asked for: a link that is measured is not at the disposal of requests."""

OPEN_S = 10.0
"""From the order to the first byte: a link to be dialled, and the patience of a sender for its
receiver (transport/sender.py)."""


@dataclass(slots=True)
class _End:
    """An end that is open. `boot` is who has asked; `over`: it is ended as it should."""

    boot: str
    sent: bool
    seconds: float
    timer: asyncio.TimerHandle
    started: bool = False
    over: bool = False


class ProbeEnds:
    """The ends on the devices of the node `node`; `tell` tells a process what became of one."""

    def __init__(
        self,
        node: str,
        devices: Mapping[str, DeviceRunner],
        tell: Callable[[str, ProbeDone], None],
    ) -> None:
        self._node, self._devices, self._tell = node, devices, tell
        self._ends: dict[tuple[str, str], _End] = {}
        """By edge and device."""

    def open(self, boot: str, order: ProbeOrder) -> None:
        """Open the ends that are here, or tell why not."""
        if node_of(order.edge.target) == self._node:
            self._open(boot, order, sent=False)
        if node_of(order.edge.source) == self._node:
            self._open(boot, order, sent=True)

    def end(self, boot: str, probe: str = "") -> None:
        """End a probe that a process has asked for, or all of these."""
        for (name, device), end in self._ends.items():
            if end.boot == boot and probe in ("", name):
                self._end(name, device)

    def told(self, device: str, message: Any) -> bool:
        """Take what a worker tells of an edge; return whether it is a probe's."""
        if not isinstance(message, EdgeProgress | EdgeClosed):
            return False
        end = self._ends.get((message.edge, device))
        if end is None:
            return False
        if isinstance(message, EdgeProgress):
            self._begin(message.edge, device, end)
            return True
        done = ProbeDone(
            message.edge,
            end.sent,
            "" if end.over else message.reason,
            message.payload_bytes,
            message.seconds,
            message.yielded_s,
            message.delayed_s,
        )
        self._forget(message.edge, device, done)
        return True

    def worker_lost(self, device: str) -> None:
        """Take the news that a worker is gone with its edges."""
        for name, where in [*self._ends]:
            if where == device:
                reason = f"the worker of {self._node}/{device} has died"
                lost = ProbeDone(name, self._ends[name, where].sent, reason)
                self._forget(name, device, lost)

    def count(self, boot: str) -> int:
        """Return how many ends are open here for a process."""
        return sum(end.boot == boot for end in self._ends.values())

    def close(self) -> None:
        """Forget all; edges end with their workers."""
        for end in self._ends.values():
            end.timer.cancel()
        self._ends.clear()

    def _open(self, boot: str, order: ProbeOrder, *, sent: bool) -> None:
        edge = order.edge
        worker = edge.source if sent else edge.target
        device = worker.partition("/")[2]
        reason = self._objection(device, edge.id)
        if reason:
            self._tell(boot, ProbeDone(edge.id, sent, f"{worker}: {reason}"))
            return
        seconds = max(0.0, min(order.seconds, MAX_SECONDS))
        timer = asyncio.get_running_loop().call_later(OPEN_S + seconds, self._end, edge.id, device)
        self._ends[edge.id, device] = _End(boot, sent, seconds, timer)
        terms = probe_terms(order)
        message = OpenSend(terms) if sent else OpenReceive(terms, edge.host, edge.port)
        self._devices[device].supervisor.send(message)

    def _objection(self, device: str, probe: str) -> str:
        runner = self._devices.get(device)
        if runner is None or not runner.up:
            return "no worker is up there"
        if (probe, device) in self._ends:
            return "it has an end of this probe already"
        if len({name for name, _ in self._ends} - {probe}) >= MAX_PROBES:
            return f"{MAX_PROBES} probes are under way there"
        return ""

    def _begin(self, probe: str, device: str, end: _End) -> None:
        """Count the time from the first byte; receivers alone tell of that."""
        if not end.started:
            end.started = True
            end.timer.cancel()
            loop = asyncio.get_running_loop()
            end.timer = loop.call_later(end.seconds, self._end, probe, device)

    def _end(self, probe: str, device: str) -> None:
        """Have an end closed; its worker says when it is."""
        self._ends[probe, device].over = True
        self._devices[device].supervisor.send(CloseEdge(probe))

    def _forget(self, name: str, device: str, done: ProbeDone) -> None:
        end = self._ends.pop((name, device))
        end.timer.cancel()
        self._tell(end.boot, done)


def probe_terms(order: ProbeOrder) -> EdgeTerms:
    """Return what the workers at both ends are told."""
    return EdgeTerms(
        id=order.edge.id,
        operation=PROBE,
        weights=PROBE,
        blobs=probe_blobs(min(order.size_bytes, MAX_PROBE_BYTES)),
        key=order.edge.key,
        seed=order.seed,
        network=order.edge.network,
        lane=order.lane,
        encrypt=order.encrypt,
        size_bytes=order.size_bytes,
        rate_bytes_per_s=order.edge.rate_bytes_per_s,
    )
