"""Finds places for requests, and holds those that have none.

The part of the router that places; router.py tells it what has happened. Synchronous, as that is.
"""

from __future__ import annotations

from blitzgw.core.clock import Clock
from blitzgw.core.request import GenerationRequest
from blitzgw.errors import Overloaded, RequestError, Unavailable
from blitzgw.router.choice import Dice
from blitzgw.router.fleet import Fleet, Seat
from blitzgw.router.placing import Placing
from blitzgw.router.refusal import bounded, unavailable
from blitzgw.router.statistics import Counts
from blitzgw.router.tokenlog import Entry, Round
from blitzgw.router.waiting import WaitingRoom

MAX_DECLINES = 8
"""So many instances are asked one after the other, each a way there and back: if those that look
emptiest are all full, then the model is."""


class Dispatcher:
    """The requests under way, by id; the instances; who waits; and how one comes to the other.

    At most `max_held` new requests for each model are held.
    """

    def __init__(self, clock: Clock, dice: Dice, max_held: int) -> None:
        self._clock = clock
        self._max_held = max_held
        self._given_up: dict[str, str] = {}
        self._releasing: set[str] = set()
        self.log: dict[str, Entry] = {}
        self.fleet = Fleet()
        self.placing = Placing(dice)
        self.waiting = WaitingRoom()
        self.counts = Counts()

    def admit(self, entry: Entry) -> None:
        """Place a new request, or hold it; raises RequestError where it is refused.

        Let who waits go before it: `release`.
        """
        self.log[entry.request.id] = entry
        try:
            if not self._place(entry, patient=bool(self.waiting.count(entry.request.model))):
                self._hold(entry)
        except BaseException:
            self.forget(entry.request.id)
            raise

    def _place(self, entry: Entry, *, patient: bool = False) -> bool:
        """Submit to the best instance that takes it; False where none does in this round.

        True, too, where it has come to an end meanwhile. Who is `patient` leaves those alone that
        have declined a moment ago. Raises RequestError where the request is at fault.
        """
        request = entry.resubmission()
        now = self._clock.now()
        for willing in (True, False):
            if patient and not willing:
                break
            for seat in self.placing.options(entry, self._seats(entry, now, willing=willing)):
                if entry.round.declines >= MAX_DECLINES:
                    return False
                if self._submit(entry, request, seat):
                    return True
        return False

    def _seats(self, entry: Entry, now: float, *, willing: bool) -> list[Seat]:
        """Return who has not refused in this round; the `willing`, or those to be asked last."""
        tried, avoided = entry.round.tried, entry.round.avoided
        return [
            seat
            for seat in self.fleet.of(entry.request.model)
            if (seat.cooling_until <= now and seat.port.instance != avoided) == willing
            and seat.port.instance not in tried
        ]

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

    def place_again(self, entry: Entry) -> None:
        """Find another place for a request that an instance has given back."""
        entry.attempt += 1
        entry.instance = ""
        try:
            placed = self._place(entry, patient=entry.held_since is not None)
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
            raise bounded(refusal)
        self._wait(entry)

    def _set_aside(self, entry: Entry) -> None:
        """Hold a request that has been somewhere, unless it is new and everybody has refused it."""
        model, refusal = entry.request.model, entry.round.refusal
        if model in self._given_up:
            self.fail(entry, unavailable(self._given_up[model]))
        elif entry.admitted or refusal is None:
            self._wait(entry)
        else:
            self.counts.refused += 1
            self.fail(entry, bounded(refusal))

    def _wait(self, entry: Entry) -> None:
        """Hold a request. That it has been declined meanwhile does not renew its patience."""
        entry.admitted = True
        if entry.held_since is None:
            entry.held_since = self._clock.now()
        self.waiting.add(entry)

    def release(self, model: str) -> None:
        """Place who waits for a model, as far as there is room."""
        if model in self._releasing or not self.waiting.count(model):
            return
        self._releasing.add(model)
        try:
            for entry in self.waiting.of(model):
                # a failure before it may have ended this one, too
                if entry in self.waiting and not self._place_held(entry):
                    break  # `tick` bounds how long
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

    def expire(self, limit: float) -> None:
        """Answer who has waited since `limit` or longer."""
        for entry in self.waiting.overdue(limit):
            if entry in self.waiting:
                self.fail(entry, unavailable("no instance became ready in time"))

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
