"""The end of a pairing that gives running sequences away: draining, evening out.

A sequence's KV is copied while it decodes on. When the other end has been sent all but little, it
stops, the tokens that are being sampled are awaited, the rest is sent, and its ingress is told to
submit it there. The pause is that, a way to the ingress and one to the other end.
"""

from __future__ import annotations

from dataclasses import replace

from blitzgw.core.live import Move, Moved, NoRoom, Room, Withdraw
from blitzgw.core.parcels import ParcelsSent
from blitzgw.core.peer import Loss
from blitzgw.core.step import Send
from blitzgw.scheduler.events import Lose, MoveOut
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.passages import Departure, LeavingSide, Stage, left, may_leave
from blitzgw.scheduler.live.records import Course
from blitzgw.scheduler.sequence import Phase, Sequence

UNDER_WAY = 4
"""Sequences that are copied at a time: enough to fill a road while some wait for an answer, few
enough for the first ones to be over soon."""

LAST_TOKENS = 32
"""With more than this computed since the last copy another one is made before a sequence stops."""

MAX_ROUNDS = 4
"""Copies of what has been computed meanwhile: each is shorter than the one before, unless the road
is slower than the decoding; then stopping is all that helps."""

ANSWER_S = 10.0
"""For an answer, or for the news that everything has arrived: a way there and back, and what waits
on the road. What is not answered stays, and holds up others no longer."""


