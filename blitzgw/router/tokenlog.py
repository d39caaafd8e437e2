"""What is known of a request under way: enough to start it again somewhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.ports import TokenSink
from blitzgw.core.request import GenerationRequest


@dataclass(slots=True)
class Entry:
    """One request: as it came, the tokens generated so far, and where it is now.

    `instance` is empty while the request is held; `held_since` is then the time from which its
    patience counts.
    """

    request: GenerationRequest
    sink: TokenSink
    tokens: list[int] = field(default_factory=list)
    attempt: int = 0
    instance: str = ""
    held_since: float = 0.0

    def resubmission(self) -> GenerationRequest:
        """Return the request for the present attempt: prompt and all tokens so far."""
        if self.attempt == 0:
            return self.request
        return replace(
            self.request,
            tokens=(*self.request.tokens, *self.tokens),
            attempt=self.attempt,
        )
