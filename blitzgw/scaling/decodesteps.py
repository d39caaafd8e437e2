"""How long a decode step takes by the size of its batch, as measured."""

from __future__ import annotations

from itertools import pairwise

SMOOTHING = 0.2
"""Weight of the newest figure: each is itself a mean over some ten steps."""

CLASSES = 16
"""Of batch sizes, by powers of two: up to 32,767 sequences."""


class DecodeSteps:
    """A table of decode step times by batch size, in classes of powers of two.

    A step of a greater batch takes no less; where chance says otherwise, the longer one counts.
    """

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: dict[int, tuple[float, float]] = {}

    def observe(self, batch: int, step_s: float) -> None:
        """Take the step time of an instance with so many sequences under way."""
        if batch < 1 or not 0 < step_s < float("inf"):
            return
        key = min(CLASSES - 1, batch.bit_length() - 1)
        size, mean_s = self._table.get(key, (float(batch), step_s))
        self._table[key] = (
            size + SMOOTHING * (batch - size),
            mean_s + SMOOTHING * (step_s - mean_s),
        )

    def batch_within(self, target_s: float) -> int:
        """Return the largest batch whose step takes at most `target_s`; 0: not known, or none does.

        Between measured sizes, and above them, it is linear: a step has a fixed part (weights are
        read once) and one per sequence. With one size measured nothing is known above it; where
        the smallest measured one takes too long already, half of it may do.
        """
        points = self._rising()
        if not points:
            return 0
        if points[0][1] > target_s:
            return int(points[0][0]) // 2
        for (b0, s0), (b1, s1) in pairwise(points):
            if s1 > target_s:
                return int(b0 + (b1 - b0) * (target_s - s0) / (s1 - s0))
        if len(points) < 2 or points[-1][1] <= points[0][1]:
            return 0
        (b0, s0), (b1, s1) = points[0], points[-1]
        return int(b1 + (target_s - s1) * (b1 - b0) / (s1 - s0))

    def _rising(self) -> list[tuple[float, float]]:
        points: list[tuple[float, float]] = []
        longest = 0.0
        for key in sorted(self._table):
            size, step_s = self._table[key]
            longest = max(longest, step_s)
            points.append((size, longest))
        return points
