"""Requests of other nodes at instances of this one: the owner's end of a peer link."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from blitzgw.core.clock import Clock
from blitzgw.core.peer import Abort, Declined, Loss, Lost, PlainTokens, Submit, Tokens
from blitzgw.core.ports import Ingress, InstancePort
from blitzgw.core.request import GenerationRequest, PlainToken, StepTokens, TokenEvent
from blitzgw.errors import InvalidRequest, Outdated, RequestError, Unavailable
from blitzgw.gossip.links import Links
from blitzgw.gossip.users import Users

log = logging.getLogger(__name__)

MAX_TEXT = 2000
"""Characters of a reason or an error's message that a peer is told: more is no explanation."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A request that is here for a peer."""

    request_id: str
    attempt: int
    boot: str
    instance: str


@dataclass(frozen=True, slots=True)
class _Hosted:
    port: InstancePort
    claim: int
    digest: str


class Serving:
    """The `core.ports.Ingress` of this node's schedulers: sends each answer to whom it belongs.

    What a step produced for a peer goes there as one message, what it produced for this node's own
    requests to its router in one call. The requests that are here are bounded by the schedulers'
    queues, which refuse what is too much.
    """

    def __init__(self, links: Links, router: Ingress, clock: Clock) -> None:
        self.draining = False
        """Whether requests of peers are declined; those of this node's router are not its business.
        """
        self.users = Users()
        self._links, self._router, self._clock = links, router, clock
        self._hosted: dict[str, _Hosted] = {}
        self._guests: dict[str, Guest] = {}

    def host(self, port: InstancePort, claim: int, digest: str = "") -> None:
        """Serve an instance to peers, at a claim of its device.

        `digest` is that of its model's definition: requests for another one are declined.
        """
        self._hosted[port.instance] = _Hosted(port, claim, digest)

    def unhost(self, instance: str) -> None:
        """Serve an instance no more. Its scheduler reports what it had as lost."""
        self._hosted.pop(instance, None)

    def requests(self) -> list[Guest]:
        """Return what is here for peers."""
        return [*self._guests.values()]

    def count(self, boot: str) -> int:
        """Return how many requests of a peer are here."""
        return sum(guest.boot == boot for guest in self._guests.values())

    def give_away(self, reason: str, instance: str = "") -> int:
        """Hand requests of peers back, to be continued elsewhere; return how many.

        Those at one instance, or all of them.
        """
        guests = [g for g in self.requests() if instance in ("", g.instance)]
        for guest in guests:
            self._forget(guest)
            self._abort(guest)
        for boot in dict.fromkeys(guest.boot for guest in guests):
            losses = [Loss(g.request_id, g.attempt) for g in guests if g.boot == boot]
            self._links.send(boot, None, Lost(tuple(losses), reason, planned=True))
        return len(guests)

    # What peers say.

    def on_submit(self, boot: str, message: Submit) -> None:
        """Queue a peer's request at its instance, or decline it."""
        request = message.request
        self.users.used(boot, self._clock.now())
        try:
            hosted = self._admit(message)
            self._make_way(boot, request)
        except RequestError as error:
            self._decline(boot, request.id, request.attempt, error)
            return
        guest = Guest(request.id, request.attempt, boot, message.instance)
        self._guests[request.id] = guest  # before: it may be answered before `submit` returns
        try:
            hosted.port.submit(request)
        except RequestError as error:
            self._forget(guest)
            self._decline(boot, request.id, request.attempt, error)

    def on_abort(self, boot: str, message: Abort) -> None:
        """Stop a request if it is this peer's, and this attempt of it."""
        guest = self._guests.get(message.request_id)
        if guest is not None and (guest.boot, guest.attempt) == (boot, message.attempt):
            self._forget(guest)
            self._abort(guest)

    def link_lost(self, boot: str) -> None:
        """Stop all requests of a peer: nobody would get their tokens."""
        self.users.forget(boot)
        for guest in [g for g in self._guests.values() if g.boot == boot]:
            self._forget(guest)
            self._abort(guest)

    # What schedulers say.

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        """Send what one step produced to whom it belongs."""
        if not self._guests:
            self._router.on_tokens(events)
            return
        plain: list[PlainToken] = []
        if isinstance(events, StepTokens):
            plain, events = self._send_plain(events.plain), events.events
        local = self._send_events(events)
        if plain:
            self._router.on_tokens(StepTokens(plain, local))
        elif local:
            self._router.on_tokens(local)

    def _send_plain(self, tokens: Sequence[PlainToken]) -> list[PlainToken]:
        """Send peers' tokens to them and return those of this node. This runs for every token."""
        find, local = self._guests.get, list[PlainToken]()
        away: dict[str, list[PlainToken]] = {}
        for token in tokens:
            guest = find(token[0])
            if guest is None:
                local.append(token)
            elif guest.attempt == token[1]:
                theirs = away.get(guest.boot)
                if theirs is None:
                    theirs = away[guest.boot] = []
                theirs.append(token)
        for boot, theirs in away.items():
            self._links.send(boot, None, PlainTokens(theirs))
        return local

    def _send_events(self, events: Sequence[TokenEvent]) -> list[TokenEvent]:
        """Send peers' events to them and return those of this node."""
        guests, local = self._guests, list[TokenEvent]()
        away: dict[str, list[TokenEvent]] = {}
        for event in events:
            guest = guests.get(event.request_id)
            if guest is None:
                local.append(event)
            elif guest.attempt == event.attempt:
                away.setdefault(guest.boot, []).append(event)
                if event.finish is not None:
                    del guests[event.request_id]
        for boot, theirs in away.items():
            self._links.send(boot, None, Tokens(theirs))
        return local

    def on_lost(self, losses: Sequence[Loss], reason: str, *, planned: bool = False) -> None:
        """Give requests that ended without an answer back to whom they belong."""
        local: list[Loss] = []
        away: dict[str, list[Loss]] = {}
        for loss in losses:
            guest = self._guests.get(loss.request_id)
            if guest is None:
                local.append(loss)
            elif guest.attempt == loss.attempt:
                away.setdefault(guest.boot, []).append(loss)
                self._forget(guest)
        for boot, theirs in away.items():
            self._links.send(boot, None, Lost(tuple(theirs), reason[:MAX_TEXT], planned))
        if local:
            self._router.on_lost(local, reason, planned=planned)

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        """Give a request that its instance does not want back to whom it belongs."""
        guest = self._guests.get(request_id)
        if guest is None:
            self._router.on_declined(request_id, attempt, error)
        elif guest.attempt == attempt:
            self._forget(guest)
            self._decline(guest.boot, request_id, attempt, error)

    def _admit(self, message: Submit) -> _Hosted:
        """Return the instance a request is for; raises RequestError where it cannot be taken."""
        if self.draining:
            raise Unavailable("the node is draining")
        hosted = self._hosted.get(message.instance)
        if hosted is None:
            raise Outdated(f"instance {message.instance} is not here")
        if hosted.claim != message.claim:
            raise Outdated(f"instance {message.instance} is at claim {hosted.claim} of its device")
        digest = message.request.digest
        if digest and hosted.digest and digest != hosted.digest:
            raise Outdated(f"instance {message.instance} serves definition {hosted.digest:.12}")
        return hosted

    def _make_way(self, boot: str, request: GenerationRequest) -> None:
        """End a former attempt of a request; raises RequestError where this one is not newer."""
        former = self._guests.get(request.id)
        if former is None:
            return
        if former.boot != boot:
            raise InvalidRequest(f"request {request.id} is already being answered")
        if former.attempt >= request.attempt:
            raise Outdated(f"attempt {former.attempt} of request {request.id} is here")
        self._forget(former)
        self._abort(former)

    def _decline(self, boot: str, request_id: str, attempt: int, error: RequestError) -> None:
        log.info("request_declined id=%s peer=%s code=%s", request_id, boot, error.code)
        text = error.message[:MAX_TEXT]
        declined = Declined(request_id, attempt, error.code, text, error.param, error.retry_after_s)
        self._links.send(boot, None, declined)

    def _forget(self, guest: Guest) -> None:
        if self._guests.get(guest.request_id) is guest:
            del self._guests[guest.request_id]

    def _abort(self, guest: Guest) -> None:
        hosted = self._hosted.get(guest.instance)
        if hosted is not None:
            hosted.port.abort(guest.request_id, guest.attempt)
