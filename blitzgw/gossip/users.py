"""Which peers use this node's instances: they are sent reports of loads."""

from __future__ import annotations

from collections.abc import Callable

USERS_S = 60.0
"""For so long who has submitted something is sent reports. All others hear by gossip, up to a
second late: enough for a first request, too late for one that meets a burst of others'."""

MAX_USERS = 32
"""The latest of them: what an instance says must not cost more with every node that there is."""


class Users:
    """Peers that have submitted something within USERS_S, MAX_USERS of them. Moments in seconds."""

    __slots__ = ("_used_s", "on_new")

    def __init__(self) -> None:
        self._used_s: dict[str, float] = {}  # the latest last
        self.on_new: Callable[[], None] = lambda: None
        """Called when somebody uses them who did not before."""

    def used(self, boot: str, now: float) -> None:
        """Note that a peer has submitted something."""
        if not self.has(boot, now):
            self.on_new()
        self._used_s.pop(boot, None)
        self._used_s[boot] = now
        if len(self._used_s) > MAX_USERS:
            del self._used_s[next(iter(self._used_s))]

    def forget(self, boot: str) -> None:
        """Note that a peer is gone."""
        self._used_s.pop(boot, None)

    def has(self, boot: str, now: float) -> bool:
        """Tell whether a peer is sent reports."""
        return now - self._used_s.get(boot, -USERS_S) < USERS_S

    def at(self, now: float) -> list[str]:
        """Return who is sent reports."""
        return [boot for boot in self._used_s if self.has(boot, now)]
