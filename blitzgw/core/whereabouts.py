"""Which nodes say that they have an instance, so that nobody has to ask all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import NOTHING, PLACES, Derived, Picture
from blitzgw.core.view import ClusterView, NodeView


def nodes_with(instance: str, view: ClusterView) -> list[NodeView]:
    """Return the living nodes that say that they have an instance, in the order of the view."""
    boots = view.picture.recall(_WHERE).boots.get(instance, NOTHING)
    if len(boots) > 1:
        return [node for node in view.living() if node.boot in boots]
    living = view.picture.recall(MEMBERSHIP).living
    return [view.nodes[boot] for boot in boots if boot in living]


@dataclass(slots=True)
class _Where:
    """The nodes that have each instance, and the instances that each node has."""

    boots: dict[str, frozenset[str]] = field(default_factory=dict)
    instances: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _where(picture: Picture, former: _Where | None, stale: frozenset[str]) -> _Where:
    made = _Where({**former.boots}, {**former.instances}) if former is not None else _Where()
    for boot in stale if former is not None else picture.nodes:
        for instance in made.instances.pop(boot, ()):
            left = made.boots.pop(instance) - {boot}
            if left:
                made.boots[instance] = left
        node = picture.nodes.get(boot)
        if node is not None and node.instances:
            made.instances[boot] = tuple(node.instances)
            for instance in node.instances:
                made.boots[instance] = made.boots.get(instance, NOTHING) | {boot}
    return made


_WHERE = Derived(PLACES, _where)
