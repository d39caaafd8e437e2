"""Which instances a node's router may choose from: its own, and those of other living nodes.

An instance is in the router while its node lives and can be reached, it serves, and the definition
of its model is the one that holds. So is one that leads a pipeline while it loads: who is told that
it keeps a request goes there, and once all of its stages are there, whoever finds no other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from blitzgw.core.clock import Clock
from blitzgw.core.instance import InstanceState
from blitzgw.core.ports import InstancePort
from blitzgw.core.view import ClusterView, InstanceFacts, LoadFacts, NodeView
from blitzgw.core.whereabouts import nodes_with
from blitzgw.definitions import Definitions
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.remote import RemoteInstance
from blitzgw.network import Network
from blitzgw.router.router import Router
from blitzgw.scheduler.shell import LocalInstance

log = logging.getLogger(__name__)

EJECTED_MIN_S = 2.5
"""How long nothing is sent to a node whose link broke, at least: a worker's process, a switch or a
machine that comes back does so within that."""

EJECTED_PROBES = 4
"""Probe intervals until the death of a node whose link broke is suspected, and until the end of the
suspicion has come round."""

SUMMONED_S = 5.0
"""For so long an instance is believed to serve that gossip does not call serving yet."""

ADDED_AT_ONCE = 100
"""So many instances are added before other work has its turn: some milliseconds."""

ROUTED = (InstanceState.SERVING, InstanceState.DRAINING)
"""States in which an instance keeps what it has; whether it takes more is in its outlook."""

HOPEFUL = (*ROUTED, InstanceState.LOADING)
"""States in which an instance is worth waiting for."""

Wanted = dict[str, tuple[NodeView | None, InstanceFacts]]
"""Instances to route to, with their node where that is another one."""


class Routes:
    """Keeps the router in step with the devices of this node and the view of the cluster."""

    def __init__(
        self, router: Router, network: Network, definitions: Definitions, clock: Clock
    ) -> None:
        self._router, self._network, self._definitions = router, network, definitions
        self._clock = clock
        self._local: dict[str, LocalInstance] = {}
        self._routed: dict[str, InstancePort] = {}
        self._remotes: dict[str, dict[str, RemoteInstance]] = {}
        """Those of the routed ones that are on other nodes, by boot."""
        self._ejected: dict[str, float] = {}
        self._summoned: dict[str, float] = {}
        """Until when those are believed that are to serve though they seem to load."""

    def local_up(self, port: LocalInstance, claim: int, digest: str) -> None:
        """Serve an instance of a device of this node, at a claim of the device; then `follow`."""
        self._local[port.instance] = port
        self._network.serving.host(port, claim, digest)
        if self._routed.get(port.instance) is port:  # it has led a pipeline, and is open now
            self._router.instance_up(port, digest)

    def local_down(self, instance: str, reason: str, *, planned: bool = False) -> None:
        """Serve an instance no more; its scheduler reports what peers had there."""
        self._network.serving.unhost(instance)
        self._local.pop(instance, None)
        self._remove(instance, reason, planned=planned)

    def close_local(self) -> None:
        """Let this node's instances take nothing new while others can."""
        for port in self._local.values():
            port.open = False

    def eject(self, boot: str, reason: str, view: ClusterView) -> None:
        """Send nothing to a node for a while, and take back what is there."""
        members = sum(1 for _ in view.living())
        self._ejected[boot] = self._clock.now() + ejected_s(self._network.knobs, members)
        for instance in [*self._remotes.get(boot, ())]:
            self._remove(instance, reason)

    @property
    def unforgiving(self) -> bool:
        """Whether anybody is ejected, whom `forgive` is to look at."""
        return bool(self._ejected)

    def forgive(self) -> bool:
        """Note who was ejected long enough ago; return whether there is anybody: `follow` then."""
        now = self._clock.now()
        over = [boot for boot, until_s in self._ejected.items() if until_s <= now]
        for boot in over:
            del self._ejected[boot]
        return bool(over)

    def summon(self, instance: str, view: ClusterView) -> None:
        """Route to an instance of another node that is about to serve, or does so already.

        One that has just told this node of it: gossip takes longer.
        """
        for node in nodes_with(instance, view):
            facts = node.instances[instance]
            known = instance in self._routed or node.boot in self._ejected
            if known or node.boot == view.local:
                continue
            if facts.state in HOPEFUL and self._definitions.holds(facts.model, facts.digest):
                self._summoned[instance] = self._clock.now() + SUMMONED_S
                self._add(self._network.remote(node, facts), facts.digest)

    def follow(self, view: ClusterView, limit: int = ADDED_AT_ONCE) -> bool:
        """Give the router the instances that there are by now, and take back those that are not.

        At most `limit` are new to it, own ones first; returns whether there are more.
        """
        wanted = self._wanted(view)
        there = {instance for node in view.living() for instance in node.instances}
        for instance in [*self._routed]:
            if instance not in wanted:
                why = "the instance is not served any more"
                self._remove(instance, why, planned=instance in there)
        new = [each for each in wanted.values() if not self._is_routed(*each)]
        new.sort(key=lambda each: each[0] is not None)
        for node, facts in new[:limit]:
            self._remove(facts.id, "the node has been restarted")
            port = self._local[facts.id] if node is None else self._network.remote(node, facts)
            self._add(port, facts.digest)
        return len(new) > limit

    def take_loads(self, loads: Mapping[str, Iterable[LoadFacts]]) -> None:
        """Tell the router's ways to other nodes, by boot, how busy their instances are.

        Who is held for a model is looked at once for all of its instances.
        """
        models: dict[str, str] = {}
        for boot, theirs in loads.items():
            ports = self._remotes.get(boot, {})
            for load in theirs:
                port = ports.get(load.instance)
                if port is not None:
                    port.update_load(load)
                    models[port.model] = port.instance
        for model, instance in models.items():
            if self._router.held(model):
                self._router.instance_changed(instance)

    def hopeless(self, view: ClusterView) -> set[str]:
        """Return the models of which instances have failed and none is there or on its way."""
        failed, hopeful = set[str](), set[str]()
        for node in view.living():
            for facts in node.instances.values():
                if not self._definitions.holds(facts.model, facts.digest):
                    continue
                if facts.state in HOPEFUL:
                    hopeful.add(facts.model)
                elif facts.state is InstanceState.GONE:
                    failed.add(facts.model)
        return failed - hopeful

    def _is_routed(self, node: NodeView | None, facts: InstanceFacts) -> bool:
        """Tell whether the router has just this instance; bring what it has up to date."""
        port = self._routed.get(facts.id)
        if node is None:
            return port is self._local[facts.id]
        if not isinstance(port, RemoteInstance):
            return False
        if (port.boot, port.digest) != (node.boot, facts.digest):
            return False
        if port.update(node, facts):
            self._router.instance_changed(facts.id)
        return True

    def _wanted(self, view: ClusterView) -> Wanted:
        """Return the instances to route to.

        Of two nodes that claim one id, which two of the same name do, one that is not suspected to
        be dead has it, then the one that started first.
        """
        wanted: Wanted = {}
        for node in sorted(view.living(), key=_precedence):
            local = node.boot == view.local
            if node.boot in self._ejected:
                continue
            for instance, facts in node.instances.items():
                usable = instance in self._local if local else self._serves(facts)
                holds = self._definitions.holds(facts.model, facts.digest)
                if usable and holds and instance not in wanted:
                    wanted[instance] = (None if local else node, facts)
        return wanted

    def _serves(self, facts: InstanceFacts) -> bool:
        """Tell whether an instance of another node serves, as far as is known."""
        if facts.state is not InstanceState.LOADING:
            self._summoned.pop(facts.id, None)
            return facts.state in ROUTED
        return facts.leads or self._summoned.get(facts.id, 0.0) > self._clock.now()

    def _add(self, port: InstancePort, digest: str) -> None:
        self._routed[port.instance] = port
        if isinstance(port, RemoteInstance):
            self._remotes.setdefault(port.boot, {})[port.instance] = port
        self._router.instance_up(port, digest)

    def _remove(self, instance: str, reason: str, *, planned: bool = False) -> None:
        port = self._routed.pop(instance, None)
        if port is None:
            return
        if isinstance(port, RemoteInstance):
            del self._remotes[port.boot][instance]
            if not self._remotes[port.boot]:
                del self._remotes[port.boot]
            self._network.ingress.forget(instance)
        elif instance in self._local:
            self._stop(port)
        self._router.instance_down(instance, reason, planned=planned)

    def _stop(self, port: InstancePort) -> None:
        """End what the router has at an instance of this node whose scheduler lives on."""
        for facts in self._router.requests(self._clock.now()):
            if facts.instance == port.instance:
                port.abort(facts.id, facts.attempt)


def ejected_s(knobs: Knobs, members: int) -> float:
    """Return how long nothing is sent to a node whose link broke, in seconds.

    By then gossip among so many members knows whether it has died: the least time that a suspicion
    lasts, and EJECTED_PROBES intervals for it to begin and for its end to be heard of.
    """
    probes_s = EJECTED_PROBES * knobs.probe_interval_s
    return max(EJECTED_MIN_S, knobs.suspicion_min_s(members) + probes_s)


def _precedence(node: NodeView) -> tuple[int, int, str]:
    return node.status, node.started_s, node.boot
