"""Finds places for requests, and holds those that have none.

The part of the router that places; router.py tells it what has happened. Synchronous, as that is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest

from blitzgw.core.clock import Clock
from blitzgw.core.request import GenerationRequest
from blitzgw.errors import Overloaded, RequestError, Unavailable
from blitzgw.router.arrivals import Arrivals
from blitzgw.router.choice import Dice, rendezvous
from blitzgw.router.fleet import Fleet, Seat, same_definition
from blitzgw.router.fullness import Fullness
from blitzgw.router.placing import Placing
from blitzgw.router.refusal import bounded, redefined, sooner, unavailable
from blitzgw.router.statistics import Counts
from blitzgw.router.tokenlog import Entry, Round
from blitzgw.router.waiting import WaitingRoom

log = logging.getLogger(__name__)

FEW = 64
"""Instances of a model of which each request looks at all: a few microseconds each."""

SOME = 32
"""Of more than that, so many are looked at, anywhere among them, with those of this node and those
that have something of the prompt. The best of so many is as good as the best of all, near enough: a
twentieth of them idle is missed by one request in five, which then still has the best of 32."""

PLACES = 4
"""Of a session, where there are very many instances: if the first is busy, the next ones."""

MAX_DECLINES = 8
"""So many instances are asked one after the other, each a way there and back: if those that look
emptiest are all full, then the model is."""


class Dispatcher:
    """The requests under way, by id; the instances; who waits; and how one comes to the other.

    At most `max_held` new requests for each model are held.
    """

    def __init__(self, clock: Clock, dice: Dice, max_held: int) -> None:
        self._clock, self._dice = clock, dice
        self._max_held = max_held
        self._given_up: dict[str, str] = {}
        self._definitions: dict[str, str] = {}
        self._releasing: set[str] = set()
        self.log: dict[str, Entry] = {}
        self.fleet = Fleet()
        self.placing = Placing(dice)
        self.waiting = WaitingRoom()
        self.counts = Counts()
        self.arrivals = Arrivals()
        self.fullness = Fullness()

        self.eta_s: Callable[[str], float | None] = lambda _: None
        """Returns in how many seconds a model's next instance is expected; None: not known."""
        self.stirred: Callable[[str], None] = lambda _: None
        """Is told the model of each request that comes, and of each that is held; must be quick."""

    def admit(self, entry: Entry) -> None:
        """Place a new request, or hold it; raises RequestError where it is refused.

        Let who waits go before it: `release`.
        """
        self.arrivals.came(entry.request)
        self.stirred(entry.request.model)
        if self.is_outdated(entry):
            self.counts.refused += 1
            raise redefined(entry.request.model, begun=False)
        self.log[entry.request.id] = entry
        try:
            if not self._place(entry, patient=bool(self.waiting.count(entry.request.model))):
                self._hold(entry)
        except BaseException:
            self.forget(entry.request.id)
            raise

    def _place(self, entry: Entry, first: str = "", *, patient: bool = False) -> bool:
        """Submit to the best instance that takes it; False where none does in this round.

        True, too, where it has come to an end meanwhile. Who is `patient` leaves those alone that
        have declined a moment ago. Raises RequestError where the request is at fault.
        """
        request = entry.resubmission()
        seat = self.fleet.get(first)
        wanted = seat is not None and seat.serves(entry.request.digest)
        if wanted and seat is not None and self._submit(entry, request, seat):
            return True
        candidates = self._candidates(entry, patient=patient)
        return any(self._submit(entry, request, seat) for seat in candidates)

    def _candidates(self, entry: Entry, *, patient: bool) -> Iterator[Seat]:
        """Yield who is to be asked in this round, one after the other.

        Last those that have failed the request or declined a moment ago, and after them the
        reluctant ones, unless it is worth waiting for others. Of very many first some: who has been
        declined by the best of them looks at all, as there may be one with room.
        """
        now, failed = self._clock.now(), entry.failed
        if self.fleet.count(entry.request.model) > FEW and not entry.round.declines:
            some = self._able(self._some(entry), entry)
            willing = [s for s in some if s.cooling_until <= now and s.port.instance not in failed]
            yield from self.placing.options(entry, willing)
        seats = self._able(self.fleet.of(entry.request.model), entry)
        first = rested = [seat for seat in seats if seat.cooling_until <= now]
        last: list[Seat] = []
        if failed:
            first = [seat for seat in rested if seat.port.instance not in failed]
            last = [seat for seat in rested if seat.port.instance in failed]
        if not patient:
            last += [seat for seat in seats if seat.cooling_until > now]
        if entry.round.declines < MAX_DECLINES:
            yield from self.placing.options(entry, first)
            yield from self.placing.options(entry, last)
        if not patient or len(rested) == len(seats):
            yield from self.placing.options(entry, first, reluctant=True)
            yield from self.placing.options(entry, last, reluctant=True)

    def _some(self, entry: Entry) -> Iterable[Seat]:
        """Return some instances of a model of which there are very many."""
        model, fleet = entry.request.model, self.fleet
        found = fleet.some(model, SOME, self._dice.random())
        found += fleet.known(self.placing.likely(entry), model)
        if session := entry.request.session:  # all nodes are to agree upon its place
            found += nlargest(
                PLACES, fleet.of(model), key=lambda seat: rendezvous(session, seat.port.instance)
            )
        return {seat.serial: seat for seat in (*found, *fleet.local(model))}.values()

    def _able(self, seats: Iterable[Seat], entry: Entry) -> list[Seat]:
        """Return the seats that serve what a request is for and have not refused in this round."""
        digest, tried = entry.request.digest, entry.round.tried
        able = [s for s in seats if s.digest == digest or s.serves(digest)]
        return [s for s in able if s.port.instance not in tried] if tried else able

    def _submit(self, entry: Entry, request: GenerationRequest, seat: Seat) -> bool:
        """Hand a request over; False where it is refused. Raises what is the request's fault."""
        instance = seat.port.instance
        if self.fleet.get(instance) is not seat:
            return False  # gone since it was assessed
        entry.instance = instance
        try:
            seat.port.submit(request)
        except (Overloaded, Unavailable) as error:
            if entry.attempt != request.attempt:
                return True  # the instance went down with it, and it has found another place
            entry.instance = ""
            entry.round.refused(instance, error)
            return False
        self.counts.placed += 1
        if entry.instance:  # it may have been lost again and held meanwhile
            self.waiting.discard(entry)
        if entry.instance == instance:
            self.placing.placed(entry, seat)
        return True

    def place_again(self, entry: Entry, first: str = "") -> None:
        """Find another place for a request that an instance has given back.

        The instance `first`, if it is there, is asked before all others.
        """
        entry.attempt += 1
        entry.instance, entry.alive = "", False
        if self.is_outdated(entry):
            self.fail_outdated(entry)
            return
        try:
            placed = self._place(entry, first, patient=entry.held_since is not None)
        except RequestError as error:
            self.fail(entry, error)
            return
        if not placed:
            self._set_aside(entry)

    def _hold(self, entry: Entry) -> None:
        """Let a new request wait where nobody has refused it; raises the refusal otherwise."""
        model = entry.request.model
        refusal = entry.round.refusal
        if refusal is None and model in self._given_up:
            refusal = unavailable(self._given_up[model])
        if refusal is None and self.waiting.count(model) >= self._max_held:
            refusal = unavailable("no instance is ready, and too many wait")
        if refusal is not None:
            self.counts.refused += 1
            self.arrivals.refused(model)
            told = bounded(sooner(refusal, self.eta_s(model)))
            self.fullness.refused(entry.request, told, self._clock.now())
            raise told
        self._wait(entry)

    def _set_aside(self, entry: Entry) -> None:
        """Hold a request that has been somewhere; a new one as if it came now."""
        model = entry.request.model
        if model in self._given_up:
            self.fail(entry, unavailable(self._given_up[model]))
        elif entry.admitted:
            self._wait(entry)
        else:
            try:
                self._hold(entry)
            except RequestError as refusal:
                self.fail(entry, refusal)

    def _wait(self, entry: Entry) -> None:
        """Hold a request. That it has been declined meanwhile does not renew its patience."""
        entry.admitted = True
        if entry.held_since is None:
            entry.held_since = self._clock.now()
        self.waiting.add(entry)
        self.stirred(entry.request.model)

    def release(self, model: str) -> None:
        """Place who waits for a model, as far as there is room."""
        if model in self._releasing or not self.waiting.count(model):
            return
        self._releasing.add(model)
        full: set[tuple[str, bool]] = set()
        # by definition: each has instances of its own; and fewer score prompts
        try:
            for entry in self.waiting.of(model):
                request = entry.request
                kind = request.digest, request.sampling.scores
                # a failure before it may have ended this one, too
                if kind in full or entry not in self.waiting:
                    continue
                if not self._place_held(entry):
                    full.add(kind)  # `tick` bounds how long
        finally:
            self._releasing.discard(model)

    def _place_held(self, entry: Entry) -> bool:
        """Begin a new round for a held request; False where there is no room, and it stays held."""
        entry.round = Round()
        try:
            return self._place(entry, patient=True)
        except RequestError as error:
            self.fail(entry, error)
            return True

    def give_up(self, model: str, reason: str) -> None:
        """Answer who waits for a model, and who will ask for it, until `hope`."""
        self._given_up[model] = reason
        for entry in self.waiting.of(model):
            if entry in self.waiting:
                self.fail(entry, unavailable(reason))

    def hope(self, model: str) -> None:
        """Hold those again who ask for a model."""
        self._given_up.pop(model, None)
        self.fullness.moved(model)

    def redefine(self, model: str, digest: str) -> None:
        """Let a definition hold for a model from now on, and answer who waits for another one."""
        self.fullness.moved(model)
        if digest:
            self._definitions[model] = digest
        else:
            self._definitions.pop(model, None)
        for entry in self.waiting.of(model):
            if entry in self.waiting and self.is_outdated(entry):
                self.fail_outdated(entry)

    def is_outdated(self, entry: Entry) -> bool:
        """Tell whether the definition that a request was tokenised for holds no more."""
        request = entry.request
        return not same_definition(self._definitions.get(request.model, ""), request.digest)

    def fail_outdated(self, entry: Entry) -> None:
        """Answer a request that nobody can go on with."""
        log.info("request_outdated id=%s model=%s", entry.request.id, entry.request.model)
        self.fail(entry, redefined(entry.request.model, begun=bool(entry.tokens)))

    def expire(self, limit: float) -> None:
        """Answer who has waited since `limit` or longer."""
        for entry in self.waiting.overdue(limit):
            if entry in self.waiting:
                model = entry.request.model
                self.arrivals.refused(model)
                refusal = unavailable("no instance became ready in time")
                self.fail(entry, bounded(sooner(refusal, self.eta_s(model))))

    def fail(self, entry: Entry, error: RequestError) -> None:
        """Answer a request with an error."""
        self.forget(entry.request.id)
        entry.sink.fail(error)

    def forget(self, request_id: str) -> Entry | None:
        """Strike a request off the books and return it; None where it is not on them."""
        entry = self.log.pop(request_id, None)
        if entry is not None:
            self.waiting.discard(entry)
        return entry
