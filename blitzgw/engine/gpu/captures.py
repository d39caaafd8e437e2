"""Which decode steps are captured, when, and which captured step serves a batch. A pure decider.

A step is captured for a number of rows, its *bucket*; smaller batches are padded up to it. An
instance serves eagerly from its first step on, and captures one bucket at a time:

    wait_s ──► 0: capture `next_bucket` ──► captured | failed (no more are tried)

Captures are SPACING_S apart, whether or not anybody is served meanwhile. So whoever comes waits for
one of them at most, and those who decode see one hiccup in SPACING_S: all buckets of a decoder of
32 layers are there in less than 2 s. The bucket of the latest batch comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_BUCKET = 64
"""Rows beyond which a step computes for longer than its kernels take to launch."""

SPACING_S = 0.25
"""Seconds from the end of a capture to the next. One takes about as long as three or four eager
steps, some tens of milliseconds for 32 layers (unmeasured): a hiccup, not a pause."""


def buckets_of(slots: int) -> tuple[int, ...]:
    """Return the powers of two that cover batches of up to `slots` rows, MAX_BUCKET at most."""
    buckets = [1]
    while buckets[-1] < min(slots, MAX_BUCKET):
        buckets.append(2 * buckets[-1])
    return tuple(buckets)


class Captures:
    """The captured steps of one instance, by their bucket. Times are any clock's, in seconds."""

    def __init__(self, buckets: Sequence[int], spacing_s: float = SPACING_S) -> None:
        self._buckets, self._spacing_s = sorted(buckets), spacing_s
        self._captured: set[int] = set()
        self._latest: int | None = None
        self._not_before = float("-inf")
        self._failed = False

    def decoded(self, rows: int) -> None:
        """Note that a batch could be, or was, served by a captured step: its kernels are warm."""
        self._latest = next((b for b in self._buckets if b >= rows), self._buckets[-1])

    def serving(self, rows: int) -> int | None:
        """Return the captured bucket that serves a batch with the least padding; None: none does.

        Padding costs less than launching kernel by kernel, however much it is: decode steps of up
        to MAX_BUCKET rows read the same weights.
        """
        return min((b for b in self._captured if b >= rows), default=None)

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds the next capture is due, 0 or more; None: none will be."""
        if self.next_bucket() is None:
            return None
        return max(0.0, self._not_before - now)

    def next_bucket(self) -> int | None:
        """Return what to capture next, the latest batch's first; None: nothing, for now."""
        if self._failed or self._latest is None:
            return None
        left = [b for b in self._buckets if b not in self._captured]
        return self._latest if self._latest in left else min(left, default=None)

    def captured(self, bucket: int, now: float) -> None:
        """Note a bucket that is captured."""
        assert bucket in self._buckets
        self._captured.add(bucket)
        self._not_before = now + self._spacing_s

    def failed(self) -> None:
        """Note that this device cannot capture: what is captured serves on, no more is tried."""
        self._failed = True

    def clear(self) -> None:
        """Forget what is captured: the weights have moved."""
        self._captured.clear()
        self._latest = None
