"""How fast an instance is, measured while it works. No capacity is written down by hand."""

from __future__ import annotations

from collections.abc import Iterable

SMOOTHING = 0.1
"""Weight of the newest step: the memory is about ten steps, less than a second of serving."""

TURNOVER_SMOOTHING = 0.03
"""Likewise: sequences of equal length that have begun together end together, and the memory is to
be longer than such a wave."""


class Pace:
    """Exponentially weighted prefill rate and decode step time of one instance.

    The rate is a quotient of two averages, tokens and seconds, so that short steps do not count
    for more than they take. From a step that also decodes, the time that decoding alone would take
    is subtracted, down to the prefill's share of the tokens.
    """

    __slots__ = ("_prefill_s", "_prefill_tokens", "decode_step_s")

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0
        self.decode_step_s: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens per second; None before the first measurement."""
        return self._prefill_tokens / self._prefill_s if self._prefill_s > 0 else None

    def observe(self, prefill_tokens: int, decode_rows: int, duration_s: float) -> None:
        """Take the duration of a step of so many prompt tokens and decoding sequences."""
        if duration_s <= 0:
            return
        if not prefill_tokens:
            self.observe_decoding((duration_s,))
            return
        own_s = duration_s
        if decode_rows:
            share = prefill_tokens / (prefill_tokens + decode_rows)
            own_s = max(duration_s - (self.decode_step_s or 0.0), duration_s * share)
        keep = 1.0 - SMOOTHING
        self._prefill_tokens = keep * self._prefill_tokens + SMOOTHING * prefill_tokens
        self._prefill_s = keep * self._prefill_s + SMOOTHING * own_s

    def observe_decoding(self, durations_s: Iterable[float]) -> None:
        """Take the durations of steps, one after another, that only decoded."""
        mean = self.decode_step_s
        for duration_s in durations_s:
            if duration_s > 0:
                if mean is None:
                    mean = duration_s
                mean += SMOOTHING * (duration_s - mean)
        self.decode_step_s = mean


class Turnover:
    """How many sequences an instance begins per second while others wait for it to.

    Exponentially weighted, as a quotient of two averages: those that begin together are one
    observation. What one has to wait is its place in the queue ÷ this, whatever it is that makes
    the others wait: prefill, places or memory.
    """

    __slots__ = ("_begun", "_seconds", "_since")

    def __init__(self) -> None:
        self._begun = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def is_timing(self) -> bool:
        """Whether somebody was seen to wait, and nobody to begin since."""
        return self._since is not None

    @property
    def per_s(self) -> float | None:
        """Sequences per second; None before the first measurement."""
        return self._begun / self._seconds if self._seconds > 0 else None

    def observe(self, begun: int, waiting: int, now: float) -> None:
        """Take how many begin at `now`, and how many are left."""
        if begun and self._since is not None and now > self._since:
            keep = 1.0 - TURNOVER_SMOOTHING
            self._begun = keep * self._begun + TURNOVER_SMOOTHING * begun
            self._seconds = keep * self._seconds + TURNOVER_SMOOTHING * (now - self._since)
        if begun or not waiting or self._since is None:
            self._since = now if waiting else None
