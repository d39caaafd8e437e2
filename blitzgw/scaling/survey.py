"""What a view of the cluster means to scaling: which nodes count, and what they have of a model.

Facts are other nodes' own words and some are late; whatever contradicts itself is left out. Nodes
that share a name are left out too, because workers are named by it. Devices that are free are in
freedevices.py, who can give weights in holders.py, what the network gives in links.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from blitzgw.core.instance import InstanceState
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import FIGURES, MEMBERS, Derived, Picture
from blitzgw.core.view import ClusterView, DeviceFacts, InstanceFacts, LoadFacts, NodeView
from blitzgw.scaling.possession import on_disk
from blitzgw.scaling.residents import residents

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


def members(view: ClusterView) -> Mapping[str, NodeView]:
    """Return, by name, the living nodes whose facts are known and whose name is theirs alone.

    It is one for all who ask about the same picture.
    """
    return view.picture.recall(_MEMBERS).shown


class _Members(NamedTuple):
    """Who is called what, by boot id and as nodes; and these for all to read."""

    boots: Mapping[str, str]
    nodes: dict[str, NodeView]
    shown: Mapping[str, NodeView]


def _members(picture: Picture, former: _Members | None, stale: frozenset[str]) -> _Members:
    nodes, boots = picture.nodes, picture.recall(MEMBERSHIP).named
    if former is not None and former.boots is boots:
        found = {**former.nodes}
        news = [nodes[boot] for boot in stale if boot in nodes]
        found |= {node.name: node for node in news if boots.get(node.name) == node.boot}
    else:
        found = {name: nodes[boot] for name, boot in boots.items()}
    return _Members(boots, found, MappingProxyType(found))


_MEMBERS = Derived(MEMBERS | FIGURES, _members)


def is_member(node: NodeView, nodes: Mapping[str, NodeView]) -> bool:
    """Whether a node is one of these members."""
    return nodes.get(node.name) is node


def instances_of(model: str, view: ClusterView) -> list[PlacedInstance]:
    """Return the instances that a model has, loading or serving, by worker."""
    ranks = view.picture.recall(MEMBERSHIP).ranks
    nodes = [view.nodes[boot] for boot in residents(model, view) if boot in ranks]
    return [
        PlacedInstance(
            worker=f"{node.name}/{facts.device}",
            boot=node.boot,
            facts=facts,
            load=node.loads.get(facts.id),
            at_home=on_disk(node, facts.weights, view),
        )
        for node in sorted(nodes, key=lambda node: node.name)
        for _, facts in sorted(node.instances.items())
        if facts.model == model and facts.state in COUNTED
    ]


def speaks(device: DeviceFacts) -> bool:
    """Whether a device's worker runs and lays weights out as this node does."""
    return device.software.get("layout") == str(LAYOUT_VERSION)


def in_memory(node: NodeView, weights: str) -> bool:
    """Whether a node's machine has these weights in memory, as far as it says."""
    return has_copy(node, weights) or has_instance(node, weights)


def has_instance(node: NodeView, weights: str) -> bool:
    """Whether an instance of a node can give these weights, or will."""
    return any(
        facts.weights == weights and facts.state in GIVING for facts in node.instances.values()
    )


def has_copy(node: NodeView, weights: str) -> bool:
    """Whether a node has a complete host copy of these weights."""
    return any(copy.weights == weights and copy.complete for copy in node.copies.values())
