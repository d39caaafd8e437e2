"""What clients have asked of each model since the node started."""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.record import record
from blitzgw.core.request import GenerationRequest


@dataclass(slots=True)
class Arrived:
    """Requests of one model: all of them, and those `refused` for want of capacity.

    `tokens` are those of the prompts, without what turned out to be cached.
    """

    requests: int = 0
    tokens: int = 0
    refused: int = 0


@record(frozen=True, slots=True)
class Held:
    """Requests that wait for an instance of one model.

    `tokens` have to be computed for them, `since_s` is since when the first one has waited.
    """

    requests: int = 0
    tokens: int = 0
    since_s: float | None = None


class Arrivals:
    """Counts, by model. `came` runs for every request, the others for some."""

    def __init__(self) -> None:
        self._models: dict[str, Arrived] = {}

    def of(self, model: str) -> Arrived:
        """Return the counts of a model, which go on."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Arrived()
        return found

    def came(self, request: GenerationRequest) -> None:
        """Count a request."""
        arrived = self.of(request.model)
        arrived.requests += 1
        arrived.tokens += len(request.tokens)

    def turned_away(self, model: str, tokens: int) -> None:
        """Count a request that was refused before it was looked at, and its tokens by guess."""
        arrived = self.of(model)
        arrived.requests += 1
        arrived.refused += 1
        arrived.tokens += tokens

    def cached(self, model: str, tokens: int) -> None:
        """Take off what of a prompt did not have to be computed."""
        self.of(model).tokens -= tokens

    def refused(self, model: str) -> None:
        """Count a request that was not taken, or was given up."""
        self.of(model).refused += 1
