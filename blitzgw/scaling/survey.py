"""What a view of the cluster means to a plan: who has which weights, what is free, what links give.

Facts are other nodes' own words and some are late; whatever contradicts itself is left out. Nodes
that share a name are left out too, because workers are named by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.plan import Holder, Links, Port, Tier
from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    InstanceFacts,
    LoadFacts,
    NetworkFacts,
    NodeView,
    blobs_in,
)
from blitzgw.scaling.ownership import draining

RATE_BYTES_PER_S = 1.25e9
"""Of a port whose rate nobody knows: 10 Gbit/s, so that plans and predictions have a number."""

HOST_BYTES_PER_S = 8e9
"""From host memory into a worker: one thread's copy."""

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

GIVING = (
    InstanceState.SERVING,
    InstanceState.LOADING,
    InstanceState.DRAINING,
    InstanceState.KEPT,
)
"""States of instances that can give what they have."""

COUNTED = (InstanceState.SERVING, InstanceState.LOADING)
"""States of instances that a model is said to have."""


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A model as scaling needs it: its card's digest, its manifest's root, its blobs' sizes.

    `hidden_bytes` and `kv_layer_bytes` are what a token's hidden state, and its KV in one layer,
    weigh on a link; 0 where that is not known. With a `tied_head` the head needs the embedding.
    """

    name: str
    digest: str
    weights: str
    blob_bytes: tuple[int, ...]
    hidden_bytes: int = 0
    kv_layer_bytes: int = 0
    tied_head: bool = False

    @property
    def n_layers(self) -> int:
        """How many decoder layers it has: a blob each, between the embedding's and the head's."""
        return max(0, len(self.blob_bytes) - 2)

    @property
    def size_bytes(self) -> int:
        """The size of all blobs."""
        return sum(self.blob_bytes)


@dataclass(frozen=True, slots=True)
class FreeDevice:
    """A device that could take a model. `worker` is `node/device`."""

    worker: str
    boot: str
    device: str
    claim: int


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """An instance and where it is. `at_home`: its node has the checkpoint on its own disk."""

    worker: str
    boot: str
    facts: InstanceFacts
    load: LoadFacts | None
    at_home: bool = False

    @property
    def busy(self) -> int:
        """How much would have to be finished or moved: requests first, then tokens queued."""
        if self.load is None:
            return 0
        return ((self.load.running + self.load.waiting) << 32) + self.load.queued_tokens


def members(view: ClusterView) -> dict[str, NodeView]:
    """Return, by name, the living nodes whose facts are known and whose name is theirs alone."""
    ambiguous = view.namesakes()
    nodes = {node.name: node for node in view.living() if node.facts is not None}
    return {name: node for name, node in sorted(nodes.items()) if name not in ambiguous}


def instances_of(model: str, view: ClusterView) -> list[PlacedInstance]:
    """Return the instances that a model has, loading or serving, by worker."""
    return [
        PlacedInstance(
            worker=f"{node.name}/{facts.device}",
            boot=node.boot,
            facts=facts,
            load=node.loads.get(facts.id),
            at_home=_has_disk(node, facts.weights),
        )
        for node in members(view).values()
        for _, facts in sorted(node.instances.items())
        if facts.model == model and facts.state in COUNTED
    ]


def free_devices(definition: ModelDefinition, view: ClusterView) -> list[FreeDevice]:
    """Return the devices that could take a model, the best first.

    Best are those on machines that have the weights already, then on those with fewer instances of
    the model, then those near to somebody who has them.
    """
    nodes = members(view)
    having = {name for name, node in nodes.items() if _has(node, definition.weights)}
    zones = {zone for name in having if (zone := _zone(nodes[name]))}
    found: list[tuple[tuple[bool, int, bool, str], FreeDevice]] = []
    for name, node in nodes.items():
        if draining(node):
            continue
        n_here = sum(facts.model == definition.name for facts in node.instances.values())
        for device in free_on(node, definition.size_bytes):
            free = FreeDevice(f"{name}/{device.id}", node.boot, device.id, device.claim)
            order = (name not in having, n_here, _zone(node) not in zones, free.worker)
            found.append((order, free))
            n_here += 1
    return [free for _, free in sorted(found, key=lambda pair: pair[0])]


def free_on(node: NodeView, size_bytes: int) -> list[DeviceFacts]:
    """Return the devices of a node that have no instance and could take one of that size."""
    taken = {
        facts.device for facts in node.instances.values() if facts.state is not InstanceState.GONE
    }
    return [
        device
        for _, device in sorted(node.devices.items())
        if device.id not in taken
        and device.kind is not DeviceKind.HOST
        and device.memory_bytes >= size_bytes
        and speaks(device)
    ]


def speaks(device: DeviceFacts) -> bool:
    """Whether a device's worker runs and lays weights out as this node does."""
    return device.software.get("layout") == str(LAYOUT_VERSION)


