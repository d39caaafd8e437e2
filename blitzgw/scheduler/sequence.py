"""One request on its way through the scheduler, and the states it goes through."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import Enum, auto
from operator import attrgetter

from blitzgw.core.request import FinishReason, GenerationRequest, Logprobs, Stage
from blitzgw.core.step import NO_TOKEN
from blitzgw.scheduler.fairness import Account


class Phase(Enum):
    """Where a sequence is."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    LENT = auto()
    SENDING = auto()
    STAGED = auto()
    ENDED = auto()


# waiting → running → ended. A running sequence that must make room gives its KV away and waits
# again with all its tokens; while a step in flight still samples for it, it is `preempted`: that
# token is valid (the KV it was computed from was still in place when the step ran) and must be
# known before the sequence is computed anew. Whatever is not ended can be aborted or lost.
# Between two instances (live/): at its home a sequence is `lent` while a helper may work on it, and
# running from its recall on. At a helper it is `lent` before it has memory there, running while
# layers are computed, and `sending` once it is its home's again and its KV is still being read.
# It is `staged` at the lead of a pipeline, whose stages compute it together; a lead that has become
# complete runs it, or has it wait.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.RUNNING, Phase.LENT, Phase.STAGED, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.PREEMPTED, Phase.SENDING, Phase.ENDED}),
    Phase.PREEMPTED: frozenset({Phase.WAITING, Phase.LENT, Phase.ENDED}),
    Phase.LENT: frozenset({Phase.WAITING, Phase.RUNNING, Phase.STAGED, Phase.ENDED}),
    Phase.SENDING: frozenset({Phase.ENDED}),
    Phase.STAGED: frozenset({Phase.WAITING, Phase.RUNNING, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


NOTHING: frozenset[int] = frozenset()
"""One for all: an empty set of its own takes 216 bytes."""


Turn = tuple[int, float, int]
"""Whose prompt is computed next: the smaller one's."""


class Role:
    """What a sequence is between two instances (live/records.py)."""

    __slots__ = ()


class Sequence:
    """A request with what has been scheduled of it.

    `number` names it to the worker and is new at each admission (0: the worker does not know it).
    Of `tokens`, the positions `[0, scheduled)` are computed or posted; `samples_in_flight` more
    tokens will follow from posted rows. KV blocks cover `[0, capacity)`; those in `new_blocks` the
    worker has not been told of. The sequence ends for length at `limit` tokens. `cached_tokens`
    is what the next event still has to tell, and so are `route` and `prompt_logprobs`. `role` is
    None for a sequence that is this instance's alone; one that `stays` is not lent (any more).
    """

    __slots__ = (
        "account",
        "admitted",
        "arrival",
        "arrived_s",
        "attempt",
        "cached_tokens",
        "capacity",
        "due_s",
        "first_step_s",
        "first_stop",
        "id",
        "instance",
        "limit",
        "new_blocks",
        "number",
        "phase",
        "priority",
        "prompt_logprobs",
        "request",
        "role",
        "route",
        "samples_in_flight",
        "scheduled",
        "stays",
        "stop_ids",
        "tokens",
    )

    def __init__(
        self,
        request: GenerationRequest,
        instance: str,
        *,
        account: Account,
        arrival: int,
        arrived_s: float,
        due_s: float,
        context: int,
        eos_ids: tuple[int, ...],
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.instance = instance
        self.id = request.id
        self.attempt = request.attempt
        self.priority = request.priority
        self.account = account
        self.arrival = arrival
        self.arrived_s = arrived_s
        self.due_s = due_s
        self.tokens = array("I", request.tokens)  # 4 bytes each, where a list takes 36
        self.limit = min(request.prompt_length + sampling.max_tokens, context)
        enders = sampling.stop_token_ids + (() if sampling.ignore_eos else eos_ids)
        if sampling.grammar:
            enders += (NO_TOKEN,)
        self.stop_ids = frozenset(enders) if enders else NOTHING
        self.first_stop = request.prompt_length + sampling.min_tokens
        self.phase = Phase.WAITING
        self.number = 0
        self.scheduled = 0
        self.samples_in_flight = 0
        self.capacity = 0
        self.new_blocks: tuple[int, ...] = ()
        self.cached_tokens = 0
        self.first_step_s: float | None = None
        self.admitted = False
        self.role: Role | None = None
        self.route: tuple[Stage, ...] = ()
        self.prompt_logprobs: list[Logprobs] | None = None
        self.stays = self.is_scored

    @property
    def is_scored(self) -> bool:
        """Whether its whole prompt is computed here, for the log-probabilities of its tokens."""
        return self.request.sampling.scores

    @property
    def turn(self) -> Turn:
        """Whose prompt is computed next: the smaller one's (fairness.py)."""
        return self.priority, self.due_s, self.arrival

    @property
    def rank(self) -> tuple[int, int]:
        """Who keeps its memory when there is too little: the smaller rank."""
        return self.priority, self.arrival

    def move(self, phase: Phase) -> None:
        """Go to a phase; a transition that is not in the table is a bug."""
        assert phase in TRANSITIONS[self.phase], f"{self.id}: {self.phase} → {phase}"
        self.phase = phase

    def forget_kv(self) -> None:
        """Start from the first token again: the KV is gone."""
        self.number = 0
        self.scheduled = 0
        self.capacity = 0
        self.new_blocks = ()

    def finish_reason(self) -> FinishReason | None:
        """Return why the last token ends the sequence, or None. Stopping beats length."""
        n_tokens = len(self.tokens)
        if self.tokens[-1] == NO_TOKEN:
            return FinishReason.ERROR
        if self.tokens[-1] in self.stop_ids and n_tokens >= self.first_stop:
            return FinishReason.STOP
        return FinishReason.LENGTH if n_tokens >= self.limit else None


_turn = attrgetter("turn")


def in_turn(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Return sequences in the order in which their prompts are computed."""
    found = [*sequences]
    if len(found) > 1:
        found.sort(key=_turn)
    return found
