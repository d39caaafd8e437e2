"""A request as the gateway means it, and the tokens that answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

from blitzgw.core.record import record
from blitzgw.core.span import Span

MAX_GRAMMAR_BYTES = 64 << 10
"""Largest grammar, in UTF-8: it travels with each choice of a request, wherever that goes. A prompt
of 128k tokens takes ten times as much; the longest JSON schemas that APIs take are of this size."""


class FinishReason(StrEnum):
    """Why a sequence ended. `stop` and `length` are OpenAI's; no client sees the others.

    `error`: what it was to be held to could not be followed, here or anywhere.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@record(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off. `seed` is
    always set (the ingress draws one where the client gave none), so that a resubmission goes on
    with the same noise. `logprobs` is the number of alternatives wanted beside the chosen token's
    own log-probability; None: none at all. `prompt_logprobs` is the same for each token of the
    prompt but the first, which costs a pass of the head over all of them. `grammar`, as
    llguidance's matcher takes it and of MAX_GRAMMAR_BYTES at most, says which tokens may come next,
    and where the output is complete that only its end may; empty: anything may.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""

    @property
    def scores(self) -> bool:
        """Whether the log-probabilities of the prompt are wanted."""
        return self.prompt_logprobs is not None

    def begin(self, max_tokens: int, min_tokens: int, seed: int, grammar: str) -> SamplingParams:
        """Return the same for one request: `dataclasses.replace` takes four times as long."""
        return SamplingParams(
            max_tokens,
            self.temperature,
            self.top_p,
            self.top_k,
            self.min_p,
            self.presence_penalty,
            self.frequency_penalty,
            self.repetition_penalty,
            self.logit_bias,
            seed,
            min_tokens,
            self.ignore_eos,
            self.stop_token_ids,
            self.logprobs,
            self.prompt_logprobs,
            grammar,
        )


@record(frozen=True, slots=True)
class GenerationRequest:
    """One choice of one client request, or what is left of it after a failed attempt.

    `tokens` is the prompt followed by the tokens generated so far; `prompt_length` the length of
    the original prompt, so that penalties, `max_tokens` and noise positions survive a resubmission.
    `tenant` is who is asking (a hash of the API key, or empty): fairness is between tenants, and
    prefix reuse is salted with it. A lower `priority` goes first. Requests of one `session` had
    better go to the same instance; empty: not known. `digest` is that of the model's definition
    which the prompt was tokenised for: no other one can go on with it; empty: any.
    """

    id: str
    model: str
    tokens: tuple[int, ...]
    prompt_length: int
    sampling: SamplingParams
    choice: int = 0
    attempt: int = 0
    priority: int = 0
    tenant: str = ""
    session: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The log-probability of the chosen token, and the best alternatives, best first.

    Taken from the raw logits (before temperature, penalties and filters), as vLLM does.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A span of layers that an instance has run of a request; stages in order make a route."""

    instance: str
    span: Span


@dataclass(slots=True)
class TokenEvent:
    """What one step gave one request. `tokens` may be empty when only `finish` is told."""

    request_id: str
    attempt: int
    tokens: list[int]
    logprobs: list[Logprobs] | None = None
    finish: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens that were reused from the prefix cache; set on a request's first event."""
    queued_s: float | None = None
    """Seconds from arrival at the scheduler to the first step; set on a request's first event."""
    route: tuple[Stage, ...] = ()
    """Who ran which layers of the prompt, where not one instance ran them all; on the first event.
    """
    prompt_logprobs: list[Logprobs] | None = None
    """Of the prompt's tokens from the second on, where they are wanted; on the first event."""


PlainToken = tuple[str, int, int]
"""(request id, attempt, token): an event that tells of one token, and nothing else."""


class StepTokens(Sequence[TokenEvent]):
    """What one step gave: `events`, and as `plain` those of which there is one for every token.

    A tuple is made in a tenth of an event's time. Who does not ask for `plain` sees events only,
    new ones each time.
    """

    __slots__ = ("events", "plain")

    def __init__(self, plain: list[PlainToken], events: list[TokenEvent]) -> None:
        self.plain = plain
        self.events = events

    def __repr__(self) -> str:
        return f"StepTokens({self.plain}, {self.events})"

    def __len__(self) -> int:
        return len(self.plain) + len(self.events)

    @overload
    def __getitem__(self, index: int) -> TokenEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenEvent]: ...
    def __getitem__(self, index: int | slice) -> TokenEvent | list[TokenEvent]:
        return list(self)[index]

    def __iter__(self) -> Iterator[TokenEvent]:
        for request_id, attempt, token in self.plain:
            yield TokenEvent(request_id, attempt, [token])
        yield from self.events
