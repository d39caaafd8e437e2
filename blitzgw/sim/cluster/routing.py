"""Which instances a simulated router chooses from: routes.py's rules, for those that have changed.

The production code looks at all instances of a view each time, which at thousands of nodes and
several changes a second would be most of what a simulation does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.core.whereabouts import nodes_with
from blitzgw.routes import EJECTED_MIN_S, HOPEFUL, ROUTED, SUMMONED_S
from blitzgw.scheduler.shell import LocalInstance
from blitzgw.sim.cluster.ports import SeenInstance

if TYPE_CHECKING:
    from blitzgw.sim.cluster.ingress import Ingress


class Routing:
    """Keeps a router in step with the view, and with the instances of its own node."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress, self._router = ingress, ingress.router
        self._boot, self._clock = ingress.node.boot, ingress.clock
        self._local: dict[str, LocalInstance] = {}
        self._seen: dict[str, dict[str, SeenInstance]] = {}
        """Those of other nodes, by boot."""
        self._ejected: dict[str, float] = {}
        self._summoned: dict[str, float] = {}

    def local_up(self, port: LocalInstance, digest: str) -> None:
        """Route to an instance of this node."""
        self._local[port.instance] = port
        self._router.instance_up(port, digest)

    def local_down(self, instance: str, reason: str, *, planned: bool) -> None:
        """Route to it no more."""
        if self._local.pop(instance, None) is not None:
            self._router.instance_down(instance, reason, planned=planned)

    def follow(self, view: ClusterView, changed: Iterable[str]) -> None:
        """Take what has changed of some processes."""
        for boot in sorted(changed):  # whatever the hashes of strings are
            if boot != self._boot:
                node = view.nodes.get(boot)
                self._follow(boot, node if node is not None and node.living else None)

    def is_local(self, instance: str) -> bool:
        """Tell whether an instance is this node's."""
        return instance in self._local

    def eject(self, boot: str, reason: str) -> float:
        """Send nothing to a process for a while, and take back what is there; return until when."""
        until_s = self._ejected[boot] = self._clock.now() + EJECTED_MIN_S
        for instance in [*self._seen.get(boot, ())]:
            self._remove(boot, instance, reason)
        return until_s

    def forgive(self, boot: str, view: ClusterView) -> None:
        """Look again at a process that was ejected."""
        self._ejected.pop(boot, None)
        self.follow(view, (boot,))

    def summon(self, instance: str, view: ClusterView) -> None:
        """Route to an instance that has just told this node that it serves, or is about to."""
        for node in nodes_with(instance, view):
            facts = node.instances[instance]
            if node.boot == self._boot or node.boot in self._ejected:
                continue
            if facts.state in HOPEFUL and not self._has(node.boot, instance):
                self._summoned[instance] = self._clock.now() + SUMMONED_S
                self._add(node, facts)

    def _follow(self, boot: str, node: NodeView | None) -> None:
        if boot in self._ejected and node is not None:
            return
        there = {} if node is None else node.instances
        wanted = {name: facts for name, facts in there.items() if self._serves(facts)}
        for instance in [*self._seen.get(boot, ())]:
            if instance not in wanted:
                reason = "the instance is not served any more"
                self._remove(boot, instance, reason, planned=instance in there)
        if node is not None:
            for facts in wanted.values():
                self._update(node, facts)

    def _update(self, node: NodeView, facts: InstanceFacts) -> None:
        port = self._seen.get(node.boot, {}).get(facts.id)
        if port is None:
            self._add(node, facts)
        elif port.update(node, facts):
            self._router.instance_changed(facts.id)

    def _serves(self, facts: InstanceFacts) -> bool:
        if facts.state is not InstanceState.LOADING:
            self._summoned.pop(facts.id, None)
            return facts.state in ROUTED
        return facts.leads or self._summoned.get(facts.id, 0.0) > self._clock.now()

    def _has(self, boot: str, instance: str) -> bool:
        return instance in self._seen.get(boot, {})

    def _add(self, node: NodeView, facts: InstanceFacts) -> None:
        port = self._ingress.way_to(node, facts)
        self._seen.setdefault(node.boot, {})[facts.id] = port
        self._router.instance_up(port, facts.digest)

    def _remove(self, boot: str, instance: str, reason: str, *, planned: bool = False) -> None:
        ports = self._seen[boot]
        del ports[instance]
        if not ports:
            del self._seen[boot]
        self._ingress.remote.forget(instance)
        self._router.instance_down(instance, reason, planned=planned)
