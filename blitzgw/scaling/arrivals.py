"""How much arrives: requests and prompt tokens per second, over short and long windows.

A rate measured over a moment says little, and one measured over long says it late. `sustained`
looks at two neighbouring slices of equal length and takes the smaller of the two rates, for several
lengths, and of these the greatest: what comes all at once is in one slice only and counts for
nothing, for it is in the queue already; what lasts is seen after two slices of the shortest length
that has enough requests in it. Slices shorter than half of what a prompt takes say nothing of
capacity: a few prompts side by side would be a rate of many instances.

        … │   d   │   d   │ now        d = 0.05, 0.1, 0.25, 0.5, 1 s
"""

from __future__ import annotations

from bisect import bisect_right

GRAIN_S = 0.01
"""What arrives within this time is one entry: half of the time between two messages of a node."""

SLICES_S = (0.05, 0.1, 0.25, 0.5, 1.0)
"""From two messages of a node up to what a loading takes: rates are not extrapolated further."""

ENOUGH = 3
"""Requests in a slice: with fewer, chance makes rates."""


class Arrivals:
    """Cumulative counts of requests and tokens over the last `memory_s`.

    At most `memory_s / GRAIN_S` entries are kept.
    """

    __slots__ = ("_memory_s", "_requests", "_times", "_tokens", "begun_s")

    def __init__(self, now: float, memory_s: float) -> None:
        self._memory_s = memory_s
        self._times = [now]
        self._requests = [0]
        self._tokens = [0]
        self.begun_s = now

    def add(self, requests: int, tokens: int, now: float) -> None:
        """Count requests and their tokens; `tokens` may be negative, as a correction."""
        if not requests and not tokens:
            return
        now = max(now, self._times[-1])
        totals = self._requests[-1] + requests, self._tokens[-1] + tokens
        if len(self._times) > 1 and now - self._times[-2] < GRAIN_S:
            self._requests[-1], self._tokens[-1] = totals
        else:
            self._times.append(now)
            self._requests.append(totals[0])
            self._tokens.append(totals[1])
        self._forget(now - self._memory_s)

    def within(self, start: float, stop: float) -> tuple[int, int]:
        """Return (requests, tokens) that came within (start, stop]."""
        a, b = self._until(start), self._until(stop)
        return self._requests[b] - self._requests[a], self._tokens[b] - self._tokens[a]

    def _until(self, moment: float) -> int:
        """Return the last entry that is not after a moment."""
        return max(0, bisect_right(self._times, moment) - 1)

    def rate(self, now: float, window_s: float) -> tuple[float, float]:
        """Return (requests, tokens) per second over the last `window_s`, or since it was begun.

        What has been watched for less than a second counts as if it had been for one.
        """
        span = min(window_s, max(1.0, now - self.begun_s))
        requests, tokens = self.within(now - span, now)
        return requests / span, max(0, tokens) / span

    def sustained(self, now: float, prompt_s: float = 0.0) -> tuple[float, float]:
        """Return the tokens per second that come and go on coming: as seen, and for certain.

        `prompt_s` is what an instance takes for a prompt of mean length. Of n requests that have
        been seen in a slice, n − √n / 2 are taken for certain: half a standard deviation less.
        """
        seen, certain = 0.0, 0.0
        requests, tokens, last = self._requests, self._tokens, self._until(now)
        for d in reversed(SLICES_S):
            first = self._until(now - 2 * d)
            if 2 * d < prompt_s or requests[last] - requests[first] < 2 * ENOUGH:
                break  # shorter slices are too short as well, or have still fewer in them
            middle = self._until(now - d)
            fewest = min(requests[last] - requests[middle], requests[middle] - requests[first])
            if fewest >= ENOUGH:
                fewer = min(tokens[last] - tokens[middle], tokens[middle] - tokens[first])
                rate = max(0.0, fewer / d)
                seen = max(seen, rate)
                certain = max(certain, rate * (1.0 - fewest**-0.5 / 2))
        return seen, certain

    def __len__(self) -> int:
        return len(self._times)

    def _forget(self, before: float) -> None:
        stale = bisect_right(self._times, before) - 1
        if stale > 0 and (stale * 2 > len(self._times) or self._full()):
            del self._times[:stale], self._requests[:stale], self._tokens[:stale]

    def _full(self) -> bool:
        return len(self._times) > self._memory_s / GRAIN_S
