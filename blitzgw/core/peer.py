"""What two nodes say to each other over their peer link. `wire.py` gives each of these its tag.

A link joins two boots: a process that has restarted is another peer. The ingress sends `Submit`,
`Abort` and `Fetch`; the node that has the instance answers with `PlainTokens`, `Tokens`,
`Declined`, `Lost` and `Content`. A request is named by its id and attempt: whatever carries an
older attempt is dropped, and so is a `Submit` for a claim that its device has left behind. The
link's end ends all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.record import record
from blitzgw.core.request import GenerationRequest, PlainToken, TokenEvent
from blitzgw.core.view import LoadFacts


@record(frozen=True, slots=True)
class Submit:
    """Queue a request at an instance; `claim` is its device's as the ingress knows it."""

    instance: str
    claim: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Declined:
    """The instance does not take the request: nothing of it has been computed.

    `code` is a `RequestError.code`; `param` and `retry_after_s` are that error's.
    """

    request_id: str
    attempt: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


@dataclass(slots=True)
class Tokens:
    """What one step gave all requests of this ingress, or several steps where the link is slow."""

    events: list[TokenEvent]


@dataclass(frozen=True, slots=True)
class PlainTokens:
    """What one step gave those requests of this ingress for which it is one token and no more."""

    tokens: list[PlainToken]

    @property
    def events(self) -> list[TokenEvent]:
        """The same at length, made anew each time."""
        return [TokenEvent(request, attempt, [token]) for request, attempt, token in self.tokens]


@dataclass(frozen=True, slots=True)
class Loss:
    """A request that has ended without an answer, named with the attempt that was lost.

    `instance` is one that keeps what was computed of it (core/live.py): submitted there, it goes on
    without a pause. Empty: anywhere.
    """

    request_id: str
    attempt: int
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """These requests ended here without an answer and may be tried elsewhere.

    `planned`: the node gives them away because it drains, which is no failed attempt.
    """

    losses: tuple[Loss, ...]
    reason: str
    planned: bool = False


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop a request and free what it holds; unknown ones are ignored."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How busy the sender's instances are: fresher than gossip, for those who use them."""

    loads: tuple[LoadFacts, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Is the other event loop alive, and how far away is it? Answered with `echo` set."""

    sent_s: float
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send content from `offset` on.

    `what` is `blob/DIGEST`, `card/DIGEST`, `requests` or `operations`.
    """

    id: int
    what: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """A part of what was fetched; `total` is the size of the whole, -1 where it is not here."""

    id: int
    offset: int
    total: int
    data: bytes


PeerMessage = (
    Submit
    | Declined
    | Tokens
    | Lost
    | Abort
    | LoadReport
    | Heartbeat
    | Fetch
    | Content
    | PlainTokens
)
