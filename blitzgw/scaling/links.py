"""What a view says of the network to a plan: rates of ports and disks, where workers listen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import FIGURES, MEMBERS, Derived, Picture
from blitzgw.core.plan import Links, Port
from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.core.view import ClusterView, HostFacts, NetworkFacts
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

NOTHING = (0.0, 0.0)
"""What is promised of a port of which nothing is."""

SETUP_S = 0.01
"""From a plan to an edge's first byte: two messages to the node, one to the worker, a handshake."""

HOP_S = 0.0005
"""A relay's own delay for a piece besides its time on the wire: two threads wake up."""


Promises = Mapping[tuple[str, str], tuple[float, float]]
"""(tx, rx) in bytes per second, by (node, network)."""


def links_of(
    view: ClusterView, own: Promises | None = None, others: Promises | None = None
) -> Links:
    """Return what plans may use of the network, promises to other operations taken off.

    `own` is what an operation that plans anew has been promised, which is at its disposal again.
    `others` is what others are known to have been promised, which nodes may not have told yet.
    """
    known = view.picture.recall(_MACHINES)
    links = Links(
        known.ports,
        known.disks,
        known.hosts,
        known.zones,
        setup_s=SETUP_S,
        hop_s=HOP_S,
        piece_bytes=LAG_BYTES,
        named=tuple(sorted(known.networks)),
    )
    own, others = own or {}, others or {}
    if not own and not others:
        return links
    ours = {
        (name, network.name): _port(network, own.get(place, NOTHING), others.get(place, NOTHING))
        for name in {name for name, _ in (*own, *others)} & known.told.keys()
        for network in known.told[name].networks
        if (place := (name, network.name)) in own or place in others
    }
    return replace(links, ports={**known.ports, **ours}, named=links.networks)


@dataclass(slots=True)
class _Machines:
    """What members tell of their machines (`told`), as plans need it, by name."""

    named: Mapping[str, str]
    told: dict[str, HostFacts] = field(default_factory=dict)
    ports: dict[tuple[str, str], Port] = field(default_factory=dict)
    disks: dict[str, float] = field(default_factory=dict)
    hosts: dict[str, float] = field(default_factory=dict)
    zones: dict[str, str] = field(default_factory=dict)
    networks: Counter[str] = field(default_factory=Counter)
    """How many have a port to each."""

    def take(self, name: str, host: HostFacts | None) -> None:
        """Know of a machine what it tells by now."""
        before = self.told.get(name)
        if host is before:
            return
        if before is not None:
            for network in before.networks:
                self.ports.pop((name, network.name), None)
            self.networks -= Counter({network.name for network in before.networks})
            for book in (self.told, self.disks, self.hosts, self.zones):
                book.pop(name, None)
        if host is not None:
            self.told[name], self.zones[name] = host, host.zone
            self.networks += Counter({network.name for network in host.networks})
            for network in host.networks:
                self.ports[name, network.name] = _port(network)
            if MIN_RATE_BYTES_PER_S <= host.disk_bytes_per_s <= MAX_RATE_BYTES_PER_S:
                self.disks[name] = host.disk_bytes_per_s
            rate = told_rate(host.host_bytes_per_s, HOST_BYTES_PER_S)
            self.hosts[name] = min(HOST_BYTES_PER_S, rate)


def _machines(picture: Picture, former: _Machines | None, stale: frozenset[str]) -> _Machines:
    nodes, named = picture.nodes, picture.recall(MEMBERSHIP).named
    if former is None or former.named is not named:
        made = _Machines(named)
        for name, boot in named.items():
            made.take(name, nodes[boot].host_facts)
        return made
    news = [nodes[boot] for boot in stale if boot in nodes]
    news = [node for node in news if named.get(node.name) == node.boot]
    if all(node.host_facts is former.told.get(node.name) for node in news):
        return former
    made = _Machines(
        named,
        {**former.told},
        {**former.ports},
        {**former.disks},
        {**former.hosts},
        {**former.zones},
        former.networks.copy(),
    )
    for node in sorted(news, key=lambda node: node.name):  # whatever the hashes of strings are
        made.take(node.name, node.host_facts)
    return made


_MACHINES = Derived(MEMBERS | FIGURES, _machines)


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


def _port(
    network: NetworkFacts,
    own: tuple[float, float] = NOTHING,
    others: tuple[float, float] = NOTHING,
) -> Port:
    """Return what a plan may use; what a port has promised counts as one worker's promise."""
    rate = told_rate(network.rate_bytes_per_s, RATE_BYTES_PER_S)
    most = told_rate(network.weights_tx_bytes_per_s, math.inf)
    tx = (network.reserved_tx_bytes_per_s, own[0], others[0])
    rx = (network.reserved_rx_bytes_per_s, own[1], others[1])
    serving = _part(network.serving_tx_bytes_per_s, rate)
    return Port(_left(rate, *tx), _left(rate, *rx), serving, _left(most, *tx))


def _left(rate: float, told: float, ours: float, theirs: float) -> float:
    """Return what promises to others leave of a rate."""
    return min(rate, max(rate - max(_part(told, rate) - ours, theirs), MIN_PORT_SHARE * rate))


def told_rate(rate: float, default: float) -> float:
    """Return a rate that a node tells of itself, or the default where it is none."""
    return rate if MIN_RATE_BYTES_PER_S <= rate <= MAX_RATE_BYTES_PER_S else default


def _part(used: float, rate: float) -> float:
    """Return what a node says is used of a rate: nothing where that is no number."""
    return min(used, rate) if used > 0 else 0.0
