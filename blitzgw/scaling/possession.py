"""Which nodes have which weights, as they say: so that nobody has to ask all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from blitzgw.core.picture import FIGURES, MODELS, Derived, Picture
from blitzgw.core.view import ClusterView, ModelFacts, NodeView

NONE: frozenset[str] = frozenset()


def on_disk(node: NodeView, weights: str, view: ClusterView) -> bool:
    """Whether a node of a view has the checkpoint of these weights on its own disk."""
    return weights in checkpoints(view).get(node.boot, NONE)


def checkpoints(view: ClusterView) -> Mapping[str, frozenset[str]]:
    """Return the weights of which each node has the checkpoint on its own disk, by boot id."""
    return view.picture.recall(_CHECKPOINTS)


def in_memory_of(weights: str, view: ClusterView) -> Collection[str]:
    """Return the boot ids of the nodes with an instance or a host copy of weights, whole or not."""
    return view.picture.recall(_MEMORY).boots.get(weights, NONE)


def _checkpoints(
    picture: Picture, former: Mapping[str, frozenset[str]] | None, stale: frozenset[str]
) -> Mapping[str, frozenset[str]]:
    made = {**former} if former is not None else {}
    same: dict[int, frozenset[str]] = {}  # nodes in one process may share what they define
    for boot in stale if former is not None else picture.nodes:
        node = picture.nodes.get(boot)
        if node is None:
            made.pop(boot, None)
            continue
        found = same.get(id(node.models))
        if found is None:
            found = same[id(node.models)] = _read(node.models)
        made[boot] = found
    return made


def _read(models: Mapping[str, ModelFacts]) -> frozenset[str]:
    return frozenset(facts.weights for facts in models.values() if facts.disk)


_CHECKPOINTS: Derived[Mapping[str, frozenset[str]]] = Derived(MODELS, _checkpoints)


@dataclass(slots=True)
class _Memory:
    """The nodes that have some of each weights in memory, and what each node has."""

    boots: dict[str, frozenset[str]] = field(default_factory=dict)
    weights: dict[str, frozenset[str]] = field(default_factory=dict)


def _memory(picture: Picture, former: _Memory | None, stale: frozenset[str]) -> _Memory:
    made = _Memory({**former.boots}, {**former.weights}) if former is not None else _Memory()
    changed: dict[str, set[str]] = {}
    for boot in stale if former is not None else picture.nodes:
        before, after = made.weights.get(boot, NONE), _had(picture.nodes.get(boot))
        if before == after:
            continue
        for weights in before ^ after:
            having = changed.setdefault(weights, {*made.boots.get(weights, NONE)})
            if weights in after:
                having.add(boot)
            else:
                having.discard(boot)
        made.weights[boot] = after
        if not after:
            del made.weights[boot]
    for weights, having in changed.items():
        made.boots[weights] = frozenset(having)
        if not having:
            del made.boots[weights]
    return made


def _had(node: NodeView | None) -> frozenset[str]:
    if node is None or not (node.instances or node.copies):
        return NONE
    found = {facts.weights for facts in node.instances.values()}
    return frozenset(found.union(copy.weights for copy in node.copies.values()))


_MEMORY = Derived(FIGURES, _memory)
