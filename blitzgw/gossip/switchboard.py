"""Passes what links tell to whom it concerns: the `LinkListener` of a node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, get_args

from blitzgw.core.live import LiveMessage
from blitzgw.core.operation import OperationMessage
from blitzgw.core.peer import (
    Abort,
    Content,
    Declined,
    Fetch,
    LoadReport,
    Lost,
    PlainTokens,
    Submit,
    Tokens,
)
from blitzgw.core.probe import ProbeMessage
from blitzgw.core.scale import ScaleMessage
from blitzgw.gossip.content import ContentClient, ContentServer
from blitzgw.gossip.remote import RemoteIngress
from blitzgw.gossip.serving import Serving

log = logging.getLogger(__name__)

OnLoad = Callable[[str, LoadReport], None]
"""Takes a peer's boot id and what it says of its instances."""


class OperationsPort(Protocol):
    """Who takes part in scale operations and pairings, and has them with peers."""

    def said(self, boot: str, message: Any) -> None:
        """A peer has said something of core/operation.py or core/live.py."""

    def link_lost(self, boot: str, reason: str) -> None:
        """The link to a peer broke: answers that are awaited from it do not come."""

    def count(self, boot: str) -> int:
        """Return how many operations are under way with a peer."""


class Switchboard:
    """Joins the parts that speak over links. `join` comes before the first link."""

    def __init__(self, on_load: OnLoad, operations: OperationsPort) -> None:
        self._operations = operations
        self._takers: dict[type[Any], Callable[[str, Any], None]] = {LoadReport: on_load}
        said = get_args(OperationMessage) + get_args(ProbeMessage) + get_args(LiveMessage)
        said += get_args(ScaleMessage)
        self._takers |= dict.fromkeys(said, operations.said)

    def join(
        self, serving: Serving, ingress: RemoteIngress, server: ContentServer, client: ContentClient
    ) -> None:
        """Tell these from now on."""
        self._serving, self._ingress, self._server, self._client = serving, ingress, server, client
        self.on_plain = ingress.on_plain
        self._takers |= {
            Submit: serving.on_submit,
            Abort: serving.on_abort,
            Tokens: ingress.on_tokens,
            PlainTokens: lambda boot, message: ingress.on_plain(boot, message.tokens),
            Declined: ingress.on_declined,
            Lost: ingress.on_lost,
            Fetch: server.on_fetch,
            Content: client.on_content,
        }

    def on_message(self, boot: str, message: Any) -> None:
        """Pass a message on by its kind."""
        self._takers[type(message)](boot, message)

    def on_link_up(self, boot: str) -> None:
        """Nothing to do: messages can be sent before."""

    def on_link_lost(self, boot: str, reason: str) -> None:
        """End all that was under way with a peer, at both ends; last what may start it anew."""
        self._serving.link_lost(boot)
        self._server.link_lost(boot)
        self._operations.link_lost(boot, reason)
        self._client.link_lost(boot, reason)
        self._ingress.link_lost(boot, reason)

    def in_use(self, boot: str) -> bool:
        """Whether requests, fetches or operations are under way with a peer."""
        parts = (self._serving, self._ingress, self._client, self._operations)
        return any(part.count(boot) for part in parts)