class Departing:
    """Decides for instances that give sequences away."""

    def __init__(self, books: LiveBooks) -> None:
        self._books = books
        self.sides: dict[str, LeavingSide] = {}

    # What is wanted.

    def move_out(self, side: LeavingSide, order: MoveOut) -> None:
        """Begin; what waits is given away at once."""
        side.begun, side.budget = True, order.count
        if order.queued:
            self._give_queue(side, order.count)

    def _give_queue(self, side: LeavingSide, count: int) -> None:
        lane = self._lane(side)
        free = [seq for seq in lane.queue.in_order() if seq.role is None][:count]
        for seq in free:
            lane.queue.remove(seq)
            self._books.forget(seq)
        self._lose(side, free)

    def pump(self, now: float) -> None:
        """Go on with what may go on; end the pairings that have done what they were for."""
        for side in list(self.sides.values()):
            for departure in list(side.departures.values()):
                stopped = departure.stage is Stage.STOPPED
                if stopped and not departure.seq.samples_in_flight:
                    self._depart(departure, now)
            if side.begun:
                self._choose(side, now)
            if side.begun and not side.departures and not self._may_come(side):
                del self.sides[side.id]
                self._books.end(side.id, "all that could be has been moved")

    def _choose(self, side: LeavingSide, now: float) -> None:
        """Ask for those that will last longest, a few at a time."""
        lane = self._lane(side)
        over = (Stage.LAST, Stage.GONE)
        busy = sum(departure.stage not in over for departure in side.departures.values())
        while side.budget > 0 and busy < UNDER_WAY:
            free = [seq for seq in lane.decoding.values() if may_leave(side, seq)]
            if not free:
                return
            seq = max(free, key=left)
            side.budget -= 1
            busy += 1
            departure = Departure(seq, side.id, 0, side=side, until_s=now + ANSWER_S)
            seq.role = side.departures[seq.id] = departure
            request = replace(
                seq.request, tokens=tuple(seq.tokens), attempt=seq.attempt, priority=seq.priority
            )
            self._books.say(Move(side.id, request))

    def _may_come(self, side: LeavingSide) -> bool:
        """Tell whether there are, or will soon be, others to choose."""
        lane = self._lane(side)
        prefills = bool(lane.prefilling) or any(not c.done for c in lane.courses.values())
        return side.budget > 0 and prefills

    # What the other end says.

    def room(self, room: Room) -> None:
        """Begin to copy."""
        departure = self._departure(room)
        if departure is None or departure.stage is not Stage.ASKED:
            return
        departure.ticket, departure.room = room.ticket, room.tokens
        departure.stage = Stage.COPYING
        if not self._copy(departure):
            self._stay(departure)

    def refused(self, refusal: NoRoom) -> None:
        """Let a sequence stay that the other end has no memory for."""
        departure = self._departure(refusal)
        if departure is not None and departure.stage is Stage.ASKED:
            self._stay(departure, say=False)

    def withdrawn(self, withdraw: Withdraw) -> None:
        """Note that the other end has all of a sequence, or does not want it any more."""
        departure = self._departure(withdraw)
        if departure is None:
            return
        departure.taken = True
        if departure.stage is Stage.GONE:
            self._forget(departure)
        elif departure.stage is not Stage.LAST:
            self._stay(departure, say=False)

    # Copying.

    def _copy(self, departure: Departure) -> bool:
        """Send what has been computed, behind the steps that are posted; False: no room for it."""
        stop = departure.seq.scheduled
        if stop > departure.room:
            return False
        self._send(departure, stop)
        return True

    def _send(self, departure: Departure, stop: int) -> None:
        lane = self._lane(departure.side)
        number, start = departure.seq.number, departure.sent
        lane.sends.append(Send(departure.edge, departure.ticket, number, lane.span, start, stop))
        departure.sent = stop

    def sent(self, side: LeavingSide, sent: ParcelsSent, now: float) -> None:
        """Stop a sequence of which little has not been sent, or free what has gone."""
        found = [d for d in side.departures.values() if d.ticket == sent.ticket]
        if not found:
            return
        departure = found[0]
        if departure.stage is Stage.LAST:
            if sent.reason:
                self._books.say(_withdraw(departure))
            self._free(departure, now)
        elif sent.reason:
            self._stay(departure)
        elif departure.stage is Stage.COPYING:
            self._go_on(departure)

    def _go_on(self, departure: Departure) -> None:
        seq = departure.seq
        departure.rounds += 1
        if seq.scheduled - departure.sent > LAST_TOKENS and departure.rounds < MAX_ROUNDS:
            if not self._copy(departure):
                self._stay(departure)
            return
        departure.stage = Stage.STOPPED
        lane = self._lane(departure.side)
        del lane.decoding[seq.number]
        lane.courses[seq.number] = Course(
            seq,
            seq.number,
            layer=lane.instance.n_layers,
            ready=False,
            introduced=True,
            done=True,
            passage=departure,
        )

    def _depart(self, departure: Departure, now: float) -> None:
        """Send the rest of a sequence whose tokens are all known, and give it away."""
        seq, side = departure.seq, departure.side
        stop = seq.scheduled
        if stop > departure.room:
            self._stay(departure)
            return
        lane = self._lane(side)
        del lane.courses[seq.number], self._books.requests[seq.id]
        lane.sending[seq.number] = seq
        seq.move(Phase.SENDING)
        departure.stage = Stage.LAST
        self._books.say(Moved(side.id, seq.id, seq.attempt, stop))
        self._lose(side, [seq])
        if stop > departure.sent:
            self._send(departure, stop)
        else:
            self._free(departure, now)

    # Ends.

    def let_go(self, departure: Departure) -> None:
        """Note that a sequence that was to leave has ended, or lost its memory, or is lost."""
        self._stay(departure)

    def failed(self, departure: Departure) -> bool:
        """Note that a worker has lost a sequence; tell whether its ingress looks elsewhere."""
        if departure.stage is not Stage.LAST:
            self._stay(departure)
            return False
        self._books.say(_withdraw(departure))
        self._free(departure, 0.0)
        return True

    def closed(self, side: LeavingSide) -> None:
        """Let everything stay that can: the other end is gone."""
        self.sides.pop(side.id, None)
        for departure in list(side.departures.values()):
            if departure.stage is Stage.LAST:
                self._books.drop(side.id, departure.ticket)
                self._free(departure, 0.0)
            elif departure.stage is not Stage.GONE:
                self._stay(departure, say=False)

    def removed(self, instance: str) -> None:
        """Send nothing more from an instance that is going."""
        for side in [side for side in self.sides.values() if side.here == instance]:
            self.closed(side)
            self._books.end(side.id, "the instance was removed")

    def ticked(self, now: float) -> None:
        """Wait no longer for what should have come."""
        for side in self.sides.values():
            for departure in list(side.departures.values()):
                if now < departure.until_s:
                    continue
                if departure.stage is Stage.ASKED:
                    self._stay(departure)
                elif departure.stage is Stage.GONE:
                    self._forget(departure)

    def leaving(self, instance: str) -> int:
        """Return how many sequences of an instance have been given away and may not be there."""
        return sum(
            departure.stage is Stage.GONE
            for side in self.sides.values()
            if side.here == instance
            for departure in side.departures.values()
        )

    def _stay(self, departure: Departure, *, say: bool = True) -> None:
        """Have a sequence go on here, for good; nothing more of it is sent.

        It is not asked for again by this pairing: an answer could be to what was asked before.
        """
        seq, side = departure.seq, departure.side
        if side.departures.pop(seq.id, None) is None:
            return
        side.stay.add(seq.id)
        side.budget += 1
        seq.role = None
        lane = self._lane(side)
        if lane.courses.pop(seq.number, None) is not None:
            lane.decoding[seq.number] = seq
        if departure.ticket:
            self._books.drop(side.id, departure.ticket)
        if say:
            self._books.say(_withdraw(departure))

    def _free(self, departure: Departure, now: float) -> None:
        """Give the memory of a sequence away that has gone; its road stays until it is there."""
        seq = departure.seq
        self._lane(departure.side).take_back(seq)
        seq.role = None
        seq.move(Phase.ENDED)
        departure.stage, departure.until_s = Stage.GONE, now + ANSWER_S
        if departure.taken:
            self._forget(departure)

    def _forget(self, departure: Departure) -> None:
        departure.side.departures.pop(departure.seq.id, None)

    def _lose(self, side: LeavingSide, sequences: list[Sequence]) -> None:
        losses = tuple(Loss(seq.id, seq.attempt, side.there) for seq in sequences)
        if losses:
            self._books.told.append(Lose(losses, f"moved to {side.there}", planned=True))

    def _departure(self, said: Room | NoRoom | Withdraw) -> Departure | None:
        """Return what a message is about, unless that is over."""
        side = self.sides.get(said.pairing)
        departure = None if side is None else side.departures.get(said.request_id)
        if departure is None or departure.seq.attempt != said.attempt:
            return None
        return departure

    def _lane(self, side: LeavingSide) -> Lane:
        return self._books.planner.lanes[side.here]


def _withdraw(departure: Departure) -> Withdraw:
    return Withdraw(departure.side.id, departure.seq.id, departure.seq.attempt)
