"""A probe without links: behind the same port as the real ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.probe import ProbeFacts, ProbeWish
from blitzgw.errors import RequestError


@dataclass
class FakeProbing:
    """A `ProbePort`: remembers what was asked; `refusal` is raised instead of an answer."""

    answer: ProbeFacts = field(default_factory=lambda: ProbeFacts("fast", 100_000_000, 2.0, 0.5))
    refusal: RequestError | None = None
    asked: list[ProbeWish] = field(default_factory=list)

    async def probe(self, wish: ProbeWish) -> ProbeFacts:
        """Answer at once."""
        self.asked.append(wish)
        if self.refusal is not None:
            raise self.refusal
        return self.answer
