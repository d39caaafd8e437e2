"""Models as the nodes of a cluster define them, and how their numbers of instances are decided.

Several definitions of one name where nodes do not agree: that which holds comes first. What is told
of scaling is about the name, whose owner scales the definition that holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blitzgw.api.why import terms, wish
from blitzgw.core.view import ClusterView, ModelFacts, NodeView, ScaleFacts, ScaleTerms, ScaleWish
from blitzgw.gossip.catalogue import settle


@dataclass(slots=True)
class _Definition:
    """What a name means to some nodes, and what there is of it."""

    name: str
    digest: str
    layers: int
    since_s: int
    weights: str
    terms: ScaleTerms
    aliases: set[str] = field(default_factory=set)
    nodes: list[str] = field(default_factory=list)
    instances: Counter[str] = field(default_factory=Counter)
    disks: list[str] = field(default_factory=list)
    host_copies: int = 0
    host_copies_wanted: int = 0
    host_cached: int = 0

    def add(self, node: str, facts: ModelFacts) -> None:
        self.since_s = min(self.since_s, facts.since_s)
        self.aliases.update(facts.aliases)
        self.nodes.append(node)
        self.host_copies_wanted = max(self.host_copies_wanted, facts.host_copies)
        if facts.disk:
            self.disks.append(node)


def in_order(nodes: Iterable[NodeView]) -> list[NodeView]:
    """Return nodes in the order in which they are told."""
    return sorted(nodes, key=lambda node: (node.name, node.started_s, node.boot))


def definitions(view: ClusterView, now_s: float) -> Iterator[dict[str, Any]]:
    """Yield every definition; of a name that has several, that which holds comes first.

    `now_s` is Unix time.
    """
    settled = settle(view)

    def order(definition: _Definition) -> tuple[str, bool, int, str]:
        rival = settled[definition.name].digest != definition.digest
        return definition.name, rival, definition.since_s, definition.digest

    for definition in sorted(_found(view), key=order):
        holding = settled[definition.name]
        yield {
            "name": definition.name,
            "aliases": sorted(definition.aliases),
            "digest": definition.digest,
            "layers": definition.layers,
            "since": definition.since_s,
            "nodes": definition.nodes,
            "instances": dict(sorted(definition.instances.items())),
            "weights": definition.weights or None,
            "host_copies": definition.host_copies,
            "host_copies_wanted": definition.host_copies_wanted,
            "host_cached": definition.host_cached,
            "disks": definition.disks,
            "conflict": bool(holding.rivals),
            "prevails": holding.digest == definition.digest,
            "terms": terms(definition.terms),
            "wish": _wish(definition.name, view),
            "scaling": _scaling(definition.name, view, now_s),
        }


def _found(view: ClusterView) -> list[_Definition]:
    """Return the definitions of living nodes, with what there is of each."""
    found: dict[tuple[str, str], _Definition] = {}
    living = in_order(view.living())
    for node in living:
        for facts in node.models.values():
            key = facts.name, facts.digest
            known = found.get(key)
            if known is None:
                oldest = view.oldest_definition(*key) or facts
                known = _Definition(
                    *key, facts.layers, facts.since_s, facts.weights, oldest.scaling
                )
                found[key] = known
            known.add(node.name, facts)
    for node in living:
        for instance in node.instances.values():
            if definition := found.get((instance.model, instance.digest)):
                definition.instances[instance.state.value] += 1
        for definition in found.values():
            copy = node.copies.get(definition.weights)
            if copy is not None and copy.complete:
                definition.host_copies += not copy.cached
                definition.host_cached += copy.cached
    return list(found.values())


def _wish(model: str, view: ClusterView) -> int | str | None:
    """Return what an operator wants of a model, None where nobody has said anything."""
    told = [node.wishes[model] for node in view.living() if model in node.wishes]
    if not told:
        return None

    def age(each: ScaleWish) -> tuple[int, str]:
        return each.stamp, each.writer

    return wish(max(told, key=age).wanted)


def _scaling(model: str, view: ClusterView, now_s: float) -> dict[str, Any] | None:
    """Return what a model's owner tells; of two that take themselves for it, the later one."""
    told = [(node.name, node.scaling[model]) for node in view.living() if model in node.scaling]
    if not told:
        return None
    owner, facts = max(told, key=lambda each: (each[1].since_s, each[0]))
    return {
        "owner": owner,
        "mode": facts.mode,
        "present": facts.present,
        "wanted": facts.wanted,
        "pressure": facts.pressure,
        "eta_s": _eta_s(facts, now_s),
        "reason": facts.reason or None,
    }


def _eta_s(facts: ScaleFacts, now_s: float) -> float | None:
    """Return the seconds until the next instance serves, None where none is on its way."""
    return round(max(0.0, facts.ready_s - now_s), 3) if facts.ready_s > 0 else None
