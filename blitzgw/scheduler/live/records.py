"""What is remembered of requests that two instances share. Data only.

A request is *queued*, *lent* or *here*, and only its home changes that. `Loan` is the home's record
of it, `Task` the helper's; `Course` is a prefill that goes through the layers in groups, at either
end; `Keep` marks what runs on an instance that has no client for it yet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from blitzgw.core.live import LivePolicy
from blitzgw.core.request import TokenEvent
from blitzgw.scheduler.sequence import Role, Sequence


@dataclass(slots=True, eq=False)
class Passage(Role):
    """A sequence on its way between two complete instances, by a ticket of a road (passages.py).

    Its course is held back until it has `landed`. `fresh`: parcels wait to be taken in.
    """

    seq: Sequence
    edge: str
    ticket: int
    fresh: bool = False
    landed: bool = False
    importing: int = 0
    """Posted steps that take parcels of it in."""
    over: bool = False
    """Whether nobody wants its parcels any more."""


@dataclass(slots=True, eq=False)
class Course:
    """A prefill of positions `[start, len(tokens))` that is posted layers by layers.

    All of them are posted up to `layer`, and those before `at` to the end of the group that has
    been begun, which ends at `stop`. It may go on while `ready`; `done` is set with the row that
    samples. `introduced`: its worker knows it.
    """

    seq: Sequence
    number: int
    layer: int = 0
    start: int = 0
    at: int = 0
    stop: int = 0
    ready: bool = True
    introduced: bool = False
    done: bool = False
    loan: Loan | None = None
    """Where parcels of it come from, until all of them have been taken in."""
    passage: Passage | None = None
    """On its way to or from another instance: not computed until it has landed."""

    @property
    def tokens(self) -> int:
        """How many positions it has."""
        return len(self.seq.tokens) - self.start

    @property
    def is_begun(self) -> bool:
        """Whether some of its positions are further than others."""
        return self.at > self.start

    @property
    def is_whole(self) -> bool:
        """Whether its positions have all layers before them."""
        return not self.layer and not self.is_begun

    def work_left(self, n_layers: int) -> int:
        """Return what is not posted of it, in tokens × layers."""
        if self.done:
            return 0
        whole = (len(self.seq.tokens) - self.start) * (n_layers - self.layer)
        return whole - (self.at - self.start) * (self.stop - self.layer)


HIDDEN = -1
"""In place of a layer: the hidden states."""


class LoanState(Enum):
    """Where a lent request is, as its home knows it."""

    LENT = auto()
    RECALLED = auto()
    HANDED = auto()


@dataclass(slots=True, eq=False)
class Loan(Role):
    """A request at a helper, until it is here with all of its KV.

    `layer` is where it was handed over, or is offered. Of its `n_tokens` positions, `come` counts
    those whose KV has arrived, by layer, and under HIDDEN those whose hidden states have; parcels
    are cut anywhere. `fresh` says that some of it has not been taken in. `news_s` is when anything
    was heard of it last since it was recalled.
    """

    seq: Sequence
    side: HomeSide
    ticket: int
    state: LoanState = LoanState.LENT
    offered: bool = False
    layer: int = 0
    n_tokens: int = 0
    come: Counter[int] = field(default_factory=Counter)
    fresh: bool = False
    news_s: float = 0.0
    importing: int = 0
    """Posted steps that take parcels of it in."""
    over: bool = False
    """Whether nobody wants its parcels any more."""
    lent_tokens: int = 0
    """What it adds to the home's queue."""

    @property
    def is_sent(self) -> bool:
        """Whether parcels of it may come."""
        return self.state is LoanState.RECALLED or (
            self.state is LoanState.HANDED and self.layer > 0
        )

    @property
    def is_whole(self) -> bool:
        """Whether everything has arrived."""
        return (
            self.state is LoanState.HANDED
            and self.hidden
            and all(self.come[layer] >= self.n_tokens for layer in range(self.layer))
        )

    @property
    def hidden(self) -> bool:
        """Whether the hidden states of all positions have arrived."""
        return self.come[HIDDEN] >= self.n_tokens

    @property
    def is_awaited(self) -> bool:
        """Whether it has been recalled and is not all here."""
        return self.state is not LoanState.LENT and not self.is_whole

    def is_overdue(self, now: float, patience_s: float) -> bool:
        """Tell whether it has been recalled and nothing was heard of it for so many seconds."""
        return self.is_awaited and now - self.news_s > patience_s

    @property
    def is_takeable(self) -> bool:
        """Whether its home may recall it."""
        if self.state is not LoanState.LENT:
            return False
        return self.offered or self.side.policy is LivePolicy.ZIGZAG


@dataclass(slots=True, eq=False)
class HomeSide:
    """A pairing at the home. `here` and `there` are instances.

    The helper takes requests as long as it has fewer than `requests`, of `tokens` together.
    `news_s` is when it was heard of last, or was lent something while it had nothing. It `hangs`
    once it has been silent for too long: nothing more is lent to it.
    """

    id: str
    here: str
    there: str
    policy: LivePolicy
    requests: int = 0
    tokens: int = 0
    pulled: bool = False
    finished: bool = False
    keeps: bool = False
    news_s: float = 0.0
    hangs: bool = False
    loans: dict[str, Loan] = field(default_factory=dict)
    tickets: dict[int, Loan] = field(default_factory=dict)

    @property
    def owes(self) -> bool:
        """Whether the helper has work of which it has to say something by itself.

        What can be taken from it at any time it keeps without a word.
        """
        return self.policy is not LivePolicy.ZIGZAG and bool(self.in_flight())

    def is_silent(self, now: float, patience_s: float) -> bool:
        """Tell whether it owes something, and nothing was heard of it for so many seconds."""
        return self.owes and now - self.news_s > patience_s

    def in_flight(self) -> list[Loan]:
        """Return what the helper works on."""
        return [
            loan
            for loan in self.loans.values()
            if loan.state is LoanState.LENT and not loan.offered
        ]


@dataclass(slots=True, eq=False)
class Task(Role):
    """A request lent to the instance here. `course` is None while it has no memory.

    It goes no further than `limit` layers, once that is known (`best-effort`, `pipeline`).
    """

    seq: Sequence
    side: GuestSide
    ticket: int
    course: Course | None = None
    limit: int | None = None
    recalled: bool = False

    @property
    def is_takeable(self) -> bool:
        """Whether its home may recall it before it is offered."""
        return self.side.policy is LivePolicy.ZIGZAG

    @property
    def is_begun(self) -> bool:
        """Whether anything has been posted of it."""
        return self.course is not None and (self.course.layer > 0 or self.course.is_begun)


@dataclass(slots=True, eq=False)
class GuestSide:
    """A pairing at the helper. `said` is the room that its home has been told of, and for what."""

    id: str
    here: str
    there: str
    policy: LivePolicy
    finished: bool = False
    said: tuple[int, int, bool] = (0, 0, False)
    tasks: dict[str, Task] = field(default_factory=dict)
    sending: dict[int, Task] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Keep(Role):
    """A sequence whose tokens are held back until its ingress submits it here.

    From `until_s` on nobody is expected to come. `held` is its events, not told to anybody.
    """

    seq: Sequence
    pairing: str
    until_s: float
    held: list[TokenEvent] = field(default_factory=list)
