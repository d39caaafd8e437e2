"""How long a suspect has to speak up: the more members accuse it independently, the shorter."""

from __future__ import annotations

import math

from blitzgw.gossip.agenda import Timer


def lifetime_s(confirmed: int, k: int, min_s: float, max_s: float) -> float:
    """Return how long a suspicion lasts, in seconds, after `confirmed` confirmations of k.

    max − (max − min)·log(c + 1)/log(k + 1), Lifeguard's formula: a single accuser may be the one
    that is ill, so it has to wait; further ones shorten that, the first of them most.
    """
    if confirmed >= k:
        return min_s
    return max_s - (max_s - min_s) * math.log(confirmed + 1) / math.log(k + 1)


class Suspicion:
    """A suspicion of one member at one incarnation. `graced`: a stall of ours has prolonged it."""

    __slots__ = ("_k", "_max_s", "_min_s", "_start_s", "accusers", "graced", "timer")

    def __init__(self, accuser: str, now: float, k: int, min_s: float, max_s: float) -> None:
        self.accusers = {accuser}
        self.timer: Timer | None = None
        self.graced = False
        self._start_s = now
        self._k = k
        self._min_s = min_s
        self._max_s = max_s

    @property
    def deadline_s(self) -> float:
        """When the suspect is taken for dead."""
        confirmed = len(self.accusers) - 1
        return self._start_s + lifetime_s(confirmed, self._k, self._min_s, self._max_s)

    def confirm(self, accuser: str) -> bool:
        """Count an accuser; return whether that was news that shortens the suspicion."""
        if len(self.accusers) > self._k or accuser in self.accusers:
            return False
        self.accusers.add(accuser)
        return True

    def cancel(self) -> None:
        """Stop its timer."""
        if self.timer is not None:
            self.timer.cancel()
