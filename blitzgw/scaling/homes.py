"""Homes: complete instances that serve a model, which loading ones can help.

A target of an operation is no home for it. Each target keeps its home for as long as that lives; a
new one is the home with the most work for each of its helpers, among equals one with fewer helpers,
then a near one. Its work is what is queued and one batch: gossip is late, and homes that seem idle
get their share of what comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from blitzgw.core.instance import InstanceState, Role
from blitzgw.core.plan import node_of
from blitzgw.core.view import ClusterView, NodeView
from blitzgw.scaling.survey import ModelDefinition, PlacedInstance, instances_of, members

BATCH_TOKENS = 512
"""Of a batch where its model's definition does not say: what is configured by default."""


@dataclass(frozen=True, slots=True)
class Home:
    """A complete instance. `networks` are its node's, by name; `batch_tokens` fit a step."""

    placed: PlacedInstance
    zone: str
    networks: frozenset[str]
    batch_tokens: int = BATCH_TOKENS

    @property
    def id(self) -> str:
        """The instance."""
        return self.placed.facts.id

    @property
    def queued_tokens(self) -> int:
        """What waits there or is not computed yet; 0 where that is not known."""
        return max(0, self.placed.load.queued_tokens) if self.placed.load is not None else 0


def homes_of(
    definition: ModelDefinition, view: ClusterView, targets: Collection[str]
) -> dict[str, Home]:
    """Return the homes of a model that are none of `targets`, by instance."""
    nodes, found = members(view), {}
    told = view.oldest_definition(definition.name, definition.digest)
    batch = told.max_batched_tokens if told is not None else 0
    for placed in instances_of(definition.name, view):
        facts, node = placed.facts, nodes[node_of(placed.worker)]
        serves = facts.state is InstanceState.SERVING and facts.role is not Role.DECODE
        if serves and facts.weights == definition.weights and placed.worker not in targets:
            found[facts.id] = Home(placed, *_place(node), batch if batch > 0 else BATCH_TOKENS)
    return found


def assign(
    targets: Collection[str],
    former: Mapping[str, Home],
    homes: Mapping[str, Home],
    view: ClusterView,
) -> dict[str, Home]:
    """Return a home for every target that can reach one: the `former` one if it is there yet."""
    found = {w: homes[h.id] for w, h in former.items() if w in targets and h.id in homes}
    helpers = _helpers(homes.values(), view, targets) + Counter(home.id for home in found.values())
    nodes = members(view)
    for worker in sorted(targets):
        here = node_of(worker)
        zone, networks = _place(nodes.get(here))
        able = [
            home
            for home in homes.values()
            if node_of(home.placed.worker) == here or home.networks & networks
        ]
        if worker not in found and able:
            best = min(able, key=lambda home: _rank(home, here, zone, helpers[home.id]))
            found[worker] = best
            helpers[best.id] += 1
    return found


def _place(node: NodeView | None) -> tuple[str, frozenset[str]]:
    host = node.host_facts if node is not None else None
    if host is None:
        return "", frozenset()
    return host.zone, frozenset(network.name for network in host.networks)


def _helpers(homes: Iterable[Home], view: ClusterView, targets: Collection[str]) -> Counter[str]:
    """Return how many instances that are no targets help each home yet: those of its model may."""
    models = dict.fromkeys(home.placed.facts.model for home in homes)
    return Counter(
        placed.facts.helps
        for model in models
        for placed in instances_of(model, view)
        if placed.facts.helps
        and placed.facts.state is InstanceState.LOADING
        and placed.worker not in targets
    )


def _rank(home: Home, node: str, zone: str, helpers: int) -> tuple[float, int, int, str]:
    near = 0 if node_of(home.placed.worker) == node else 1 if zone and zone == home.zone else 2
    work = home.queued_tokens + home.batch_tokens
    return -work / (helpers + 1), helpers, near, home.id