def holders_of(
    definition: ModelDefinition, view: ClusterView, targets: Iterable[str] = ()
) -> list[Holder]:
    """Return who can give blobs of a model. What `targets` have got by themselves is left out.

    A target whose machine has a complete host copy or the checkpoint reads from there. A checkpoint
    is also read by one worker of its node that is no target, so that it can be sent.
    """
    wanted = frozenset(targets)
    everything = frozenset(range(len(definition.blob_bytes)))
    found: list[Holder] = []
    for node in members(view).values():
        resident = _resident(node, definition.weights, everything)
        found += [
            Holder(worker, blobs)
            for worker, blobs in sorted(resident.items())
            if worker not in wanted and blobs
        ]
        here = sorted(worker for worker in wanted if worker.startswith(f"{node.name}/"))
        if _has_copy(node, definition.weights):
            found += [Holder(worker, everything, Tier.HOST) for worker in here]
        if _has_disk(node, definition.weights):
            readers = here + [w for w in _reader(node, resident) if w not in wanted]
            found += [Holder(worker, everything, Tier.DISK) for worker in readers]
    return found


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
    return Links(  # disks: nobody measures them, the planner assumes what most give
        ports={
            (name, network.name): _port(network, promised.get((name, network.name), (0.0, 0.0)))
            for name, host in hosts.items()
            for network in host.networks
        },
        hosts=dict.fromkeys(hosts, HOST_BYTES_PER_S),
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


def _has(node: NodeView, weights: str) -> bool:
    """Whether a node's machine has these weights in memory, as far as it says."""
    return _has_copy(node, weights) or any(
        facts.weights == weights and facts.state in GIVING for facts in node.instances.values()
    )


def _has_copy(node: NodeView, weights: str) -> bool:
    return any(copy.weights == weights and copy.complete for copy in node.copies.values())


def _has_disk(node: NodeView, weights: str) -> bool:
    return any(model.weights == weights and model.disk for model in node.models.values())


def _zone(node: NodeView) -> str:
    return node.host_facts.zone if node.host_facts is not None else ""


def _resident(
    node: NodeView, weights: str, everything: frozenset[int]
) -> dict[str, frozenset[int]]:
    """Return what the workers of a node can send without reading it first."""
    found: dict[str, frozenset[int]] = {}
    having = [
        (facts.device, facts.blobs)
        for facts in node.instances.values()
        if facts.weights == weights and facts.state in GIVING
    ]
    having += [
        (copy.device, copy.blobs) for copy in node.copies.values() if copy.weights == weights
    ]
    for device, mask in having:
        if device in node.devices and speaks(node.devices[device]):
            worker = f"{node.name}/{device}"
            blobs = blobs_in(mask) & everything
            found[worker] = found.get(worker, frozenset()) | blobs
    return found


def _reader(node: NodeView, resident: Mapping[str, frozenset[int]]) -> list[str]:
    """Return the worker that reads a checkpoint in order to send it: one without a model first.

    None where a worker of the node has all or some of it already: that one sends.
    """
    if any(resident.values()):
        return []
    used = {facts.device for facts in node.instances.values()}
    able = [device for device in node.devices.values() if speaks(device)]
    able.sort(key=lambda device: (device.kind is not DeviceKind.HOST, device.id in used, device.id))
    return [f"{node.name}/{device.id}" for device in able[:1]]


def _port(network: NetworkFacts, own: tuple[float, float]) -> Port:
    rate = _told(network.rate_bytes_per_s, RATE_BYTES_PER_S)
    left = [
        min(rate, max(rate - _part(reserved, rate) + ours, MIN_PORT_SHARE * rate))
        for reserved, ours in (
            (network.reserved_tx_bytes_per_s, own[0]),
            (network.reserved_rx_bytes_per_s, own[1]),
        )
    ]
    return Port(left[0], left[1], _part(network.serving_tx_bytes_per_s, rate))


def _told(rate: float, default: float) -> float:
    """Return a rate that a node tells of itself, or the default where it is none."""
    return rate if MIN_RATE_BYTES_PER_S <= rate <= MAX_RATE_BYTES_PER_S else default


def _part(used: float, rate: float) -> float:
    """Return what a node says is used of a rate: nothing where that is no number."""
    return min(used, rate) if used > 0 else 0.0
