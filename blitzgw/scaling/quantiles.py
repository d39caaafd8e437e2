"""Sliding quantiles of latencies: a ring of time slots, each a histogram by bucket.

The buckets are those of core/scale.py, which nodes send; quantiles are right to within 5 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from blitzgw.core.scale import N_BUCKETS, upper_s

SLOT_S = 1.0
"""The oldest part of a window goes slot by slot: fine enough for windows of ten seconds."""

SLOTS = 30
"""Half a minute: longer than any patience, and nothing that matters for scaling is older."""


class SlidingQuantiles:
    """Counts latencies by bucket over the last `slots` × `slot_s` seconds.

    At most `slots` histograms of `N_BUCKETS` counts each are kept. The clock is an argument; where
    it goes back, what is added counts as of the newest time seen.
    """

    __slots__ = ("_known", "_newest", "_ring", "_slot_s", "_slots")

    def __init__(self, slot_s: float = SLOT_S, slots: int = SLOTS) -> None:
        self._slot_s = slot_s
        self._slots = slots
        self._ring: dict[int, dict[int, int]] = {}
        self._newest = -(2**62)
        self._known: tuple[tuple[float, ...], float, dict[float, float]] | None = None

    def add(self, counts: Mapping[int, int], now: float) -> None:
        """Take latencies that were measured lately: how many, by bucket.

        Buckets that do not exist and counts below 1 are left out.
        """
        self._turn(now)
        self._known = None
        slot = self._ring.setdefault(self._newest, {})
        for bucket, count in counts.items():
            if 0 <= bucket < N_BUCKETS and count > 0:
                slot[bucket] = slot.get(bucket, 0) + count

    def quantile(self, q: float, now: float, window_s: float) -> float | None:
        """Return what `q` of the latencies of the last `window_s` do not exceed, in seconds.

        It is the upper bound of the bucket of the ceil(q·n)-th of n; None without any. `window_s`
        is rounded up to whole slots, the present one included.
        """
        return self.quantiles((q,), now, window_s).get(q)

    def quantiles(self, qs: Sequence[float], now: float, window_s: float) -> dict[float, float]:
        """Return several of them, by `q`; empty without any latency."""
        self._turn(now)
        known = self._known
        if known is None or known[:2] != (tuple(qs), window_s):
            found = _quantiles(self._merged(window_s), qs)
            self._known = known = (tuple(qs), window_s, found)
        return dict(known[2])

    def count(self, now: float, window_s: float) -> int:
        """Return how many latencies there are of the last `window_s`."""
        self._turn(now)
        return sum(self._merged(window_s).values())

    def _turn(self, now: float) -> None:
        slot = math.floor(now / self._slot_s)
        if slot <= self._newest:
            return
        self._newest, self._known = slot, None
        for old in [each for each in self._ring if each <= slot - self._slots]:
            del self._ring[old]

    def _merged(self, window_s: float) -> dict[int, int]:
        first = self._newest - min(self._slots, math.ceil(window_s / self._slot_s)) + 1
        merged: dict[int, int] = {}
        for slot, counts in self._ring.items():
            if slot >= first:
                for bucket, count in counts.items():
                    merged[bucket] = merged.get(bucket, 0) + count
        return merged

    def check_integrity(self) -> None:
        """Raise AssertionError if more is kept than is promised."""
        assert len(self._ring) <= self._slots
        for counts in self._ring.values():
            assert all(0 <= bucket < N_BUCKETS and n > 0 for bucket, n in counts.items())


def _quantiles(counts: Mapping[int, int], qs: Sequence[float]) -> dict[float, float]:
    buckets = sorted(counts)
    ends = list(accumulate(counts[bucket] for bucket in buckets))
    if not ends:
        return {}
    ranks = {q: min(ends[-1], max(1, math.ceil(q * ends[-1]))) for q in qs}
    return {q: upper_s(buckets[bisect_left(ends, rank)]) for q, rank in ranks.items()}
