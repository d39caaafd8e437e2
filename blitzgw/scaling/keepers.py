"""Which host copies there are to be, and which nodes are to have them, by a view (copies.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, CopyFacts, NodeView
from blitzgw.scaling.ownership import draining, unit_hash
from blitzgw.scaling.possession import in_memory_of, on_disk
from blitzgw.scaling.survey import ModelDefinition, has_copy, has_instance, speaks


@dataclass(frozen=True, slots=True)
class CopyNeed:
    """So many copies are wanted of these weights, which `model` is one name of."""

    weights: str
    model: str
    digest: str
    count: int


def copy_needs(view: ClusterView) -> dict[str, CopyNeed]:
    """Return what is to be kept, by the root of the weights; of several counts the largest."""
    needs: dict[str, CopyNeed] = {}
    facts = [model for node in view.living() for model in node.models.values() if model.weights]
    for model in sorted(facts, key=lambda model: (-model.host_copies, model.name, model.digest)):
        need = CopyNeed(model.weights, model.name, model.digest, model.host_copies)
        needs.setdefault(model.weights, need)
    return needs


def keepers(need: CopyNeed, view: ClusterView, size_bytes: int) -> list[str]:
    """Return the boot ids of the nodes that should have a copy, `need.count` or fewer of them."""
    having_some = [view.nodes[boot] for boot in in_memory_of(need.weights, view)]
    enough = _complete(need, (node for node in having_some if node.living))
    if len(enough) >= need.count:  # none of all the others comes before them
        return [boot for *_, boot in enough[: need.count]]
    ranked: list[tuple[int, float, str]] = []
    for node in view.living():
        if not _keeps(node) or node.host_facts is None:
            continue
        beside = has_instance(node, need.weights)
        there = [copy for copy in node.copies.values() if copy.weights == need.weights]
        having = any(not (copy.cached and beside) for copy in there)
        if complete_copy(node, need.weights) is not None:
            ranked.append((3, *order(node, need.weights)))
        elif having or node.host_facts.free_bytes >= size_bytes:
            free_bytes = float(node.host_facts.free_bytes)
            score = -free_bytes / math.log(unit_hash(need.weights, node.boot))
            ranked.append((2 if having else int(not beside), score, node.boot))
    ranked.sort(reverse=True)
    return [boot for _, _, boot in ranked[: need.count]]


def _complete(need: CopyNeed, nodes: Iterable[NodeView]) -> list[tuple[float, str]]:
    """Return the places of the nodes that have a complete copy, the first one first."""
    complete = (n for n in nodes if _keeps(n) and complete_copy(n, need.weights) is not None)
    return sorted((order(node, need.weights) for node in complete), reverse=True)


def _keeps(node: NodeView) -> bool:
    """Whether a node can keep copies for a while."""
    return not draining(node) and node.host_facts is not None and able(node)


def complete_copy(node: NodeView, weights: str) -> CopyFacts | None:
    """Return the first complete copy of a node that can be counted on, by device."""
    complete = [
        copy
        for copy in node.copies.values()
        if copy.weights == weights and copy.complete and not copy.cached
    ]
    return min(complete, key=lambda copy: copy.device, default=None)


def has_all(node: NodeView, weights: str, definition: ModelDefinition, view: ClusterView) -> bool:
    """Whether a node has these weights whole, in whatever place."""
    if on_disk(node, weights, view) or has_copy(node, weights):
        return True
    full = (1 << len(definition.blob_bytes)) - 1
    return any(
        facts.weights == weights
        and facts.state is not InstanceState.GONE
        and facts.blobs.lstrip("0") == f"{full:x}"
        for facts in node.instances.values()
    )


def order(node: NodeView, weights: str) -> tuple[float, str]:
    """Return where a node with a copy stands among others with one: the highest is the first."""
    return unit_hash(weights, node.boot), node.boot


def able(node: NodeView) -> bool:
    """Whether a worker of a node could have a copy."""
    return any(speaks(device) for device in node.devices.values())
