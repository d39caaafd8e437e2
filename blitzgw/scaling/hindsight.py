"""What an owner knows of instances before gossip tells it: what its own operations do and did.

A view lags by up to a second. Whoever orders again at once would otherwise be answered from what
was there before: instances that have just been retired would count, ones just brought up would not,
and what one operation has claimed another would ask for too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.scaling.survey import COUNTED

KEPT_S = 3.0
"""Three rounds of the slowest gossip: what a view does not show by then is not so (any more)."""

MAX_OUTCOMES = 8192
"""Twice the instances of the largest model (operations.py); the oldest outcomes go first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of an instance of the process `boot`, as its node has said itself."""

    boot: str
    facts: InstanceFacts


class Hindsight:
    """The outcomes of the last seconds, and views corrected by them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, Outcome]] = {}

    def note(self, outcomes: Iterable[Outcome], now: float) -> None:
        """Remember outcomes until a view shows them, at most KEPT_S."""
        for outcome in outcomes:
            key = outcome.boot, outcome.facts.id
            self._known.pop(key, None)
            self._known[key] = now + KEPT_S, outcome
        while len(self._known) > MAX_OUTCOMES:
            del self._known[next(iter(self._known))]

    def correct(self, view: ClusterView, now: float) -> ClusterView:
        """Return a view with what it does not show yet; forget what it does."""
        nodes: dict[str, NodeView] = {}
        for key, (until_s, outcome) in [*self._known.items()]:
            node = nodes.get(outcome.boot) or view.nodes.get(outcome.boot)
            if now >= until_s or node is None or not node.living or _shown(node, outcome.facts):
                del self._known[key]
                continue
            instances = {**node.instances, outcome.facts.id: outcome.facts}
            nodes[outcome.boot] = replace(node, instances=instances)
        return _changed(view, nodes)

    def __len__(self) -> int:
        return len(self._known)


def foresee(view: ClusterView, claimed: Iterable[Outcome]) -> ClusterView:
    """Return a view with the instances of running operations that it does not show yet."""
    nodes: dict[str, NodeView] = {}
    for outcome in claimed:
        node, facts = nodes.get(outcome.boot) or view.nodes.get(outcome.boot), outcome.facts
        if node is None or not node.living:
            continue
        told, device = node.instances.get(facts.id), node.devices.get(facts.device)
        shown = told is not None and told.state in COUNTED and told.claim >= facts.claim
        if not shown and device is not None and device.claim <= facts.claim:
            nodes[outcome.boot] = replace(node, instances={**node.instances, facts.id: facts})
    return _changed(view, nodes)


def _changed(view: ClusterView, nodes: Mapping[str, NodeView]) -> ClusterView:
    """Return a view with these nodes as they are here."""
    if not nodes:
        return view
    picture = view.picture.after(nodes)
    return ClusterView(view.local, picture.nodes, picture)


def _shown(node: NodeView, facts: InstanceFacts) -> bool:
    """Whether a node's own entries are as new as an outcome, or newer."""
    told, device = node.instances.get(facts.id), node.devices.get(facts.device)
    if device is None or device.claim > facts.claim:
        return True
    gone = told is None or told.claim > facts.claim or told.state is InstanceState.GONE
    if facts.state is InstanceState.GONE:
        return gone
    if facts.state is InstanceState.DRAINING:
        return gone or (told is not None and told.state is InstanceState.DRAINING)
    return told is not None and told.claim >= facts.claim
