"""Stop strings, found as if the text came one character at a time.

The first character at which any stop string is complete ends the text; of several that end there,
the longest counts. So the outcome does not depend on where tokens or steps begin and end.

    text    …  a  b  c  S  T  O  P          sent at once: everything before the longest suffix
                        [held ···]          that could still become a stop string
"""

from __future__ import annotations


class StopMatcher:
    """Cuts one text at the first stop string."""

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: tuple[str, ...], include: bool) -> None:
        """`stops` are not empty strings; `include` keeps the stop string in the text."""
        self._stops = stops
        self._include = include
        self._held = ""

    def feed(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Return the text that may be sent and the stop string that ended it, if one did.

        While not `armed`, text passes and only what could still grow into a match is held.
        """
        buffer = self._held + text
        found = self._first(buffer) if armed and text else None
        if found is not None:
            start, stop = found
            self._held = ""
            return buffer[: start + len(stop)] if self._include else buffer[:start], stop
        keep = self._holdback(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None

    def flush(self) -> str:
        """Return what was held back; the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, buffer: str) -> tuple[int, str] | None:
        """Return start and stop string of the match that ends first, the longest of those."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _holdback(self, buffer: str) -> int:
        """Return the length of the longest suffix that is a proper prefix of a stop string."""
        longest = 0
        for stop in self._stops:
            position = max(0, len(buffer) - len(stop) + 1)
            while (position := buffer.find(stop[0], position)) >= 0:
                if stop.startswith(buffer[position:]):
                    longest = max(longest, len(buffer) - position)
                    break
                position += 1
        return longest
