"""A client request at work: its generations, their sinks, and how they end together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from blitzgw.api.choice import Choice
from blitzgw.api.chunks import Tally
from blitzgw.api.failures import log_failure
from blitzgw.api.logprobs import ChatLogprobs, CompletionLogprobs
from blitzgw.api.metrics import Meter
from blitzgw.api.prompts import Prompt
from blitzgw.api.status import Served, StatusPort
from blitzgw.core.ports import Generator
from blitzgw.core.request import FinishReason, GenerationRequest, TokenEvent
from blitzgw.errors import GenerationFailed, RequestError


@dataclass(frozen=True, slots=True)
class Options:
    """What a response is to look like."""

    chat: bool
    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    token_ids: bool = False
    logprobs: bool = False

    @property
    def plain(self) -> bool:
        """True where a chunk carries text only."""
        return not (self.continuous_usage or self.token_ids or self.logprobs)


class Output(Protocol):
    """Where a generation's text goes."""

    def deliver(self, generation: Generation, text: str, event: TokenEvent) -> None:
        """Take what one step added; `generation.choice.finish` tells whether it was the last."""

    def fail(self, error: RequestError) -> None:
        """Take the error that ends the whole response."""


class Generation:
    """One choice: the sink that a generator pushes to. Ignores what comes after its end."""

    __slots__ = (
        "_batch", "_deliver", "_step", "_tally",
        "choice", "ended", "formatter", "meter", "prompt", "request",
    )  # fmt: skip

    def __init__(
        self,
        batch: Batch,
        request: GenerationRequest,
        prompt: Prompt,
        choice: Choice,
        meter: Meter,
        formatter: ChatLogprobs | CompletionLogprobs | None,
    ) -> None:
        self._batch = batch
        self._deliver = batch.output.deliver
        self._step = meter.step
        self._tally = batch.tally
        self.request = request
        self.prompt = prompt
        self.choice = choice
        self.meter = meter
        self.formatter = formatter
        self.ended = False

    def push(self, event: TokenEvent) -> None:
        """Take what one step gave; implements `TokenSink`.

        Never raises: the caller goes on with other requests' tokens.
        """
        if self.ended:
            return
        try:
            choice = self.choice
            text = choice.take(event)
            used = choice.used
            if used or choice.finish is not None:
                self._step(used)
                self._tally.completion_tokens += used
                if event.queued_s is not None or choice.finish is not None:
                    self._note(event)
                self._deliver(self, text, event)
        except Exception as error:
            log_failure("push_failed", self.request.id, error)
            self._batch.fail(GenerationFailed("internal error"))

    def _note(self, event: TokenEvent) -> None:
        """Do what only the first and the last event ask for."""
        if event.queued_s is not None:
            self.meter.queued_s = event.queued_s
            self._batch.count_cached(self, event.cached_tokens)
        if event.route:
            self._tally.route = event.route
        if self.choice.finish is not None:
            self._batch.end(self, self.choice.finish, told=event.finish is not None)

    def fail(self, error: RequestError) -> None:
        """End the whole response with an error; implements `TokenSink`."""
        if not self.ended:
            self._batch.end(self, FinishReason.ABORT, told=True)
            self._batch.fail(error)

    def logprobs(self, event: TokenEvent) -> dict[str, Any] | None:
        """Return the formatted log-probabilities of an event's tokens, where they are wanted."""
        if self.formatter is None or event.logprobs is None:
            return None
        used = self.choice.used
        return self.formatter.format(event.tokens[:used], event.logprobs[:used])


class Batch:
    """All generations of one client request: they start, fail and are aborted together."""

    def __init__(
        self, generator: Generator, status: StatusPort, output: Output, tally: Tally
    ) -> None:
        self._generator = generator
        self._status = status
        self.output = output
        self.tally = tally
        self.generations: list[Generation] = []
        self._served: Served | None = None
        self._cached: dict[int, int] = {}

    def start(self) -> None:
        """Hand all generations over; where one is refused, undo all and raise its RequestError."""
        for position, generation in enumerate(self.generations):
            if generation.ended:  # an earlier one failed while it was handed over
                break
            try:
                self._generator.generate(generation.request, generation)
            except RequestError:
                for never_started in self.generations[position:]:
                    never_started.ended = True
                self.abort()
                raise

    def end(self, generation: Generation, reason: FinishReason, *, told: bool) -> None:
        """Close the books on one generation; where nobody `told` the generator, abort it there."""
        generation.ended = True
        request_id = generation.request.id
        self._served = self._status.served_by(request_id) or self._served
        cached = self._cached.get(generation.choice.index, 0)
        generation.meter.end(reason, cached)
        if not told:
            self._generator.abort(request_id)

    def abort(self) -> None:
        """Stop whatever still runs; harmless to repeat."""
        for generation in self.generations:
            if not generation.ended:
                self.end(generation, FinishReason.ABORT, told=False)

    def fail(self, error: RequestError) -> None:
        """Stop whatever still runs and end the response with an error."""
        self.abort()
        self.output.fail(error)

    def served(self) -> Served | None:
        """Tell who serves, or has served, the first generation, once that is known."""
        return self._served or self._status.served_by(self.generations[0].request.id)

    def count_cached(self, generation: Generation, tokens: int) -> None:
        """Note the prompt tokens that a generation did not have to compute.

        Choices of one prompt share its tokens, so usage counts the best of them, once.
        """
        cached = min(tokens, len(generation.prompt.tokens))
        self._cached[generation.choice.index] = cached
        best: dict[int, int] = {}
        for other in self.generations:
            key = id(other.prompt)
            best[key] = max(best.get(key, 0), self._cached.get(other.choice.index, 0))
        self.tally.cached_tokens = sum(best.values())
