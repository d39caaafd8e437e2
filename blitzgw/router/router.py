"""Routes requests to instances, and again when an instance is lost.

Synchronous throughout: it decides and hands over in one go and never awaits, so nothing can change
in between, except by what it calls itself: a port may emit tokens before `submit` returns, and a
sink may abort any request. Time comes in with `tick`, which its owner calls now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from blitzgw.core.clock import Clock
from blitzgw.core.ports import InstancePort, TokenSink
from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.errors import (
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
    Unavailable,
)
from blitzgw.router.choice import kinder, rank
from blitzgw.router.tokenlog import Entry

log = logging.getLogger(__name__)

RETRY_AFTER_S = 10.0
"""What a client is told to wait where no instance's arrival is known: about a worker's restart."""


class Router:
    """`core.ports.Generator` and `core.ports.TokenPort` of one node.

    A request that finds no instance is held for up to `hold_timeout_s`, at most `max_held` of them
    for each model. One whose instance is lost goes elsewhere with its tokens so far, up to
    `max_attempts` attempts in all; its client sees a pause.
    """

    def __init__(
        self, clock: Clock, *, max_attempts: int, hold_timeout_s: float, max_held: int
    ) -> None:
        self._clock = clock
        self._max_attempts = max_attempts
        self._hold_timeout_s = hold_timeout_s
        self._max_held = max_held
        self._instances: dict[str, InstancePort] = {}
        self._log: dict[str, Entry] = {}
        self._held: dict[str, Entry] = {}
        self._given_up: dict[str, str] = {}

    def instance_of(self, request_id: str) -> str | None:
        """Return the instance that serves a request; None while it is held or unknown."""
        entry = self._log.get(request_id)
        return entry.instance if entry is not None and entry.instance else None

    def held(self, model: str) -> int:
        """Return how many requests for a model wait for an instance."""
        return sum(entry.request.model == model for entry in self._held.values())

    def generate(self, request: GenerationRequest, sink: TokenSink) -> None:
        """Route a request; raises `RequestError` where it is refused."""
        if request.id in self._log:
            raise InvalidRequest(f"request {request.id} is already being answered")
        entry = Entry(request, sink)
        self._log[request.id] = entry
        try:
            self._place(entry)
        except BaseException:
            self._forget(request.id)
            raise

    def abort(self, request_id: str) -> None:
        """Stop a generation; its sink is not called any more. Unknown ids are ignored."""
        entry = self._forget(request_id)
        if entry is not None and entry.instance in self._instances:
            self._instances[entry.instance].abort(request_id)

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Log what one step produced and push it; events of former attempts are dropped."""
        for event in events:
            entry = self._log.get(event.request_id)
            if entry is None or event.attempt != entry.attempt:
                continue
            entry.tokens += event.tokens
            if entry.attempt:
                event.cached_tokens = 0  # of a prompt that the client did not send
                event.queued_s = None
            entry.sink.push(event)
            if event.finish is not None:
                self._forget(event.request_id)  # not before: a sink may ask who has served it

    def on_lost(self, request_ids: Sequence[str], reason: str) -> None:
        """Take back requests that ended at their instance without an answer."""
        for request_id in request_ids:
            entry = self._log.get(request_id)
            if entry is not None:
                self._retry(entry, reason)

    def instance_up(self, port: InstancePort) -> None:
        """Route to an instance from now on, first what has been held."""
        self._instances[port.instance] = port
        self._given_up.pop(port.model, None)
        self._release()

    def instance_down(self, instance: str, reason: str) -> None:
        """Route to an instance no more; what it had goes elsewhere."""
        self._instances.pop(instance, None)
        self.on_lost([i for i, e in self._log.items() if e.instance == instance], reason)

    def give_up(self, model: str, reason: str) -> None:
        """Answer what waits for a model, and what will ask for it, until an instance is up."""
        self._given_up[model] = reason
        for entry in [e for e in self._held.values() if e.request.model == model]:
            if self._is_held(entry):
                self._fail(entry, _unavailable(reason))

    def tick(self) -> None:
        """Place what is held where that has become possible, and give up what waits too long."""
        self._release()
        limit = self._clock.now() - self._hold_timeout_s
        for entry in [e for e in self._held.values() if e.held_since <= limit]:
            if self._is_held(entry):
                self._fail(entry, _unavailable("no instance became ready in time"))

    def _place(self, entry: Entry) -> None:
        """Submit to the best instance that takes it, or hold. Raises the kindest refusal."""
        request = entry.resubmission()
        refusal: Overloaded | Unavailable | None = None
        for port in rank([p for p in self._instances.values() if p.model == request.model]):
            entry.instance = port.instance
            try:
                port.submit(request)
            except (Overloaded, Unavailable) as error:
                entry.instance = ""
                refusal = kinder(refusal, error)
            else:
                if entry.instance:  # it may have been lost again and held meanwhile
                    self._held.pop(request.id, None)
                return
        if refusal is not None:
            raise refusal
        if not self._is_held(entry):
            self._hold(entry)

    def _hold(self, entry: Entry) -> None:
        """Let a new request wait; raises Unavailable where that is hopeless or too many do."""
        model = entry.request.model
        if model in self._given_up:
            raise _unavailable(self._given_up[model])
        if self.held(model) >= self._max_held:
            raise _unavailable("no instance is ready, and too many wait")
        self._wait(entry)

    def _wait(self, entry: Entry) -> None:
        entry.held_since = self._clock.now()
        self._held[entry.request.id] = entry

    def _is_held(self, entry: Entry) -> bool:
        return self._held.get(entry.request.id) is entry

    def _release(self) -> None:
        """Place what is held, the oldest first, as far as there is room."""
        full: set[str] = set()
        for entry in list(self._held.values()):
            model = entry.request.model
            if model in full or not self._is_held(entry):
                continue  # a failure before it may have ended this one, too
            try:
                self._place(entry)
            except (Overloaded, Unavailable):
                full.add(model)  # stays held; `tick` bounds how long
            except RequestError as error:
                self._fail(entry, error)

    def _retry(self, entry: Entry, reason: str) -> None:
        entry.attempt += 1
        entry.instance = ""
        request_id = entry.request.id
        log.warning("request_lost id=%s attempt=%d reason=%s", request_id, entry.attempt, reason)
        if entry.attempt >= self._max_attempts:
            text = f"generation was tried {entry.attempt} times, and its worker failed each time"
            self._fail(entry, GenerationFailed(text))
            return
        try:
            self._place(entry)
        except (Overloaded, Unavailable) as error:
            if entry.request.model in self._given_up:
                self._fail(entry, error)
            else:
                self._wait(entry)  # it was admitted once: no refusal now
        except RequestError as error:
            self._fail(entry, error)

    def _fail(self, entry: Entry, error: RequestError) -> None:
        self._forget(entry.request.id)
        entry.sink.fail(error)

    def _forget(self, request_id: str) -> Entry | None:
        self._held.pop(request_id, None)
        return self._log.pop(request_id, None)


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(reason, retry_after_s=RETRY_AFTER_S)
