"""Half-open ranges of decoder layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The layers `[start, stop)`. Empty when start == stop.

    A span that begins at 0 takes token ids; any other takes the hidden states that left `start`.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a span: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"

    def layers(self) -> range:
        """Return the layer indices in order."""
        return range(self.start, self.stop)

    def split(self, k: int) -> tuple[Span, Span]:
        """Return `[start, k)` and `[k, stop)`."""
        return Span(self.start, k), Span(k, self.stop)
