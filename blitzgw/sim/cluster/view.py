"""One picture of the cluster, which all simulated nodes see a constant while after it is true.

Nodes whose facts have changed are taken anew together, at most every TAKE_S, and what is taken is
shown to all at once, `gossip_lag_s` later: nobody sees anything sooner or later than others do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from blitzgw.core.instance import DeviceKind
from blitzgw.core.picture import Picture
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    DeviceFacts,
    HostFacts,
    LoadFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
)
from blitzgw.sim.cluster.premises import NETWORK
from blitzgw.sim.cluster.setup import MEMORY_BYTES, SOFTWARE

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode
    from blitzgw.sim.cluster.world import ClusterWorld

TAKE_S = 0.02
"""Between two pictures: how often a node publishes at most."""

LOADS_S = 1.0
"""How old loads may be that are looked up in a view: as often they are gossiped."""

PORT = 7077


class Loads(Mapping[str, LoadFacts]):
    """The loads of a node's instances, looked up only when somebody asks."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._known: dict[str, LoadFacts] = {}
        self._until_s = -1.0

    def _loads(self) -> dict[str, LoadFacts]:
        now = self._node.world.heap.now
        if now >= self._until_s:
            self._until_s = now + LOADS_S
            self._known = {load.instance: load for load in self._node.loads()}
        return self._known

    def __getitem__(self, instance: str) -> LoadFacts:
        return self._loads()[instance]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loads())

    def __len__(self) -> int:
        return len(self._loads())

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class Portrait:
    """Takes the view of one node; parts that have not changed are the same objects as before."""

    def __init__(self, node: SimNode) -> None:
        self._node, setup = node, node.world.setup
        host = f"10.{node.index >> 16}.{node.index >> 8 & 255}.{node.index & 255}"
        network = NetworkFacts(NETWORK, host, setup.link_bytes_per_s)
        self._host = HostFacts(
            MEMORY_BYTES,
            networks=(network,),
            disk_bytes_per_s=setup.disk_bytes_per_s,
            host_bytes_per_s=setup.host_bytes_per_s,
        )
        self.models = node.world.facts_of_models(node.index)
        """What the node defines."""
        self._view = NodeView(
            boot=node.boot,
            name=node.name,
            host=host,
            port=PORT,
            status=Status.ALIVE,
            started_s=int(node.world.unix_s()),
            facts=NodeFacts(node.name, ""),
            models=self.models,
            loads=Loads(node),
            host_facts=self._host,
        )

    def take(self) -> NodeView:
        """Return what others are to see of the node."""
        node, former = self._node, self._view
        shelf, here = node.premises.shelf, node.premises.instances()
        self._view = replace(
            former,
            devices=self._devices(),
            instances={there.id: there.facts() for there in here},
            copies={weights: copy.facts() for weights, copy in shelf.copies.items()},
            wishes=node.wishes,
            scaling=node.scaling,
            host_facts=self._ports(),
            heard_s=node.world.heap.now,
        )
        return self._view

    def _devices(self) -> Mapping[str, DeviceFacts]:
        former = self._view.devices
        claims = {device.id: device.claim for device in self._node.premises.devices.values()}
        if {name: facts.claim for name, facts in former.items()} == claims:
            return former
        return {
            name: DeviceFacts(
                name, DeviceKind.PACED, "sim", MEMORY_BYTES, claim, SOFTWARE, {NETWORK: 1}
            )
            for name, claim in claims.items()
        }

    def _ports(self) -> HostFacts:
        """Return the node's ports with what is promised of them."""
        tx, rx = self._node.steward.reserved().get(NETWORK, (0.0, 0.0))
        network = self._host.networks[0]
        if (tx, rx) != (network.reserved_tx_bytes_per_s, network.reserved_rx_bytes_per_s):
            network = replace(network, reserved_tx_bytes_per_s=tx, reserved_rx_bytes_per_s=rx)
            self._host = replace(self._host, networks=(network,))
        return self._host


class Sights:
    """What all see, and what they are to see soon."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world, self._heap = world, world.heap
        self._lag_s = world.latencies.gossip_lag_s
        self.shown = self._latest = Picture()
        self._dirty: dict[SimNode, bool] = {}
        self._taken_s = -TAKE_S
        self.pictures = 0

    def begin(self, nodes: list[NodeView]) -> None:
        """Have all see these nodes, and no others."""
        self.shown = self._latest = Picture({node.boot: node for node in nodes})

    def changed(self, node: SimNode, *, structural: bool) -> None:
        """Take a node's facts anew soon; `structural`: more than figures has changed."""
        if not self._dirty:
            self._heap.at(self._taken_s + TAKE_S, self._take)
        self._dirty[node] = structural or self._dirty.get(node, False)

    def gone(self, boot: str) -> None:
        """Have a process that has crashed believed dead from now on, by all.

        One whose host has another process already is not remembered any more.
        """
        if boot not in self._latest.nodes:
            return
        changes = {boot: replace(self._latest.nodes[boot], status=Status.DEAD)}
        self._latest = self._latest.after(changes)
        self.shown = self.shown.after(changes)
        self.pictures += 1

    def join(self, node: SimNode) -> None:
        """Have all know a new process, and nobody remember the one before it on its host."""
        former = [boot for boot, known in self._latest.nodes.items() if known.name == node.name]
        changes: dict[str, NodeView | None] = dict.fromkeys(former)
        changes[node.boot] = node.portrait.take()
        self._latest = self._latest.after(changes)
        self.shown = self.shown.after(changes)
        self.pictures += 1

    def _take(self) -> None:
        dirty, self._dirty = self._dirty, {}
        self._taken_s = self._heap.now
        known = self._latest.nodes
        dirty = {n: much for n, much in dirty.items() if n.running and n.boot in known}
        changes = {node.boot: node.portrait.take() for node in dirty}
        structural = frozenset(node.boot for node, much in dirty.items() if much)
        models = self._models(structural, changes)
        self._latest = self._latest.after(changes)
        self._heap.after(self._lag_s, self._show, changes, structural, models)

    def _models(self, boots: frozenset[str], changes: Mapping[str, NodeView]) -> dict[str, None]:
        """Return the models of which instances have come, gone or changed their state."""
        found: dict[str, None] = {}
        for boot in sorted(boots):
            for node in (self._latest.nodes.get(boot), changes[boot]):
                for facts in node.instances.values() if node is not None else ():
                    found[facts.model] = None
        return found

    def _show(
        self, changes: dict[str, NodeView], structural: frozenset[str], models: dict[str, None]
    ) -> None:
        nodes = self._latest.nodes
        for boot in [b for b in changes if b not in nodes or not nodes[b].living]:
            del changes[boot]  # it has crashed meanwhile
        self.shown = self.shown.after(changes)
        self.pictures += 1
        if structural:
            self._world.view_changed(structural, models)
