"""Peer links as the production ends of requests see them (gossip/remote.py, gossip/serving.py).

Messages take the cluster's peer links. Tokens do not: they are handed over at once, with the moment
at which they were sampled, and what their way takes is added to what is told of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blitzgw.core.peer import Loss, Tokens
from blitzgw.core.request import TokenEvent
from blitzgw.errors import RequestError

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode


class Wire:
    """A node's links. `told_s` is when the tokens that are being sent were sampled; -1: now."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.told_s = -1.0
        self.broken: set[str] = set()
        """Processes that cannot be reached."""

    def usable(self, boot: str) -> bool:
        """Tell whether a message may get to a process, as far as is known."""
        return boot not in self.broken

    def rtt_s(self, _boot: str) -> float:
        """Return what a message there and back takes."""
        return 2 * self._node.world.latencies.message_s

    def send(self, boot: str, _address: object, message: Any) -> None:
        """Send a message to a process."""
        if isinstance(message, Tokens):
            other = self._node.world.process(boot)
            if other is not None and other.ingress is not None:
                other.ingress.tokens(self._node.boot, message, self.told_s)
        else:
            self._node.say(boot, message)


class Here:
    """A `core.ports.Ingress`: the router of the node that has the instance, if it has one."""

    def __init__(self, node: SimNode, wire: Wire) -> None:
        self._node, self._wire = node, wire

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Take what steps have produced for requests of this node's clients."""
        if self._node.ingress is not None:
            self._node.ingress.own_tokens(events, self._wire.told_s)

    def on_lost(self, losses: Sequence[Loss], reason: str, *, planned: bool = False) -> None:
        """Take requests back."""
        if self._node.ingress is not None:
            self._node.ingress.router.on_lost(losses, reason, planned=planned)

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        """Take a request back that an instance does not want."""
        if self._node.ingress is not None:
            self._node.ingress.router.on_declined(request_id, attempt, error)
