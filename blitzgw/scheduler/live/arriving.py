"""The end of a pairing that takes running sequences in.

A sequence that comes has memory from the moment it may come, and its KV is taken in as it arrives.
It is computed from when its ingress has submitted it and all of its KV is there, whichever is last:
only the submission has the tokens that were sampled since it was asked for.
"""

from __future__ import annotations

from array import array

from blitzgw.core.live import Move, Moved, NoRoom, Room, Withdraw
from blitzgw.core.parcels import Parcel
from blitzgw.core.request import GenerationRequest
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.passages import Arrival, TakingSide
from blitzgw.scheduler.live.records import Course
from blitzgw.scheduler.sequence import Phase, Sequence

HEADROOM_TOKENS = 16 * BLOCK_TOKENS
"""Beyond what is known of a sequence when it asks: it decodes on while its KV is on the road. At 50
tokens a second this is five seconds of copying."""

EXPECTED_S = 10.0
"""A sequence of which nothing has come for so long is forgotten, and so is one that nobody submits:
as long as others are kept (kept.py)."""

PARKED_S = 2.0
"""A sequence that has been submitted waits no longer for the rest of its KV: that is a few tokens
and has been sent before; when it is late the road is gone, and computing is all that helps."""


class Arriving:
    """Decides for instances that take sequences in. It knows those that come by their ids."""

    def __init__(self, books: LiveBooks) -> None:
        self._books = books
        self.sides: dict[str, TakingSide] = {}
        self.arrivals: dict[str, Arrival] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.arrivals

    def count(self, instance: str) -> int:
        """Return how many sequences come to an instance."""
        return sum(1 for arrival in self.arrivals.values() if arrival.seq.instance == instance)

    # What the other end says.

    def asked(self, side: TakingSide, move: Move, seq: Sequence | None, now: float) -> None:
        """Make room for a sequence; None for one that cannot come."""
        request = move.request
        reserved = None if seq is None else self._reserve(self._lane(side), seq)
        if seq is None or reserved is None:
            refusal = NoRoom(side.id, request.id, request.attempt, "there is no room for it now")
            self._books.say(refusal)
            return
        lane, (number, blocks) = self._lane(side), reserved
        ticket = self._books.next_ticket()
        arrival = Arrival(
            seq,
            side.id,
            ticket,
            side=side,
            asked=request,
            reach=[0] * lane.instance.n_layers,
            blocks=blocks,
            until_s=now + EXPECTED_S,
        )
        seq.role = self.arrivals[seq.id] = side.tickets[ticket] = arrival
        seq.admitted = True
        seq.move(Phase.RUNNING)
        seq.number, seq.new_blocks = number, blocks
        seq.capacity = len(blocks) * BLOCK_TOKENS
        self._books.requests[seq.id] = seq
        lane.allocator.withhold(number)
        lane.courses[number] = Course(
            seq, number, layer=lane.instance.n_layers, ready=False, done=True, passage=arrival
        )
        self._books.say(Room(side.id, seq.id, seq.attempt, ticket, seq.capacity - 1))

    def _reserve(self, lane: Lane, seq: Sequence) -> tuple[int, tuple[int, ...]] | None:
        """Give a sequence memory for what is known of it, and then some."""
        if lane.n_running >= lane.max_running:
            return None
        # one more than positions may come, so that the token after them has room as well
        n_tokens = min(len(seq.tokens) + HEADROOM_TOKENS, seq.limit)
        return self._books.planner.reserve(lane, n_tokens, seq.account.name)

    def moved(self, side: TakingSide, moved: Moved, now: float) -> None:
        """Note how much KV there will be: the sequence is this instance's."""
        arrival = self._arrival(side, moved)
        if arrival is None or arrival.moved is not None:
            return
        if not 0 <= moved.tokens < arrival.seq.capacity:
            self.give_up(arrival)
            return
        arrival.moved = moved.tokens
        self._progress(arrival, now)

    def withdrawn(self, side: TakingSide, withdraw: Withdraw) -> None:
        """Expect nothing more of a sequence: it stays where it is, or could not be sent."""
        arrival = self._arrival(side, withdraw)
        if arrival is not None and not arrival.is_whole:
            self.give_up(arrival, say=False)

    def arrived(self, side: TakingSide, parcel: Parcel, now: float) -> None:
        """Note what has come; it is taken in with the next step."""
        arrival = side.tickets.get(parcel.ticket)
        if arrival is None:
            return
        arrival.fresh = True
        for layer in parcel.span.layers():
            if layer < len(arrival.reach) and parcel.start <= arrival.reach[layer]:
                arrival.reach[layer] = max(arrival.reach[layer], parcel.stop)
        self._progress(arrival, now)

    def taken_in(self, arrival: Arrival, *, failed: bool) -> None:
        """A posted step has imported what had come."""
        arrival.importing -= 1
        if arrival.over:
            self._drop_parcels(arrival)
        elif not failed:
            self._land(arrival)

    # Its ingress.

    def submitted(self, arrival: Arrival, request: GenerationRequest, now: float) -> bool:
        """Let a submission have a sequence, here or still on its way; tell whether it fits."""
        seq = arrival.seq
        if arrival.parked or not _continues(arrival, request):
            return False
        seq.request, seq.attempt, seq.priority = request, request.attempt, request.priority
        seq.tokens = array("I", request.tokens)
        arrival.parked, arrival.until_s = True, now + PARKED_S
        self._land(arrival)
        return True

    def _progress(self, arrival: Arrival, now: float) -> None:
        if not arrival.parked:
            arrival.until_s = now + EXPECTED_S
        if arrival.is_whole and not arrival.told:
            arrival.told = True
            asked = arrival.asked
            self._books.say(Withdraw(arrival.side.pairing, asked.id, asked.attempt))
        self._land(arrival)

    def _land(self, arrival: Arrival) -> None:
        """Let a sequence be computed, once it has been submitted and all of its KV is in place.

        Not while a step that takes some of it in could still fail: the next one would not notice.
        Its worker gets to know it anew, with the tokens that it has now.
        """
        seq = arrival.seq
        if not (arrival.parked and arrival.is_whole) or arrival.fresh or arrival.importing:
            return
        assert arrival.moved is not None
        lane = self._books.planner.lanes[seq.instance]
        course = lane.courses[seq.number]
        if course.introduced:
            lane.drops.append(seq.number)
            course.introduced = False
        seq.new_blocks = arrival.blocks
        seq.scheduled = min(arrival.moved, len(seq.tokens) - 1)
        arrival.landed = True
        lane.allocator.withhold(seq.number, withheld=False)
        self._forget(arrival)

    # Ends.

    def give_up(self, arrival: Arrival, *, say: bool = True) -> None:
        """Take the memory of a sequence that will not come: it is computed anew, or forgotten."""
        self._say_withdraw(arrival, say=say)
        self._books.planner.evict(arrival.seq)

    def evicted(self, arrival: Arrival) -> bool:
        """Note that a sequence has lost its memory; tell whether nobody waits for it here."""
        self._say_withdraw(arrival)
        self._forget(arrival)
        seq = arrival.seq
        if arrival.parked:
            seq.admitted = arrival.side.is_back
            return False
        self._books.forget(seq)
        return True

    def let_go(self, arrival: Arrival) -> None:
        """Note that a sequence ends before it is here: its client is gone."""
        self._say_withdraw(arrival)
        self._forget(arrival)

    def failed(self, arrival: Arrival) -> bool:
        """Note that a worker has lost a sequence; tell whether no ingress is to be told."""
        if arrival.parked:
            self.let_go(arrival)
            return False
        self.give_up(arrival)
        return True

    def closed(self, side: TakingSide) -> None:
        """Expect nothing more by a road: only what is here goes on."""
        self.sides.pop(side.id, None)
        for arrival in list(side.tickets.values()):
            if not arrival.is_whole:
                self.give_up(arrival, say=False)

    def removed(self, instance: str) -> None:
        """Forget what comes to an instance that is going; who has been submitted is lost there."""
        for arrival in [one for one in self.arrivals.values() if one.seq.instance == instance]:
            if not arrival.parked:
                self.give_up(arrival, say=False)
            else:
                self._forget(arrival)
        for side in [side for side in self.sides.values() if side.here == instance]:
            del self.sides[side.id]
            self._books.end(side.id, "the instance was removed")

    def ticked(self, now: float) -> None:
        """Wait no longer for what is late."""
        for arrival in list(self.arrivals.values()):
            if now >= arrival.until_s:
                self.give_up(arrival)

    def _say_withdraw(self, arrival: Arrival, *, say: bool = True) -> None:
        if say and not arrival.told and arrival.edge in self.sides:
            asked = arrival.asked
            self._books.say(Withdraw(arrival.side.pairing, asked.id, asked.attempt))
        arrival.told = True

    def _forget(self, arrival: Arrival) -> None:
        """Take a sequence out of these books; what still comes of it is dropped."""
        if self.arrivals.pop(arrival.asked.id, None) is None:
            return
        arrival.side.tickets.pop(arrival.ticket, None)
        arrival.seq.role = None
        arrival.over = True
        if not arrival.landed:
            self._drop_parcels(arrival)

    def _drop_parcels(self, arrival: Arrival) -> None:
        """Drop what is there or still comes; not before posted steps have taken in what is."""
        if not arrival.importing:
            self._books.drop(arrival.edge, arrival.ticket)

    def _arrival(self, side: TakingSide, said: Moved | Withdraw) -> Arrival | None:
        arrival = self.arrivals.get(said.request_id)
        if arrival is None or arrival.side is not side or arrival.asked.attempt != said.attempt:
            return None
        return arrival

    def _lane(self, side: TakingSide) -> Lane:
        return self._books.planner.lanes[side.here]


def _continues(arrival: Arrival, request: GenerationRequest) -> bool:
    """Tell whether a submission is of the sequence that comes, and its memory will do."""
    asked = arrival.asked
    n_known, n_asked = len(request.tokens), len(asked.tokens)
    most = arrival.seq.capacity if arrival.moved is None else arrival.moved + 1
    same = (request.prompt_length, request.sampling, request.choice, request.tenant) == (
        asked.prompt_length,
        asked.sampling,
        asked.choice,
        asked.tenant,
    )
    fits = n_asked <= n_known <= most and n_known < arrival.seq.limit
    return same and fits and request.tokens[:n_asked] == asked.tokens
