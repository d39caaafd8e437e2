"""How far a sequence has come between steps: its hidden states, by layer and position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Join = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Hidden states of positions `[start, stop)` that are the input of `layer`."""

    layer: int
    start: int
    stop: int
    hidden: Any

    def cut(self, start: int, stop: int) -> Piece:
        """Return the part within `[start, stop)`, which is not empty."""
        start, stop = max(start, self.start), min(stop, self.stop)
        if (start, stop) == (self.start, self.stop):
            return self
        hidden = self.hidden[start - self.start : stop - self.start]
        return Piece(self.layer, start, stop, hidden)


class Frontier:
    """The hidden states of one sequence. Its chunks may be at different layers.

    Those at layer `top`, which wait for a token to be sampled, give way to any others.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._pieces: list[Piece] = []

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What is there, by position."""
        return tuple(self._pieces)

    def put(self, piece: Piece) -> None:
        """Keep a piece. Raises ValueError where positions of it are there, at whatever layer."""
        if piece.start >= piece.stop:
            return
        others = self._outside(piece.start, piece.stop, self._top)
        for other in others:
            if other.start < piece.stop and piece.start < other.stop:
                raise ValueError(
                    f"positions [{other.start}, {other.stop}) are at layer {other.layer} already"
                )
        self._pieces = sorted([*others, piece], key=lambda each: each.start)

    def take(self, layer: int, start: int, stop: int, join: Join) -> Any:
        """Take out the hidden states of `[start, stop)`, which must all be there, at `layer`.

        Raises ValueError where they are not; nothing is taken then.
        """
        parts = [
            piece.cut(start, stop)
            for piece in self._pieces
            if piece.layer == layer and piece.start < stop and start < piece.stop
        ]
        at = start
        for part in parts:
            if part.start != at:
                break
            at = part.stop
        if at != stop:
            raise ValueError(f"no hidden states of [{start}, {stop}) at layer {layer}: {self}")
        self._pieces = self._outside(start, stop, layer)
        return join([part.hidden for part in parts])

    def give_away(self, start: int, stop: int) -> list[Piece]:
        """Return what is there of `[start, stop)`, all at one layer, and forget it.

        Raises ValueError where nothing is, or at several layers; nothing is forgotten then.
        """
        parts = [
            piece.cut(start, stop)
            for piece in self._pieces
            if piece.start < stop and start < piece.stop
        ]
        if len({part.layer for part in parts}) != 1:
            raise ValueError(f"no hidden states of [{start}, {stop}) at one layer: {self}")
        self._pieces = self._outside(start, stop, parts[0].layer)
        return parts

    def forget_top(self) -> None:
        """Forget what waited for a token, which has been sampled."""
        self._pieces = [piece for piece in self._pieces if piece.layer != self._top]

    def _outside(self, start: int, stop: int, layer: int) -> list[Piece]:
        """Return all pieces, those at `layer` without what lies in `[start, stop)`."""
        kept: list[Piece] = []
        for piece in self._pieces:
            if piece.layer != layer or piece.stop <= start or stop <= piece.start:
                kept.append(piece)
                continue
            if piece.start < start:
                kept.append(piece.cut(piece.start, start))
            if stop < piece.stop:
                kept.append(piece.cut(stop, piece.stop))
        return kept

    def __str__(self) -> str:
        return ", ".join(f"[{p.start}, {p.stop}) at {p.layer}" for p in self._pieces) or "none"
