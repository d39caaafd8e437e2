"""Probes: what a link between two workers carries, measured with bytes that mean nothing.

    API ── ProbeWish ──► Probes ── ProbeOrder ──► ProbeEnds of both nodes ── edges ──► workers
        ◄─ ProbeFacts ──        ◄── ProbeDone ──

Any node can be asked. It makes the id and the key, and cancels at both ends when nobody waits any
more; a node that loses the one that has asked ends its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from blitzgw.core.operation import EdgeOrder
from blitzgw.core.probe import (
    ProbeCancel,
    ProbeDone,
    ProbeFacts,
    ProbeMessage,
    ProbeOrder,
    ProbeWish,
)
from blitzgw.core.transfer import MAX_PROBE_BYTES, PROBE
from blitzgw.core.view import ClusterView, NodeView
from blitzgw.device import DeviceRunner
from blitzgw.errors import InvalidRequest, Overloaded, Unavailable
from blitzgw.probeends import MAX_PROBES, MAX_SECONDS, OPEN_S, ProbeEnds
from blitzgw.roads import fastest_network, rates
from blitzgw.scaling.links import dial_address
from blitzgw.scaling.survey import members

log = logging.getLogger(__name__)

CLOSE_S = 3.0
"""From the end of a probe to the answers of both ends: some round trips, and a busy machine."""

SHOWN = 32
"""So many workers are named to who has named one that is not there."""

Say = Callable[[str, ProbeMessage], None]
"""(boot, message): tells a process, this one perhaps, and returns before that has heard it."""


@dataclass(slots=True)
class _Asked:
    """A probe that was asked for here: the processes with its ends, and what they have answered.

    `done` by whether it is the sending end.
    """

    boots: frozenset[str]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    done: dict[bool, ProbeDone] = field(default_factory=dict)
    lost: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be waited for."""
        failed = any(done.reason for done in self.done.values())
        return bool(self.lost) or failed or len(self.done) > 1


class Probes:
    """One node's part in probes: implements `api.status.ProbePort`. For the event loop only."""

    def __init__(
        self,
        node: str,
        view: Callable[[], ClusterView],
        devices: Mapping[str, DeviceRunner],
        say: Say,
    ) -> None:
        self._view, self._say = view, say
        self.ends = ProbeEnds(node, devices, say)
        self._asked: dict[str, _Asked] = {}

    async def probe(self, wish: ProbeWish) -> ProbeFacts:
        """Measure; raises RequestError. Who cancels this ends the probe."""
        boots, edge = self._edge(wish)
        if len(self._asked) >= MAX_PROBES:
            raise Overloaded(f"{MAX_PROBES} probes are under way here", retry_after_s=1.0)
        seed, seconds = secrets.randbits(63), min(wish.seconds, MAX_SECONDS)
        order = ProbeOrder(edge, wish.size_bytes, seconds, wish.lane, seed, wish.encrypt)
        asked = self._asked[edge.id] = _Asked(boots)
        log.info(
            "probe id=%s source=%s target=%s class=%s",
            edge.id, edge.source, edge.target, wish.lane.name.lower(),
        )  # fmt: skip
        try:
            for boot in boots:
                self._say(boot, order)
            async with asyncio.timeout(OPEN_S + seconds + CLOSE_S):
                while not asked.is_over:
                    await asked.news.wait()
                    asked.news.clear()
        except TimeoutError:
            log.warning("probe_unanswered id=%s", edge.id)
        finally:
            del self._asked[edge.id]
            if len(asked.done) < 2:
                self._cancel(edge.id, boots)
        return _facts(asked, edge.network)

    # What nodes tell.

    def said(self, boot: str, message: ProbeMessage) -> None:
        """Take what a node says, this one perhaps."""
        match message:
            case ProbeOrder():
                self.ends.open(boot, message)
            case ProbeCancel(probe=probe):
                self.ends.end(boot, probe)
            case ProbeDone(probe=probe):
                asked = self._asked.get(probe)
                if asked is not None and boot in asked.boots:
                    asked.done[message.sent] = message
                    asked.news.set()
                    if not message.sent and len(asked.done) < 2:
                        self._cancel(probe, asked.boots)  # the source would wait for its return

    def link_lost(self, boot: str) -> None:
        """End what a node has asked for, and wait no more for its answers."""
        self.ends.end(boot)
        for asked in self._asked.values():
            if boot in asked.boots:
                asked.lost = "a node that has part in it was lost"
                asked.news.set()

    def count(self, boot: str) -> int:
        """Return how many answers are awaited from a node, or by it: its link is needed."""
        return sum(boot in asked.boots for asked in self._asked.values()) + self.ends.count(boot)

    def _cancel(self, probe: str, boots: frozenset[str]) -> None:
        for boot in boots:
            self._say(boot, ProbeCancel(probe))

    # What is asked for.

    def _edge(self, wish: ProbeWish) -> tuple[frozenset[str], EdgeOrder]:
        """Return the processes that have part in a probe, and its edge; raises InvalidRequest."""
        if not 0 < wish.size_bytes <= MAX_PROBE_BYTES:
            raise InvalidRequest(f"size_bytes must be 1 to {MAX_PROBE_BYTES}", param="size_bytes")
        view = self._view()
        nodes = members(view)
        source = _node_of(wish.source, nodes, "source")
        target = _node_of(wish.target, nodes, "target")
        if wish.source == wish.target:
            raise InvalidRequest("source and target are the same worker", param="target")
        network = _network(wish, source, target)
        address = dial_address(view, wish.source, network)
        if address is None:
            raise InvalidRequest(f"{wish.source} does not listen there", param="network")
        edge = EdgeOrder(
            id=f"{PROBE}-{secrets.token_hex(8)}",
            source=wish.source,
            target=wish.target,
            network=network,
            host=address[0],
            port=address[1],
            blobs=(),
            key=secrets.token_bytes(32),
            rate_bytes_per_s=wish.rate_bytes_per_s,
        )
        return frozenset({source.boot, target.boot}), edge


