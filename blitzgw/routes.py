"""Which instances a node's router may choose from: its own, and those of other living nodes.

An instance is in the router while its node lives and can be reached, it serves, and the definition
of its model is the one that holds.
"""

from __future__ import annotations

import logging

from blitzgw.core.clock import Clock
from blitzgw.core.instance import InstanceState
from blitzgw.core.ports import InstancePort
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.definitions import Definitions
from blitzgw.gossip.remote import RemoteInstance
from blitzgw.network import Network
from blitzgw.router.router import Router
from blitzgw.scheduler.shell import LocalInstance

log = logging.getLogger(__name__)

EJECTED_S = 2.5
"""How long nothing is sent to a node whose link broke: gossip knows by then whether it has died."""

ROUTED = (InstanceState.SERVING, InstanceState.DRAINING)
"""States in which an instance keeps what it has; whether it takes more is in its outlook."""


class Routes:
    """Keeps the router in step with the devices of this node and the view of the cluster."""

    def __init__(
        self, router: Router, network: Network, definitions: Definitions, clock: Clock
    ) -> None:
        self._router, self._network, self._definitions = router, network, definitions
        self._clock = clock
        self._local: dict[str, LocalInstance] = {}
        self._routed: dict[str, InstancePort] = {}
        self._ejected: dict[str, float] = {}

    def local_up(self, port: LocalInstance, claim: int, view: ClusterView) -> None:
        """Serve an instance of a device of this node, at a claim of the device."""
        self._local[port.instance] = port
        self._network.serving.host(port, claim)
        self.follow(view)

    def local_down(self, instance: str, reason: str) -> None:
        """Serve an instance no more; its scheduler reports what peers had there."""
        self._network.serving.unhost(instance)
        self._local.pop(instance, None)
        self._remove(instance, reason)

    def close_local(self) -> None:
        """Let this node's instances take nothing new while others can."""
        for port in self._local.values():
            port.open = False

    def eject(self, boot: str, reason: str) -> None:
        """Send nothing to a node for a while, and take back what is there."""
        self._ejected[boot] = self._clock.now() + EJECTED_S
        for port in self._remotes():
            if port.boot == boot:
                self._remove(port.instance, reason)

    def forgive(self, view: ClusterView) -> None:
        """Route again to nodes that were ejected long enough ago."""
        now = self._clock.now()
        over = [boot for boot, until_s in self._ejected.items() if until_s <= now]
        for boot in over:
            del self._ejected[boot]
        if over:
            self.follow(view)

    def follow(self, view: ClusterView) -> None:
        """Give the router the instances that there are by now, and take back those that are not."""
        wanted = self._wanted(view)
        there = {instance for node in view.living() for instance in node.instances}
        for instance in [*self._routed]:
            if instance not in wanted:
                why = "the instance is not served any more"
                self._remove(instance, why, planned=instance in there)
        for instance, (node, facts) in wanted.items():
            if node is None:
                if instance not in self._routed:
                    self._add(self._local[instance])
            else:
                self._follow_remote(node, facts)

    def take_loads(self, boots: set[str], view: ClusterView) -> None:
        """Tell the router's ways to these nodes how busy their instances are."""
        for port in self._remotes():
            if port.boot not in boots or port.boot not in view.nodes:
                continue
            load = view.nodes[port.boot].loads.get(port.instance)
            if load is not None:
                port.update_load(load)
                self._router.instance_changed(port.instance)

    def _follow_remote(self, node: NodeView, facts: InstanceFacts) -> None:
        port = self._routed.get(facts.id)
        if isinstance(port, RemoteInstance) and port.boot == node.boot:
            port.update(node, facts)
            return
        if port is not None:
            self._remove(facts.id, "the node has been restarted")
        self._add(self._network.remote(node, facts))

    def _wanted(self, view: ClusterView) -> dict[str, tuple[NodeView | None, InstanceFacts]]:
        """Return the instances to route to, with their node where that is another one.

        Of two nodes that claim one id, which two of the same name do, the one that started first
        has it.
        """
        wanted: dict[str, tuple[NodeView | None, InstanceFacts]] = {}
        for node in sorted(view.living(), key=lambda node: (node.started_s, node.boot)):
            local = node.boot == view.local
            if node.boot in self._ejected:
                continue
            for instance, facts in node.instances.items():
                usable = instance in self._local if local else facts.state in ROUTED
                holds = self._definitions.holds(facts.model, facts.digest)
                if usable and holds and instance not in wanted:
                    wanted[instance] = (None if local else node, facts)
        return wanted

    def _remotes(self) -> list[RemoteInstance]:
        return [port for port in self._routed.values() if isinstance(port, RemoteInstance)]

    def _add(self, port: InstancePort) -> None:
        self._routed[port.instance] = port
        self._router.instance_up(port)

    def _remove(self, instance: str, reason: str, *, planned: bool = False) -> None:
        port = self._routed.pop(instance, None)
        if isinstance(port, RemoteInstance):
            self._network.ingress.forget(instance)
        if port is not None:
            self._router.instance_down(instance, reason, planned=planned)
