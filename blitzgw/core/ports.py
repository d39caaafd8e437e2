"""Where siblings meet: the interfaces that `node.py` plugs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from blitzgw.core.parcels import DropParcels
from blitzgw.core.peer import Loss
from blitzgw.core.record import record
from blitzgw.core.request import GenerationRequest, PlainToken, TokenEvent
from blitzgw.core.step import Step
from blitzgw.errors import RequestError


class StepPort(Protocol):
    """A scheduler's way to its worker."""

    def post(self, step: Step) -> None:
        """Send a step without waiting."""

    def send(self, command: DropParcels) -> None:
        """Send what concerns parcels without waiting."""


class PairingPort(Protocol):
    """A scheduler's way to those that it is joined to (core/live.py)."""

    def say(self, message: Any) -> None:
        """Send a message to the other end of its pairing, if it is still there."""

    def end(self, pairing: str, reason: str) -> None:
        """End a pairing that has served its purpose."""


class Ingress(Protocol):
    """Where a scheduler's answers go, and those of other nodes' schedulers: to a router.

    Whatever carries an attempt that is not the present one is ignored.
    """

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Take what one step produced: one call carries all of its tokens."""

    def on_lost(self, losses: Sequence[Loss], reason: str, *, planned: bool = False) -> None:
        """Take back requests that ended without an answer; `planned`: given away, not failed."""

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        """Take back a request that an instance does not want after all: try the next one."""


class PlainIngress(Ingress, Protocol):
    """One that takes what most steps give as it comes over a link."""

    def on_plain(self, tokens: Sequence[PlainToken]) -> None:
        """Take what is nothing but a token of each of these requests."""


@record(frozen=True, slots=True)
class Outlook:
    """What a router wants to know of an instance before it sends something there.

    `queued_tokens` wait or are not yet computed; `prefill_tokens_per_s` is measured, None before
    the first measurement; `distance_s` is the time that a message takes there and back;
    `age_s` how old the figures are; both are 0 for an instance of this node, and only for such a
    one. One that is not `open` takes nothing new, a `reluctant` one only what nobody else takes.
    """

    queued_tokens: int
    prefill_tokens_per_s: float | None = None
    distance_s: float = 0.0
    age_s: float = 0.0
    open: bool = True
    reluctant: bool = False


class InstancePort(Protocol):
    """A router's way to an instance, here or on another node.

    `submit` raises `RequestError` where the instance refuses at once. After it has returned, the
    request's events arrive at the router's `Ingress` until one of them carries a finish, or it is
    declined or lost.
    """

    @property
    def instance(self) -> str:
        """The instance's id, unique in the cluster."""

    @property
    def model(self) -> str:
        """The name of the model that it serves."""

    def outlook(self) -> Outlook:
        """Return how busy it is."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request."""

    def abort(self, request_id: str, attempt: int) -> None:
        """Stop a request and free what it holds; unknown ones are ignored."""


class TokenSink(Protocol):
    """Who asked for a generation. Called from the event loop; must not block or raise."""

    def push(self, event: TokenEvent) -> None:
        """Take tokens; the last event carries a finish."""

    def push_token(self, token: int, now: float) -> None:
        """Take one token that is no first or last one, at `now` in seconds of the clock.

        The same for all tokens of a step.
        """

    def fail(self, error: RequestError) -> None:
        """Take the error that ends the generation; nothing follows it."""


class Generator(Protocol):
    """The router as the API sees it."""

    def turn_away(self, model: str, digest: str) -> None:
        """Raise the `RequestError` that a request would be refused with now, if that is known.

        Asked before a request for a model's definition is put together; cheap.
        """

    def generate(self, request: GenerationRequest, sink: TokenSink) -> None:
        """Route a request; raises `RequestError` where it is refused, else the sink is called."""

    def abort(self, request_id: str) -> None:
        """Stop a generation within a step; its sink is not called any more."""
