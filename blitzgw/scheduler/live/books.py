"""What the parts of the live scheduler share."""

from __future__ import annotations

from blitzgw.core.live import Said, Withdraw
from blitzgw.core.parcels import DropParcels
from blitzgw.scheduler.events import Effect, EndPairing, Say
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.records import GuestSide, HomeSide, Loan
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase, Sequence


class LiveBooks:
    """Pairings by id, and what is to be told to their other ends."""

    def __init__(self, planner: Planner, requests: dict[str, Sequence]) -> None:
        self.planner = planner
        self.requests = requests
        self.homes: dict[str, HomeSide] = {}
        self.guests: dict[str, GuestSide] = {}
        self.told: list[Effect] = []
        self._last_ticket = 0

    def say(self, message: Said) -> None:
        """Tell the other end of a pairing."""
        self.told.append(Say(message))

    def end(self, pairing: str, reason: str) -> None:
        """End a pairing; it is in no book any more."""
        self.told.append(EndPairing(pairing, reason))

    def drop(self, pairing: str, *tickets: int) -> None:
        """Have parcels forgotten."""
        if tickets:
            self.told.append(DropParcels(pairing, tickets))

    def drain(self) -> list[Effect]:
        """Return what is to be told, in order."""
        told, self.told = self.told, []
        return told

    def next_ticket(self) -> int:
        """Return a ticket that nobody has had."""
        self._last_ticket += 1
        return self._last_ticket

    def lane(self, side: HomeSide | GuestSide) -> Lane:
        """Return the instance of this end."""
        return self.planner.lanes[side.here]

    def homes_of(self, lane: Lane) -> list[HomeSide]:
        """Return the pairings in which an instance is helped."""
        name = lane.instance.id
        return [side for side in self.homes.values() if side.here == name]

    def guests_of(self, lane: Lane) -> list[GuestSide]:
        """Return the pairings in which an instance helps, or has helped."""
        name = lane.instance.id
        return [side for side in self.guests.values() if side.here == name]

    def forget(self, seq: Sequence) -> None:
        """End a sequence that is in no queue and has no memory; nobody is told."""
        seq.role = None
        seq.move(Phase.ENDED)
        self.requests.pop(seq.id, None)

    def close_loan(self, loan: Loan, *, withdraw: bool = False, drop: bool = True) -> None:
        """Take a loan out of the books: its request is the home's alone again, or over.

        What still comes of it is dropped; not before posted steps have taken in what they were
        told to, since they would fail without it and take others with them.
        """
        side, seq = loan.side, loan.seq
        if side.loans.pop(seq.id, None) is None:
            return
        del side.tickets[loan.ticket]
        self.lane(side).lent_tokens -= loan.lent_tokens
        loan.lent_tokens = 0
        seq.role = None
        loan.over = True
        if withdraw:
            self.say(Withdraw(side.id, seq.id, seq.attempt))
        if drop:
            self.drop_parcels(loan)

    def drop_parcels(self, loan: Loan) -> None:
        """Drop what is there or still comes of a loan that is over, if that can be now."""
        if loan.is_sent and not loan.importing:
            self.drop(loan.side.id, loan.ticket)
