"""A client request at work: its generations, their sinks, and how they end together."""

from __future__ import annotations

from collections.abc import Sequence
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

GIVEN_UP = "the output could not be held to the form that was asked for"


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


class Line(Protocol):
    """Takes text with nothing else to it."""

    def write(self, body: bytes) -> None:
        """Send it on; it comes as JSON. This runs for every token."""


class Generation:
    """One choice: the sink that a generator pushes to. Ignores what comes after its end.

    There are thousands at once, and between two tokens of one the caches forget it: what runs for
    every token touches few objects, and `_settle` counts later.
    """

    __slots__ = (
        "_batch", "_last_s", "_line", "_metrics", "_pieces", "_plain", "_tally",
        "_unscored", "choice", "ended", "formatter", "meter", "prompt", "request",
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
        self._tally = batch.tally
        self.request = request
        self.prompt = prompt
        self.choice = choice
        self.meter = meter
        self.formatter = formatter
        self.ended = False
        self._unscored = request.sampling.scores
        self._line: Line | None = None
        self._pieces: Sequence[bytes | None] | None = None  # what to write, where that is all
        self._metrics = meter.metrics
        self._plain, self._last_s = 0, 0.0  # what the meter has yet to be told

    def stream_to(self, line: Line) -> None:
        """Write plain text to a line from the next token on, where each need not be looked at."""
        if not self.choice.looks:
            self._line = line

    def push_token(self, token: int, now: float) -> None:
        """Take one token that is no first or last one; implements `TokenSink`. Never raises."""
        pieces, line = self._pieces, self._line
        if pieces is None or line is None:
            self._push_slowly(token, now)
            return
        try:
            body = pieces[token]
            if body is None:
                self._push_slowly(token, now)
                return
            metrics, gap_s = self._metrics, now - self._last_s
            if gap_s == metrics.gap_s:
                metrics.alike += 1
            else:
                metrics.token(gap_s)
            self._last_s = now
            self._plain += 1
            line.write(body)
        except Exception as error:
            self._stumbled(error)

    def _push_slowly(self, token: int, now: float) -> None:
        """Take a token that is part of a character, or not to be written as it is."""
        line = self._line
        if line is None:
            self.push(TokenEvent(self.request.id, self.request.attempt, [token]))
            return
        if self.ended:
            return
        try:
            body = self.choice.feed_json(token)
            self._pieces = self.choice.pieces
            self._metrics.token(now - self._last_s)
            self._last_s = now
            self._plain += 1
            line.write(body)
        except Exception as error:
            self._stumbled(error)

    def push(self, event: TokenEvent) -> None:
        """Take what one step gave; implements `TokenSink`.

        Never raises: the caller goes on with other requests' tokens.
        """
        if self.ended:
            return
        try:
            self._settle()
            if event.finish is FinishReason.ERROR:
                self._batch.end(self, FinishReason.ERROR, told=True)
                raise GenerationFailed(GIVEN_UP)
            choice = self.choice
            text = choice.take(event)
            used = choice.used
            if used or choice.finish is not None:
                self._tally.completion_tokens += used
                if event.queued_s is not None or event.route:
                    self._note(event)
                self._batch.output.deliver(self, text, event)
                self._count(event)
            if self._line is not None and not self.ended:
                self._pieces, self._last_s = choice.pieces, self.meter.last_s
        except GenerationFailed as error:
            self._batch.fail(error)
        except Exception as error:
            self._stumbled(error)

    def cease(self) -> None:
        """Take nothing more."""
        self.ended, self._pieces = True, None
        self._settle()

    def _settle(self) -> None:
        """Count the tokens of `push_token`."""
        plain, self._plain = self._plain, 0
        if plain:
            self.meter.skip(plain, self._last_s)
            self.choice.count += plain
            self._tally.completion_tokens += plain

    def _stumbled(self, error: Exception) -> None:
        log_failure("push_failed", self.request.id, error)
        self._batch.fail(GenerationFailed("internal error"))

    def _note(self, event: TokenEvent) -> None:
        """Take what only the first event tells, before it is told."""
        if event.queued_s is not None:
            self.meter.queued_s = event.queued_s
            self._batch.count_cached(self, event.cached_tokens)
        if event.route:
            self._tally.route = event.route

    def _count(self, event: TokenEvent) -> None:
        """Count what has been told: later, as the client waits for it and nobody for figures.

        Whose client turned out to be gone has ended meanwhile, and is told no more of.
        """
        if self.ended:
            return
        self.meter.step(self.choice.used)
        if self.choice.finish is not None:
            self._batch.end(self, self.choice.finish, told=event.finish is not None)

    def fail(self, error: RequestError) -> None:
        """End the whole response with an error; implements `TokenSink`."""
        if not self.ended:
            self._batch.end(self, FinishReason.ABORT, told=True)
            self._batch.fail(error)

    def logprobs(self, event: TokenEvent) -> dict[str, Any] | None:
        """Return the formatted log-probabilities of an event's tokens, where they are wanted.

        Those of the tokens of the text: one that ends it is not among them, as OpenAI has it. Those
        of a prompt that is repeated come before the first of them.
        """
        formatter, shown, prompt = self.formatter, self.choice.shown, None
        if formatter is None:
            return None
        if self._unscored and isinstance(formatter, CompletionLogprobs):
            self._unscored = False
            prompt = formatter.format_prompt(self.prompt.tokens, event.prompt_logprobs or ())
        if event.logprobs is None or not shown:
            return prompt
        told = formatter.format(event.tokens[:shown], event.logprobs[:shown])
        return told if prompt is None else formatter.join([prompt, told])


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
                    never_started.cease()
                self.abort()
                raise

    def end(self, generation: Generation, reason: FinishReason, *, told: bool) -> None:
        """Close the books on one generation; where nobody `told` the generator, abort it there."""
        generation.cease()
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

        Choices of one prompt share its tokens, and all but the first copy what that one computes:
        usage counts the least of them, once.
        """
        self._cached[generation.choice.index] = min(tokens, len(generation.prompt.tokens))
        least: dict[int, int] = {}
        for other in self.generations:
            cached = self._cached.get(other.choice.index)
            if cached is not None:
                key = id(other.prompt)
                least[key] = min(least.get(key, cached), cached)
        self.tally.cached_tokens = sum(least.values())
