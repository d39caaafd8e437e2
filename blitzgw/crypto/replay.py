"""Which of a sender's counters have been seen: a window that slides along with the highest."""

from __future__ import annotations

WINDOW_BITS = 1024
"""How far a datagram may fall behind the newest: more than a network reorders, 128 bytes a peer."""

_MASK = (1 << WINDOW_BITS) - 1


class ReplayWindow:
    """Counters seen of one sender, from 1 up; bit i of the map stands for `highest - i`."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def is_new(self, counter: int) -> bool:
        """Whether a counter is within the window or ahead of it, and has not been seen."""
        behind = self._highest - counter
        if behind < 0:
            return True
        return counter > 0 and behind < WINDOW_BITS and not self._seen >> behind & 1

    def add(self, counter: int) -> None:
        """Note a counter that is new; call it only once its datagram has proved authentic."""
        ahead = counter - self._highest
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        self._highest = counter
        self._seen = (self._seen << ahead | 1) & _MASK if ahead < WINDOW_BITS else 1
