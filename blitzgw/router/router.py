"""Routes requests to instances, here and on other nodes, and again when an instance is lost.

Synchronous throughout: it decides and hands over in one go and never awaits, so nothing can change
in between, except by what it calls itself: a port may emit tokens before `submit` returns, and a
sink may abort any request. Time comes in with `tick`, which its owner calls now and then.

                     ┌────────── declined: the next instance ──────────┐
    generate ──► place ──► at an instance ──finish──► answered         │
                  │  ▲        └──────────────────────────┴── lost ─────┴──► place
    nobody is open│  │an instance is up, has room                            │ too often
                  ▼  │                                                       ▼
                  held ──too long──► 503                                    500
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from blitzgw.core.clock import Clock
from blitzgw.core.peer import Loss
from blitzgw.core.ports import InstancePort, TokenSink
from blitzgw.core.request import GenerationRequest, PlainToken, Stage, StepTokens, TokenEvent
from blitzgw.core.view import RequestFacts
from blitzgw.errors import GenerationFailed, InvalidRequest, RequestError
from blitzgw.router.arrivals import Arrived, Held
from blitzgw.router.choice import Dice
from blitzgw.router.dispatch import Dispatcher
from blitzgw.router.integrity import check_books
from blitzgw.router.refusal import as_refusal
from blitzgw.router.statistics import RouterStatistics
from blitzgw.router.tokenlog import Entry, Round

log = logging.getLogger(__name__)

MAX_MOVES = 16
"""So often a request moves without counting a failure: more than a rolling restart or the loss of
a rack needs, and an end to nodes that hand it round in a circle or go down with it."""

COOLING_S = 0.5
"""For so long an instance that has declined is asked last: until its figures tell that it is full,
and long enough to spare it a crowd of held requests at every tick."""


class Router:
    """`core.ports.Generator` and `core.ports.Ingress` of one node.

    A request that finds no instance is held for up to `hold_timeout_s`, at most `max_held` of them
    for each model. One whose instance is lost goes elsewhere with its tokens so far, up to
    `max_attempts` attempts in all; its client sees a pause. `node` is the name under which
    requests are reported; `dice` spreads them.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_attempts: int,
        hold_timeout_s: float,
        max_held: int,
        node: str = "",
        dice: Dice | None = None,
    ) -> None:
        self._clock = clock
        self._node = node
        self._max_attempts = max_attempts
        self._hold_timeout_s = hold_timeout_s
        # each node with dice of its own, the same ones after a restart
        self._dispatcher = Dispatcher(clock, dice or random.Random(node), max_held)  # noqa: S311
        self._log = self._dispatcher.log
        self._fleet = self._dispatcher.fleet
        self._waiting = self._dispatcher.waiting
        self._counts = self._dispatcher.counts
        self._arrivals = self._dispatcher.arrivals
        self._splits = Counter[str]()
        self._migrations = Counter[tuple[str, str]]()

        self.summon: Callable[[str], None] = lambda _: None
        """Brings an instance up that another one says has something of ours, if it can be."""

    def watch(self, stirred: Callable[[str], None], eta_s: Callable[[str], float | None]) -> None:
        """Tell `stirred` the model of what comes and is held; refuse with what `eta_s` expects.

        See `Dispatcher`.
        """
        self._dispatcher.stirred, self._dispatcher.eta_s = stirred, eta_s

    # What the API asks.

    def instance_of(self, request_id: str) -> str | None:
        """Return the instance that serves a request; None while it is held or unknown."""
        entry = self._log.get(request_id)
        return entry.instance if entry is not None and entry.instance else None

    def route_of(self, request_id: str) -> tuple[Stage, ...]:
        """Return who ran which layers of a prompt, where not one instance ran them all."""
        entry = self._log.get(request_id)
        return () if entry is None else entry.route

    def held(self, model: str) -> int:
        """Return how many requests for a model wait for an instance."""
        return self._waiting.count(model)

    def queue(self, model: str) -> Held:
        """Return what waits for an instance of a model."""
        return self._waiting.held(model)

    def arrived(self, model: str) -> Arrived:
        """Return what clients have asked of a model since the start; it goes on counting."""
        return self._arrivals.of(model)

    def turn_away(self, model: str, digest: str) -> None:
        """Raise the refusal that a request would get now, where that is known without it.

        It counts as demand that was refused, as long as the prompt that instances have refused.
        """
        full = self._dispatcher.fullness.of(model, digest, self._clock.now())
        if full is not None:
            self._counts.requests += 1
            self._counts.refused += 1
            self._arrivals.turned_away(model, full.tokens)
            self._dispatcher.stirred(model)
            raise full.again()

    def generate(self, request: GenerationRequest, sink: TokenSink) -> None:
        """Route a request; raises `RequestError` where it is refused."""
        self._dispatcher.release(request.model)  # who came before goes before
        if request.id in self._log:
            raise InvalidRequest(f"request {request.id} is already being answered")
        self._counts.requests += 1
        number = self._counts.requests
        self._dispatcher.admit(Entry(request, sink, number, self._clock.now()))

    def abort(self, request_id: str) -> None:
        """Stop a generation; its sink is not called any more. Unknown ids are ignored."""
        entry = self._dispatcher.forget(request_id)
        if entry is None:
            return
        self._dispatcher.fullness.moved(entry.request.model)
        seat = self._fleet.get(entry.instance)
        if seat is not None:
            seat.port.abort(request_id, entry.attempt)

    # What instances tell.

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Log what one step produced and push it; events of former attempts are dropped."""
        if isinstance(events, StepTokens):
            self.on_plain(events.plain)
            events = events.events
        for event in events:
            entry = self._log.get(event.request_id)
            if entry is None or event.attempt != entry.attempt:
                continue
            if entry.attempt and entry.tokens:
                event.cached_tokens = 0  # of a prompt that the client did not send
                event.queued_s = None
            if event.cached_tokens:
                self._arrivals.cached(entry.request.model, event.cached_tokens)
            entry.alive = True
            if event.route:
                entry.route = event.route
                self._splits[entry.request.model] += 1
            entry.tokens.extend(event.tokens)
            entry.sink.push(event)
            if event.finish is not None:
                self._end(entry)  # not before: a sink may ask who has served it

    def on_plain(self, tokens: Sequence[PlainToken]) -> None:
        """Log and push what is nothing but a token. This runs for every token."""
        find, now = self._log.get, self._clock.now()
        for request_id, attempt, token in tokens:
            entry = find(request_id)
            if entry is not None and entry.attempt == attempt:
                entry.alive = True
                entry.tokens.append(token)
                entry.sink.push_token(token, now)

    def on_lost(self, losses: Sequence[Loss], reason: str, *, planned: bool = False) -> None:
        """Take back requests that ended at their instance without an answer.

        A `planned` loss is nobody's failure: only the others are limited by `max_attempts`. What is
        reported here was at a worker, which is to blame for it. Where an instance keeps what was
        computed, it is asked first, and summoned if it is not known yet.
        """
        for loss in losses:
            entry = self._present(loss.request_id, loss.attempt)
            if entry is not None:
                kept = loss.instance if planned else ""
                if kept and self._fleet.get(kept) is None:
                    self.summon(kept)
                self._lost(entry, reason, kept, planned=planned and entry.moves < MAX_MOVES)

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        """Take back a request that its instance does not want after all: ask the next one.

        When nobody wants it, a new request gets the kindest refusal; one that had been admitted
        waits, and so does a new one where all that was asked is not there any more. An error that
        is the request's own fault ends it.
        """
        entry = self._present(request_id, attempt)
        if entry is None:
            return
        refusal = as_refusal(error)
        if refusal is None:
            self._dispatcher.fail(entry, error)
            return
        log.info("request_declined id=%s instance=%s", request_id, entry.instance)
        self._counts.declined += 1
        seat = self._fleet.get(entry.instance)
        if seat is not None:
            seat.cooling_until = self._clock.now() + COOLING_S
        entry.round.refused(entry.instance, refusal)
        entry.round.declines += 1
        self._dispatcher.place_again(entry)

    # Which instances there are.

    def instance_up(self, port: InstancePort, digest: str = "") -> None:
        """Route to an instance from now on, first what has been held.

        `digest` names the definition of its model, and only requests for that one go there; empty:
        any. A port that replaces another under the same id has nothing of what the other one had.
        """
        known = self._fleet.get(port.instance)
        if known is None or known.port is not port:
            self.instance_down(port.instance, "the instance has begun anew")
            self._fleet.add(port, digest)
        else:
            known.digest = digest
        self._dispatcher.hope(port.model)
        self._dispatcher.release(port.model)

    def instance_changed(self, instance: str) -> None:
        """Look at who waits: an instance may have room again, or be open again."""
        seat = self._fleet.get(instance)
        if seat is not None:
            self._dispatcher.fullness.moved(seat.port.model)
            self._dispatcher.release(seat.port.model)

    def instance_down(self, instance: str, reason: str, *, planned: bool = False) -> None:
        """Route to an instance no more; what it had goes elsewhere. Unknown ids are ignored.

        What another node had and was not heard of has not failed: nodes that end together are lost
        one after the other, and a request meets each of them. A worker of this node is to blame.
        """
        seat = self._fleet.remove(instance)
        if seat is None:
            return
        there = [e for e in self._log.values() if e.instance == instance]
        begun = [Loss(e.request.id, e.attempt) for e in there if e.alive or seat.local]
        others = [Loss(e.request.id, e.attempt) for e in there if not (e.alive or seat.local)]
        self.on_lost(begun, reason, planned=planned)
        self.on_lost(others, reason, planned=True)

    def give_up(self, model: str, reason: str) -> None:
        """Answer what waits for a model, and what will ask for it, until an instance is up."""
        self._dispatcher.give_up(model, reason)

    def redefined(self, model: str, digest: str) -> None:
        """Learn which definition of a model holds from now on; empty: none that is known.

        What waits for another one, asks for it or comes back later is answered with an error.
        """
        self._dispatcher.redefine(model, digest)

    def tick(self) -> None:
        """Give up what waits too long, and place what is held where that has become possible.

        In this order: what is on its way to be declined again does not wait at the moment.
        """
        self._dispatcher.expire(self._clock.now() - self._hold_timeout_s)
        for model in self._waiting.models():
            self._dispatcher.release(model)

    # What operators ask.

    def requests(self, now: float) -> list[RequestFacts]:
        """Return all requests under way, in the order in which they came."""
        return [entry.facts(self._node, now) for entry in self._log.values()]

    def statistics(self) -> RouterStatistics:
        """Return the present figures."""
        return RouterStatistics(
            active=len(self._log),
            held={model: self._waiting.count(model) for model in self._waiting.models()},
            instances=len(self._fleet),
            prefixes=self._dispatcher.placing.prefixes,
            sessions=self._dispatcher.placing.sessions,
            counts=self._counts.copy(),
            splits=self._splits.copy(),
            migrations=self._migrations.copy(),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves. Not during a call."""
        check_books(self._log, self._waiting, self._fleet)
        assert not any(self._dispatcher.is_outdated(e) for e in self._waiting.everybody())
        for entry in self._log.values():
            assert entry.failures < self._max_attempts
            assert entry.moves <= MAX_MOVES

    def _lost(self, entry: Entry, reason: str, kept: str, *, planned: bool) -> None:
        entry.admitted, entry.held_since = True, None
        self._dispatcher.fullness.moved(entry.request.model)
        if planned:
            entry.moves += 1
            self._counts.moved += 1
            self._migrations[entry.request.model, "kv" if kept else "recompute"] += 1
            entry.round = Round(frozenset({entry.instance}))
            log.info("request_moves id=%s reason=%s", entry.request.id, reason)
        else:
            entry.failures += 1
            self._counts.lost += 1
            entry.failed |= {entry.instance}
            entry.round = Round()
            template = "request_lost id=%s failures=%d reason=%s"
            log.warning(template, entry.request.id, entry.failures, reason)
        if entry.failures < self._max_attempts:
            self._dispatcher.place_again(entry, first=kept)
            return
        text = f"generation was tried {entry.failures} times, and its worker failed each time"
        self._dispatcher.fail(entry, GenerationFailed(text))

    def _present(self, request_id: str, attempt: int) -> Entry | None:
        """Return a request whose present attempt this is, and that is at an instance."""
        entry = self._log.get(request_id)
        if entry is None or entry.attempt != attempt or not entry.instance:
            return None
        return entry

    def _end(self, entry: Entry) -> None:
        """Close the books on an answered request, which its sink may have done already."""
        self._dispatcher.fullness.moved(entry.request.model)
        seat = self._fleet.get(entry.instance)
        if seat is not None:
            self._dispatcher.placing.finished(entry, seat)
        if self._log.get(entry.request.id) is entry:
            self._dispatcher.forget(entry.request.id)
