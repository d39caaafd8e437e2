"""How long sequences become: what those of late have come to, and so what the present ones may."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from blitzgw.scheduler.live.records import Task
from blitzgw.scheduler.sequence import Sequence

RECENT = 256
"""Answers remembered: some seconds of a busy instance, so that a change of what is asked for shows
soon; 13 of them are beyond the percentile, so that a few odd ones do not decide it."""

KNOWN_ENOUGH = 16
"""With fewer answers than this their longest one says little of the next: `max_tokens` counts."""

QUANTILE = 0.95
"""Of the lengths of answers, what is expected of each (ALGORITHMS.md, when to scale)."""


class OutputLengths:
    """The lengths in tokens of the last answers that came to their end here."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._expected: int | None = None
        self._stale = False

    def record(self, seq: Sequence) -> None:
        """Note the length of an answer that has been given, wherever it was begun."""
        self._recent.append(len(seq.tokens) - seq.request.prompt_length)
        self._stale = True

    @property
    def expected(self) -> int | None:
        """Return the percentile, by nearest rank; None while too little is known."""
        n_known = len(self._recent)
        if self._stale and n_known >= KNOWN_ENOUGH:
            rank = -int(-n_known * QUANTILE // 1)
            self._expected = sorted(self._recent)[rank - 1]
            self._stale = False
        return self._expected


def committed_tokens(sequences: Iterable[Sequence], lengths: OutputLengths) -> int:
    """Return the KV, in tokens, that sequences are expected to need before they end.

    Each counts its prompt and as much of an answer as is usual, what it has already if that is
    more, and never more than its own limit. What a helper has been lent counts at its home.
    """
    usual = lengths.expected
    total = 0
    for seq in sequences:  # no calls: it is asked for at every turn, of hundreds
        if seq.role is not None and isinstance(seq.role, Task):
            continue
        limit = seq.limit
        if usual is not None:
            need, n_known = seq.request.prompt_length + usual, len(seq.tokens)
            if need < n_known:  # noqa: PLR1730
                need = n_known
            if need < limit:  # noqa: PLR1730
                limit = need
        total += limit
    return total
