"""A router's way to an instance of another simulated node, with figures as old as reports are.

On nodes figures come as reports, at most every REPORT_S while they change. Nobody sends any here:
whoever asks is shown what the last report would have said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from blitzgw.core.ports import Outlook
from blitzgw.core.view import InstanceFacts, NodeView
from blitzgw.gossip.remote import REPORT_LAG_S, RemoteIngress, RemoteInstance
from blitzgw.publishing import GOSSIP_LOAD_S
from blitzgw.sim.cluster.runner import Runner

if TYPE_CHECKING:
    from blitzgw.sim.cluster.ingress import Ingress


class SeenInstance(RemoteInstance):
    """A `core.ports.InstancePort` for an instance of another node."""

    def __init__(
        self, ingress: Ingress, remote: RemoteIngress, node: NodeView, facts: InstanceFacts
    ) -> None:
        super().__init__(remote, ingress.links, ingress.clock, node, facts)
        self._asker, self._world = ingress.node.boot, ingress.node.world
        self._heap, latencies = self._world.heap, self._world.latencies
        self._period_s, self._way_s = latencies.report_s, latencies.message_s
        self._rtt_s = 2 * latencies.message_s
        self._phase = crc32(node.boot.encode()) % 997 / 997
        self._gossip_s = latencies.gossip_lag_s
        self._runner: Runner | None = None

    def outlook(self) -> Outlook:
        """Return how busy it was at the last report, and what has been sent there since."""
        now, runner = self._heap.now, self._runner
        if runner is None or not runner.up:
            runner = self._runner = self._find()
        if runner is not None and runner.users.has(self._asker, now):
            period_s, way_s = self._period_s, self._way_s
        else:
            period_s, way_s = GOSSIP_LOAD_S, self._gossip_s
        told_s = now - way_s
        told_s -= (told_s - self._phase * period_s) % period_s
        since_s, queued, rate = (told_s, 0, None) if runner is None else runner.seen_at(told_s)
        since_s += period_s
        heard_s = (told_s if told_s <= since_s else since_s) + way_s
        sent = self._sent
        if sent:
            self._settle(heard_s - REPORT_LAG_S)
            queued += sum([tokens for _, tokens in sent])
        age_s = now - heard_s if now > heard_s else 0.0
        return Outlook(queued, rate, self._rtt_s, age_s, self._open, self._reluctant)

    def _find(self) -> Runner | None:
        node = self._world.process(self._node.boot)
        if node is None or node.serving is None:
            return None
        return node.serving.runner_of(self._facts.id)
