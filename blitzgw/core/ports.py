"""Where siblings meet: the interfaces that `node.py` plugs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.core.step import Step
from blitzgw.errors import RequestError


class StepPort(Protocol):
    """A scheduler's way to its worker."""

    def post(self, step: Step) -> None:
        """Send a step without waiting."""


class TokenPort(Protocol):
    """Where a scheduler's tokens go: one call carries all tokens of a step."""

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Take what one step produced."""


class InstancePort(Protocol):
    """A router's way to an instance, here or on another node.

    `submit` raises `RequestError` where the instance refuses. After it has returned, events of
    that request arrive at the router's `TokenPort` until one of them carries a finish.
    """

    @property
    def instance(self) -> str:
        """The instance's id."""

    @property
    def model(self) -> str:
        """The name of the model that it serves."""

    def queued_tokens(self) -> int:
        """Return the prompt tokens that are waiting or in flight."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request."""

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds; unknown ids are ignored."""


class TokenSink(Protocol):
    """Who asked for a generation. Called from the event loop; must not block or raise."""

    def push(self, event: TokenEvent) -> None:
        """Take tokens; the last event carries a finish."""

    def fail(self, error: RequestError) -> None:
        """Take the error that ends the generation; nothing follows it."""


class Generator(Protocol):
    """The router as the API sees it."""

    def generate(self, request: GenerationRequest, sink: TokenSink) -> None:
        """Route a request; raises `RequestError` where it is refused, else the sink is called."""

    def abort(self, request_id: str) -> None:
        """Stop a generation within a step; its sink is not called any more."""
