"""What `Links` is given, and what it tells: a way to dial, a listener, figures."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from blitzgw.core.request import PlainToken
from blitzgw.crypto.records import Session
from blitzgw.gossip.events import Address

Dial = Callable[[Address], Awaitable[tuple[socket.socket, Session, str]]]
"""Connects and shakes hands; the time is bounded by `Links`. Raises OSError or ProtocolError."""


class LinkListener(Protocol):
    """Who is told of links. Called from the event loop; must not block or raise."""

    def on_message(self, boot: str, message: Any) -> None:
        """A peer has said something; heartbeats are not told."""

    def on_plain(self, boot: str, tokens: list[PlainToken]) -> None:
        """A peer has sent `PlainTokens`: these."""

    def on_link_up(self, boot: str) -> None:
        """A peer can be heard. For information: messages can be sent before."""

    def on_link_lost(self, boot: str, reason: str) -> None:
        """All that was on a link is lost. Told once for each link that had been used.

        A peer that could not be reached is told, too; the end of an idle link is not.
        """

    def in_use(self, boot: str) -> bool:
        """Whether anything is under way with a peer, so that its link must not be closed."""


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counts over all peers; `merged_events` counts token events that a full link has merged."""

    up: int
    dialling: int
    unsent_bytes: int
    merged_events: int
    lost: int
