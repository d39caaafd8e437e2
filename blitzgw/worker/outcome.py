"""What steps sample: it may still be on its way from the device."""

from __future__ import annotations

from collections.abc import Sequence

from blitzgw.core.step import PromptLogprobs
from blitzgw.engine.base import Sampled, Sampling, SequenceState


class Awaited:
    """What a step samples, and the sequences whose next tokens it is: PENDING until it is there."""

    def __init__(self, sampling: Sampling, sequences: Sequence[SequenceState]) -> None:
        self._sampling: Sampling | None = sampling
        self._places = [(sequence, len(sequence.tokens)) for sequence in sequences]
        self._sampled: list[Sampled] | Exception = []
        self.prompt_logprobs: tuple[PromptLogprobs, ...] = ()

    def is_ready(self) -> bool:
        """Say whether `settle` would return, or raise, at once."""
        try:
            return self._sampling is None or self._sampling.is_ready()
        except Exception:  # a broken device tells whoever asks: `settle` raises it
            return True

    def settle(self) -> list[Sampled]:
        """Wait for the tokens, and put them in place.

        Raises what has gone wrong on the device, every time.
        """
        if self._sampling is not None:
            try:
                self._sampled = self._sampling.wait()
            except Exception as error:
                self._sampled = error
            self._sampling = None
            if not isinstance(self._sampled, Exception):
                for (sequence, at), one in zip(self._places, self._sampled, strict=True):
                    sequence.tokens[at] = one.token
        if isinstance(self._sampled, Exception):
            raise self._sampled
        return self._sampled


class Known:
    """What a step has sampled, where its tokens are in place already."""

    def __init__(self, sampled: list[Sampled]) -> None:
        self._sampled = sampled
        self.prompt_logprobs: tuple[PromptLogprobs, ...] = ()

    def is_ready(self) -> bool:
        """Say yes."""
        return True

    def settle(self) -> list[Sampled]:
        """Return it."""
        return self._sampled


Outcome = Awaited | Known
