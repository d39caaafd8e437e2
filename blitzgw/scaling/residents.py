"""Which nodes have a model, as they say: so that nobody has to ask all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from blitzgw.core.picture import PLACES, Derived, Picture
from blitzgw.core.view import ClusterView, NodeView

NONE: frozenset[str] = frozenset()


def residents(model: str, view: ClusterView) -> Collection[str]:
    """Return the boot ids of the nodes that have an instance of a model; dead ones too.

    It is the same object until one of these says something new of its devices or instances, or
    another one of having the model.
    """
    return view.picture.recall(RESIDENTS).boots.get(model, NONE)


@dataclass(slots=True)
class Residents:
    """The nodes that have each model, and the models that each node has."""

    boots: dict[str, frozenset[str]] = field(default_factory=dict)
    models: dict[str, frozenset[str]] = field(default_factory=dict)


def _residents(picture: Picture, former: Residents | None, stale: frozenset[str]) -> Residents:
    nodes = picture.nodes
    made = Residents({**former.boots}, {**former.models}) if former is not None else Residents()
    changed: dict[str, set[str]] = {}
    for boot in stale if former is not None else nodes:
        before, after = made.models.pop(boot, NONE), _models(nodes.get(boot))
        for model in before | after:
            having = changed.setdefault(model, {*made.boots.get(model, NONE)})
            if model in after:
                having.add(boot)
            else:
                having.discard(boot)
        if after:
            made.models[boot] = after
    for model, having in changed.items():
        made.boots[model] = frozenset(having)
        if not having:
            del made.boots[model]
    return made


def _models(node: NodeView | None) -> frozenset[str]:
    if node is None or not node.instances:
        return NONE
    return frozenset(facts.model for facts in node.instances.values())


RESIDENTS = Derived(PLACES, _residents)
"""Who has what."""
