"""A client's request in the simulator: what it asks, and what it hears."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from blitzgw.core.request import FinishReason, SamplingParams, TokenEvent
from blitzgw.core.scale import bucket_of
from blitzgw.errors import Overloaded, RequestError, Unavailable
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer
from blitzgw.sim.evaluation.traces import BLOCK_TOKENS

if TYPE_CHECKING:
    from blitzgw.sim.cluster.ingress import Ingress
    from blitzgw.sim.cluster.setup import ModelSetup

WORDS = 1
"""What prompts are made of, but for the first token of each block that is nobody else's."""

OWN, SHARED = 2, 1 << 30
"""Where the ids begin that make a prompt its own, and those that stand for a trace's blocks."""

REFUSALS = (Overloaded, Unavailable)
"""What a client is told that has come in vain, with 429 or 503; all else is a failure."""


def prompt(number: int, arrival: Arrival) -> tuple[int, ...]:
    """Return the tokens of a prompt: its trace's blocks, then what no other prompt has."""
    own = OWN + number % (SHARED - OWN)
    length = arrival.prompt_tokens
    if not arrival.blocks:
        return (own,) + (WORDS,) * (length - 1)
    filled = (WORDS,) * (BLOCK_TOKENS - 1)
    parts = [(SHARED + block % SHARED, *filled) for block in arrival.blocks]
    tokens = [*chain.from_iterable(parts[: length // BLOCK_TOKENS])]
    left = length - len(tokens)
    return (*tokens, own, *(WORDS,) * (left - 1)) if left else tuple(tokens)


def sampling(arrival: Arrival, max_tokens: int) -> SamplingParams:
    """Return greedy sampling; the seed says where the device ends the answer (PacedCost)."""
    ends = arrival.prompt_tokens + arrival.output_tokens
    return SamplingParams(max_tokens, temperature=0.0, seed=ends)


class Latencies:
    """Latencies of a model's clients that have not been told yet, by the names of `Demand`."""

    __slots__ = ("queue", "tpot", "ttft")

    def __init__(self) -> None:
        self.ttft: dict[int, int] = {}
        self.tpot: dict[int, int] = {}
        self.queue: dict[int, int] = {}

    def take(self) -> dict[str, dict[int, int]]:
        """Return them, and begin anew."""
        taken = {"ttft": self.ttft, "tpot": self.tpot, "queue": self.queue}
        self.ttft, self.tpot, self.queue = {}, {}, {}
        return taken


def _count(counts: dict[int, int], seconds: float) -> None:
    bucket = bucket_of(seconds)
    counts[bucket] = counts.get(bucket, 0) + 1


class Asked:
    """A `core.ports.TokenSink`: a request from its client's send to the answer's end."""

    __slots__ = (
        "_first_s",
        "_ingress",
        "_last_s",
        "_sent_s",
        "_tokens",
        "_way_back_s",
        "arrival",
        "id",
        "model",
        "number",
        "settled",
        "split",
    )

    def __init__(
        self, ingress: Ingress, model: ModelSetup, number: int, arrival: Arrival, now: float
    ) -> None:
        self._ingress, self.model, self.number = ingress, model, number
        self.arrival, self.id = arrival, f"{model.name}-{number}"
        self._sent_s, self._first_s, self._last_s = now, -1.0, -1.0
        self._tokens, self._way_back_s = 0, 0.0
        self.settled = False
        """Whether it has a first token, or its end: its client does not give up any more."""
        self.split = ""

    def push(self, event: TokenEvent) -> None:
        """Take tokens."""
        tokens = len(event.tokens) - (event.finish is FinishReason.STOP)
        if tokens > 0:
            self._tokens += tokens
            self._last_s = self._ingress.moment_s
            if self._first_s < 0:
                self._begin(event)
        if event.finish is not None:
            self.end("ok")

    def push_token(self, token: int, now: float) -> None:  # noqa: ARG002
        """Take one token."""
        self.push(TokenEvent(self.id, 0, [token]))

    def fail(self, error: RequestError) -> None:
        """Take the error that ends it."""
        self.end("refused" if isinstance(error, REFUSALS) else "failed", error.message)

    def end(self, outcome: str, error: str = "") -> None:
        """Give the answer."""
        ingress, sent_s = self._ingress, self._sent_s
        self.settled = True
        answer = Answer(
            self.arrival.at_s,
            self.arrival.prompt_tokens,
            self.arrival.output_tokens,
            outcome,
            error,
            tokens=self._tokens,
            split=self.split,
        )
        if self._first_s >= 0:
            answer.first_s = self._first_s - sent_s + self._way_back_s
            answer.last_s = self._last_s - sent_s + self._way_back_s
            if self._tokens > 1 and outcome == "ok":
                _count(ingress.learn(self.model.name).tpot, answer.tpot_s)
        ingress.over(self)
        ingress.node.world.request_done(self.model, self.number, answer)

    def _begin(self, event: TokenEvent) -> None:
        """Take the first token."""
        self.settled = True
        ingress = self._ingress
        self._first_s = self._last_s
        self._way_back_s = ingress.way_back_s(self.id)
        counts = ingress.learn(self.model.name)
        _count(counts.ttft, self._first_s - self._sent_s)
        if event.queued_s is not None:
            _count(counts.queue, event.queued_s)
        if event.route:
            stages = (f"{s.instance}:{s.span.start}-{s.span.stop}" for s in event.route)
            self.split = ",".join(stages)
