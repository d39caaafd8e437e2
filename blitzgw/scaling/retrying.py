"""After an attempt that has failed: a pause, each longer than the last, until something is new."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass, field

FIRST_PAUSE_S = 0.5
"""After the first failure: gossip tells within that what has failed, mostly."""

MAX_PAUSE_S = 30.0
"""The longest: a reason that goes away unseen (a full disk, a lost network) costs that much."""

CANCELLED_PAUSE_S = 10.0
"""After an operator has cancelled what the policy had ordered: so that he can say what he wants
instead."""


@dataclass(slots=True)
class Retrying:
    """When the next attempt may be made. `until` is on the clock of `now`; devices are workers."""

    until: float = 0.0
    failures: int = 0
    reason: str = ""
    _tried: set[str] = field(default_factory=set)

    def attempt(self, room: Collection[str]) -> None:
        """Note that an attempt begins, with these devices to be had."""
        self._tried = {*room}

    def failed(self, reason: str, room: Collection[str], now: float) -> None:
        """Note that one has failed, with these devices to be had now: pause."""
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self.failures, 16), MAX_PAUSE_S)
        self.failures += 1
        self.until, self.reason = now + pause_s, reason
        self._tried |= {*room}

    def cancelled(self, reason: str, now: float) -> None:
        """Note that an operator has cancelled one."""
        self.until, self.reason = now + CANCELLED_PAUSE_S, reason
        self._tried = set()

    def succeeded(self) -> None:
        """Note that one has succeeded: the next failure is a first one."""
        self.until, self.failures, self.reason = 0.0, 0, ""
        self._tried = set()

    def seen(self, room: Set[str]) -> None:
        """Look at the devices that could be had: one that is new ends the pause."""
        if self.failures and not room <= self._tried:
            self.succeeded()

    def pauses(self, now: float) -> bool:
        """Whether no attempt is to be made yet."""
        return now < self.until
