"""What a view says of the network to a plan: rates of ports and disks, where workers listen."""

from __future__ import annotations

from collections.abc import Mapping

from blitzgw.core.plan import Links, Port
from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.core.view import ClusterView, NetworkFacts
from blitzgw.scaling.survey import members

RATE_BYTES_PER_S = 1.25e9
"""Of a port whose rate nobody knows: 10 Gbit/s, so that plans and predictions have a number."""

HOST_BYTES_PER_S = 8e9
"""From host memory into a worker, where nothing limits it: one thread's copy."""

LAG_BYTES = PIECE_BYTES * 5 // 2
"""How far a relay is behind its source: the piece that it receives, and what sockets and queues of
a link hold (measured: 55 ms a hop at 400 Mbit/s, where a piece takes 22)."""

MIN_RATE_BYTES_PER_S, MAX_RATE_BYTES_PER_S = 1.0, 1e13
"""What a port or disk can be: figures are other nodes' own words, and one of nonsense must neither
stop planning nor draw all traffic to its node."""

MIN_PORT_SHARE = 0.05
"""Of a port that is promised to others altogether: they end, a slow plan is better than none."""

SETUP_S = 0.01
"""From a plan to an edge's first byte: two messages to the node, one to the worker, a handshake."""

HOP_S = 0.0005
"""A relay's own delay for a piece besides its time on the wire: two threads wake up."""


def links_of(
    view: ClusterView, own: Mapping[tuple[str, str], tuple[float, float]] | None = None
) -> Links:
    """Return what plans may use of the network, promises to other operations taken off.

    `own` is what an operation that plans anew has been promised: (tx, rx) by (node, network), which
    is at its disposal again.
    """
    promised = own or {}
    nodes = members(view)
    hosts = {name: node.host_facts for name, node in nodes.items() if node.host_facts is not None}
    return Links(
        ports={
            (name, network.name): _port(network, promised.get((name, network.name), (0.0, 0.0)))
            for name, host in hosts.items()
            for network in host.networks
        },
        disks={
            name: host.disk_bytes_per_s
            for name, host in hosts.items()
            if MIN_RATE_BYTES_PER_S <= host.disk_bytes_per_s <= MAX_RATE_BYTES_PER_S
        },
        hosts={
            name: min(HOST_BYTES_PER_S, told_rate(host.host_bytes_per_s, HOST_BYTES_PER_S))
            for name, host in hosts.items()
        },
        zones={name: host.zone for name, host in hosts.items()},
        setup_s=SETUP_S,
        hop_s=HOP_S,
        piece_bytes=LAG_BYTES,
    )


def dial_address(view: ClusterView, worker: str, network: str) -> tuple[str, int] | None:
    """Return where a worker listens on a network, on any where that is empty; None: nowhere."""
    name, _, device = worker.partition("/")
    node = members(view).get(name)
    if node is None or node.host_facts is None or device not in node.devices:
        return None
    ports = node.devices[device].data_ports
    for facts in node.host_facts.networks:
        if network in ("", facts.name) and facts.name in ports:
            return facts.host, ports[facts.name]
    return None


def _port(network: NetworkFacts, own: tuple[float, float]) -> Port:
    rate = told_rate(network.rate_bytes_per_s, RATE_BYTES_PER_S)
    left = [
        min(rate, max(rate - _part(reserved, rate) + ours, MIN_PORT_SHARE * rate))
        for reserved, ours in (
            (network.reserved_tx_bytes_per_s, own[0]),
            (network.reserved_rx_bytes_per_s, own[1]),
        )
    ]
    return Port(left[0], left[1], _part(network.serving_tx_bytes_per_s, rate))


def told_rate(rate: float, default: float) -> float:
    """Return a rate that a node tells of itself, or the default where it is none."""
    return rate if MIN_RATE_BYTES_PER_S <= rate <= MAX_RATE_BYTES_PER_S else default


def _part(used: float, rate: float) -> float:
    """Return what a node says is used of a rate: nothing where that is no number."""
    return min(used, rate) if used > 0 else 0.0