def _node_of(worker: str, nodes: Mapping[str, NodeView], param: str) -> NodeView:
    """Return the node of a worker that listens; raises InvalidRequest, naming those there are."""
    name, _, device = worker.partition("/")
    if device in _listening(nodes.get(name)):
        return nodes[name]
    known = sorted(
        f"{name}/{device}" for name, node in nodes.items() for device in _listening(node)
    )
    shown = ", ".join(known[:SHOWN]) + (", …" if len(known) > SHOWN else "")
    text = f"there is no worker {worker:.80}; there are: {shown or 'none'}"
    error = InvalidRequest(text, param=param)
    error.code = "unknown_worker"
    raise error


def _listening(node: NodeView | None) -> list[str]:
    """Return the devices of a node whose workers others can reach."""
    return [] if node is None else [d.id for d in node.devices.values() if d.data_ports]


def _network(wish: ProbeWish, source: NodeView, target: NodeView) -> str:
    """Return the network that is meant, or the fastest that both are on; raises InvalidRequest."""
    network = fastest_network(source, target)
    if wish.network is None and network is not None:
        return network
    common = sorted(rates(source).keys() & rates(target).keys())
    if wish.network is None or wish.network not in common:
        shown = ", ".join(name or "the one without a name" for name in common)
        text = f"{wish.source} and {wish.target} share {shown or 'no network'}"
        raise InvalidRequest(text, param="network")
    return wish.network


def _facts(asked: _Asked, network: str) -> ProbeFacts:
    """Return what was measured; raises Unavailable where nothing was."""
    received, sent = asked.done.get(False), asked.done.get(True)
    if received is None or received.reason or not received.payload_bytes:
        reasons = [done.reason for done in asked.done.values() if done.reason]
        reason = next(iter(reasons), asked.lost or "nothing arrived in time")
        error = Unavailable(f"the probe has failed: {reason}", retry_after_s=1.0)
        error.code = "probe_failed"
        raise error
    costs = sent or received
    return ProbeFacts(
        network=network,
        payload_bytes=received.payload_bytes,
        seconds=received.seconds,
        yielded_s=costs.yielded_s,
        delayed_s=costs.delayed_s,
    )
