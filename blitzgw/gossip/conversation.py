"""What there is with one peer: its link, the connections that may become it, and what waits.

link       the peer's link, once it has been heard
trial      dialled, and not heard yet
candidate  accepted while there is a link, and not heard yet
"""

from __future__ import annotations

import asyncio

from blitzgw.gossip.link import MAX_UNSENT_BYTES, PeerLink

MAX_WAITING_MESSAGES = 4096
"""Messages that may wait while a link is opened: more than all requests that a node admits."""

MAX_WAITING_BYTES = MAX_UNSENT_BYTES // 2
"""Their bytes: all of it must have room in a link that has just been opened."""


class Conversation:
    """One boot, from the first message or connection until the loss. `Links` decides."""

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.link: PeerLink | None = None
        self.trial: PeerLink | None = None
        self.candidate: PeerLink | None = None
        self.dial: asyncio.Task[None] | None = None
        self.settled = asyncio.Event()
        """Whether `trial` has been heard, or has ended."""
        self.failed = False
        """Lost already, and to be told in the loop's next turn."""
        self.ticks = 0
        self.waiting_bytes = 0
        self._waiting: list[bytes] = []

    @property
    def usable(self) -> bool:
        """Whether what is sent now has a chance."""
        return not self.failed and not (self.link is not None and self.link.dropped)

    @property
    def used(self) -> bool:
        """Whether its end is a loss: whoever dials has something to say."""
        return self.link is None or self.link.used

    def wait(self, data: bytes) -> bool:
        """Keep a message for the link that is being opened; False where that is too much."""
        self._waiting.append(data)
        self.waiting_bytes += len(data)
        n = len(self._waiting)
        return n <= MAX_WAITING_MESSAGES and self.waiting_bytes <= MAX_WAITING_BYTES

    def establish(self, link: PeerLink) -> None:
        """Make a connection the peer's link, end the others and send what has waited."""
        self.link = link
        dial, self.dial = self.dial, None
        trial, self.trial = self.trial, None
        if trial is link:
            self.settled.set()
        else:
            if dial is not None:
                dial.cancel()
            if trial is not None:
                trial.drop("the peer's own dial stands")
        link.beat()
        waiting, self._waiting, self.waiting_bytes = self._waiting, [], 0
        for data in waiting:
            link.write(data)

    def put_aside(self, link: PeerLink) -> None:
        """Make a connection the candidate; it is spoken to, so that the peer answers on it."""
        if self.candidate is not None:
            self.candidate.drop("superseded")
        self.candidate = link
        link.beat()

    def abandon(self, reason: str) -> None:
        """End everything but the candidate."""
        if self.dial is not None:
            self.dial.cancel()
        for link in (self.link, self.trial):
            if link is not None:
                link.drop(reason)
