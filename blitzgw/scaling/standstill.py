"""When to wait no longer for instances that come and are not wanted any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blitzgw.scaling.autoevents import Coming

STANDSTILL_S = 8.0
"""Without a blob on any of them, while fewer are wanted. An operation waits longer for what is
needed (stalls.py, HANG_S = 30 s); a blob takes a second or so, and a few on a slow link."""


@dataclass(slots=True)
class Standstill:
    """Since when fewer have been wanted and nothing that is coming has got on."""

    since_s: float | None = None
    _known: tuple[tuple[str, float], ...] = ()

    def look(self, coming: Sequence[Coming], now: float) -> None:
        """Take what is coming; it is in the way of having fewer."""
        known = tuple(sorted((each.instance, each.fraction) for each in coming))
        if self.since_s is None or known != self._known:
            self.since_s, self._known = now, known

    def over(self) -> None:
        """Note that nothing is in the way."""
        self.since_s, self._known = None, ()

    def lasts(self, now: float) -> bool:
        """Whether it is to be waited for no longer."""
        return self.since_s is not None and now >= self.since_s + STANDSTILL_S
