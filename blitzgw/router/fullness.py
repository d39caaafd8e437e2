"""Which models are full: nobody has taken a request for one of them, a moment ago.

Under overload most requests are refused, and to find that out costs more than to say it: a prompt
is put together and tokenised, instances are compared and asked. What was true of the last request
holds for the next one until something moves, so that is told at once.

Nobody is refused for long who would be taken: whatever may make room here opens the model again,
and what this node cannot see, a finished request of another one, does so after FULL_S. Only a
refusal that instances have given begins that time, not one that is told again.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.request import GenerationRequest
from blitzgw.router.refusal import Refusal

FULL_S = 0.02
"""A step or two: room comes with the end of a step. At ten times what a node can do, one in ten of
those that it refuses is found out anew: after each request that ends, and after this time."""


@dataclass(frozen=True, slots=True)
class Full:
    """What a request of a model's definition was told; `tokens` are those of its prompt."""

    digest: str
    until_s: float
    tokens: int
    refusal: Refusal

    def again(self) -> Refusal:
        """Return the same refusal, to be raised: one that has been raised keeps what was there."""
        return _copy(self.refusal)


class Fullness:
    """The models that are full, one entry each."""

    def __init__(self) -> None:
        self._models: dict[str, Full] = {}

    def refused(self, request: GenerationRequest, refusal: Refusal, now: float) -> None:
        """Note that nobody has taken a request, at time `now` in seconds."""
        self._models[request.model] = Full(
            request.digest, now + FULL_S, len(request.tokens), _copy(refusal)
        )

    def moved(self, model: str) -> None:
        """Find out anew: there may be room. Runs for every request's end."""
        self._models.pop(model, None)

    def of(self, model: str, digest: str, now: float) -> Full | None:
        """Return what a request for a model's definition would be told; None: to be found out."""
        full = self._models.get(model)
        if full is None or full.digest != digest:
            return None
        if now >= full.until_s:
            del self._models[model]
            return None
        return full


def _copy(refusal: Refusal) -> Refusal:
    return type(refusal)(refusal.message, param=refusal.param, retry_after_s=refusal.retry_after_s)
