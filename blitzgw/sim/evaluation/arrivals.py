"""A request of a trace, and what is due to it.

SLO of a request    `times` × the time to first token and × the step that it takes alone
"""

from __future__ import annotations

from dataclasses import dataclass

TIMES = 5.0
"""How many times what a request takes alone it may take: the primary objective."""

SWEEP = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Other such factors, for which attainment is told too."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: `at_s` after the window's start, undilated.

    `blocks` are ids of the prompt's blocks of `BLOCK_TOKENS` tokens: equal ones at the beginning
    mean an equal prefix. Empty where a trace does not tell: such a prompt shares nothing.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Objective:
    """What is due: what an instance takes that has the request alone, and how often that."""

    prefill_tokens_per_s: float
    step_s: float
    times: float = TIMES

    def ttft_s(self, prompt_tokens: int) -> float:
        """Return within how much the first token is due, in seconds."""
        return self.times * (prompt_tokens / self.prefill_tokens_per_s + self.step_s)

    @property
    def tpot_s(self) -> float:
        """Return within how much each further token is due on average, in seconds."""
        return self.times * self.step_s
