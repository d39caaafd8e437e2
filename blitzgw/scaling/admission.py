"""What a node can give to operations: free devices, weights that are there, shares of ports."""

from __future__ import annotations

from collections.abc import Mapping

from blitzgw.core.operation import Claim, Engage
from blitzgw.core.plan import node_of
from blitzgw.scaling.engagement import Engagement, Premises
from blitzgw.scaling.events import GONE, TAKEN
from blitzgw.scaling.leases import PortPromises

MAX_ENGAGEMENTS = 256
"""Operations that a node takes part in at once: far more than it has devices or ports for."""


class Admission:
    """Says why something is refused. `engaged` and `ports` are the steward's own books."""

    def __init__(
        self,
        node: str,
        premises: Premises,
        engaged: Mapping[str, Engagement],
        ports: PortPromises,
    ) -> None:
        self._node, self._premises = node, premises
        self._engaged, self._ports = engaged, ports

    def crowded(self) -> str:
        """Return why the node cannot take part in one more operation, or nothing."""
        if len(self._engaged) < MAX_ENGAGEMENTS:
            return ""
        return f"{self._node} takes part in {MAX_ENGAGEMENTS} operations"

    def objection(self, message: Claim, revived: str = "") -> str:
        """Return why a device cannot be claimed, or nothing; `revived` is there and ready."""
        where, present = f"{self._node}/{message.device}", self._premises.claim(message.device)
        if present is None:
            return f"{where} is not up"
        if present != message.claim:
            return f"{where} is at claim {present}, not {message.claim}"
        if any(message.device in held.leases for held in self._engaged.values()):
            return f"{where} is claimed by another operation"
        if message.operation not in self._engaged and self.crowded():
            return self.crowded()
        if revived:
            return ""
        return self._premises.objection(message.device, message.model, message.digest)

    def refusal(self, held: Engagement, message: Engage) -> str:
        """Return why an order cannot be carried out, in words that begin as events.py says."""
        reading = {order.worker for order in message.reads}
        for edge in message.edges:
            device = edge.target.partition("/")[2]
            arrives = node_of(edge.target) == self._node and not message.copy
            if arrives and device not in held.leases:
                return f"{GONE}: {edge.target}"
            device = edge.source.partition("/")[2]
            if node_of(edge.source) != self._node or held.target(device) is not None:
                continue
            if edge.source not in reading and not self._premises.has_weights(
                device, message.weights
            ):
                return f"{GONE}: {edge.source}"
        network = self._ports.overdrawn(
            message.edges, self._premises.rates(), frozenset(held.edges)
        )
        return f"{TAKEN}: {network}" if network else ""
