"""Runs of bytes that are there, out of a whole."""

from __future__ import annotations


class Spans:
    """A set of half-open runs `[start, stop)`; those that touch are one. For one thread at a time.

    What arrives does so behind what is there, so there are few: a list serves.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []  # in order, none touching another

    def add(self, start: int, stop: int) -> None:
        """Add a run; an empty one is nothing."""
        if start >= stop:
            return
        apart = []
        for first, last in self._spans:
            if last < start or stop < first:
                apart.append((first, last))
            else:
                start, stop = min(start, first), max(stop, last)
        self._spans = sorted([*apart, (start, stop)])

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what is not there of a run, in order."""
        gaps = []
        for first, last in self._spans:
            if start < first and start < stop:
                gaps.append((start, min(first, stop)))
            start = max(start, last)
        return [*gaps, (start, stop)] if start < stop else gaps
