"""The home: it hears from its helpers, and goes on from the layer that a request has reached."""

from __future__ import annotations

from blitzgw.core.live import Finished, Handoff, Keep, Nothing, Offer, Pull, Withdraw
from blitzgw.core.parcels import Parcel
from blitzgw.core.peer import Loss
from blitzgw.core.request import Stage
from blitzgw.core.span import Span
from blitzgw.scheduler.events import Lose
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.lending import Lending
from blitzgw.scheduler.live.records import HIDDEN, HomeSide, Loan, LoanState
from blitzgw.scheduler.sequence import Phase, Sequence

SILENT_S = 30.0
"""Nothing is heard of a helper for so long that has to offer what it is lent, or to say that it
keeps it: it hangs. The first takes it half a pass over a few batches, seconds on the slowest
device; the second takes a message to each stage and back."""

LOST_S = 10.0
"""After so long without news of what was recalled its helper hangs, or a parcel has been lost."""


class Home:
    """Decides for the instances that have helpers."""

    def __init__(self, books: LiveBooks, lending: Lending) -> None:
        self._books = books
        self._lending = lending

    # What helpers say.

    def pulled(self, side: HomeSide, pull: Pull) -> None:
        """Note how much a helper takes."""
        if side.hangs:
            return
        side.requests, side.tokens, side.pulled = pull.requests, pull.tokens, True
        side.keeps = pull.keeps
        self._books.lane(side).hosting = True

    def offered(self, side: HomeSide, offer: Offer) -> None:
        """Note that a helper has done for a request what it will."""
        loan = _loan(side, offer)
        if loan is not None:
            loan.offered, loan.layer = True, offer.layer

    def handed(self, side: HomeSide, handoff: Handoff) -> None:
        """Go on with a request from the layer that it has reached, once its states are here."""
        loan, lane = _loan(side, handoff), self._books.lane(side)
        if loan is None or loan.state is not LoanState.RECALLED:
            return
        if not 0 <= handoff.layer <= lane.instance.n_layers:
            self.start_over(loan)
            return
        if not self._lending.is_worth(lane, loan.seq, handoff.layer):
            self._restart(loan, withdraw=handoff.layer > 0)
            return
        seq = loan.seq
        loan.state, loan.layer = LoanState.HANDED, handoff.layer
        loan.news_s = self._books.planner.now
        lane.allocator.withhold(seq.number)
        lane.split_total += 1
        course = lane.courses[seq.number]
        course.layer, course.ready = handoff.layer, loan.hidden
        end = lane.instance.n_layers
        seq.route = (
            Stage(side.there, Span(0, handoff.layer)),
            Stage(side.here, Span(handoff.layer, end)),
        )

    def nothing(self, side: HomeSide, nothing: Nothing) -> None:
        """Compute a request here that its helper has not got, or cannot send."""
        loan = _loan(side, nothing)
        if loan is not None:
            loan.seq.stays = True
            self.start_over(loan)

    def finished(self, side: HomeSide, finished: Finished) -> None:
        """Give away what the helper keeps, and of what waits every other request."""
        lane = self._books.lane(side)
        side.finished = True
        losses: list[Loss] = []
        theirs, n_layers = 0, lane.instance.n_layers
        for loan in _kept(side, finished):
            theirs += len(loan.seq.tokens) * (n_layers - loan.layer)
            losses.append(self._give_away(lane, loan.seq, side))
        for loan in _latest_first(side):
            if loan.state is not LoanState.HANDED:
                self.start_over(loan)
        losses += [self._give_away(lane, seq, side) for seq in self._lending.share(lane, theirs)]
        if losses:
            reason = f"instance {side.there} is complete"
            self._books.told.append(Lose(tuple(losses), reason, planned=True))
        lane.dealt_total += len(losses)
        self.watch(lane)
        self.end_if_done(side)

    def keeps(self, side: HomeSide, said: Keep) -> None:
        """Give away what a helper serves by itself from now on."""
        lane = self._books.lane(side)
        losses = [self._give_away(lane, loan.seq, side) for loan in _kept(side, said)]
        if losses:
            reason = f"instance {side.there} serves it with others"
            self._books.told.append(Lose(tuple(losses), reason, planned=True))
        lane.dealt_total += len(losses)
        self.end_if_done(side)

    def _give_away(self, lane: Lane, seq: Sequence, side: HomeSide) -> Loss:
        loss = Loss(seq.id, seq.attempt, side.there)
        if isinstance(seq.role, Loan):
            self._books.close_loan(seq.role)
        if seq.phase is Phase.RUNNING:
            lane.take_back(seq)
        elif seq.phase is Phase.WAITING:
            lane.queue.remove(seq)
        self._books.forget(seq)
        return loss

    # Parcels.

    def arrived(self, side: HomeSide, parcel: Parcel) -> None:
        """Note what has come; a request goes on when its hidden states have."""
        loan = side.tickets.get(parcel.ticket)
        if loan is None:
            return
        loan.fresh, loan.news_s = True, self._books.planner.now
        for layer in (HIDDEN,) if parcel.is_hidden else parcel.span.layers():
            loan.come[layer] += parcel.stop - parcel.start
        if parcel.is_hidden and loan.hidden and loan.state is LoanState.HANDED:
            self._books.lane(side).courses[loan.seq.number].ready = True

    def taken_in(self, loan: Loan, number: int, computed: int) -> None:
        """A posted step has imported parcels; with the last ones the request is here."""
        loan.importing -= 1
        if loan.over:
            self._books.drop_parcels(loan)
        elif computed >= 0 and loan.seq.number == number:
            allocator = self._books.lane(loan.side).allocator
            allocator.withhold(number, withheld=False)
            allocator.commit(number, loan.seq.tokens, computed)
            self._books.close_loan(loan, drop=False)
            loan.seq.stays = True  # lent again, it could not be told from what is left of this
        self.end_if_done(loan.side)

    # Ends.

    @property
    def awaits_news(self) -> bool:
        """Whether a helper has to say something, or to send what was recalled."""
        return any(
            side.owes or any(loan.is_awaited for loan in side.loans.values())
            for side in self._books.homes.values()
        )

    def ticked(self, now: float) -> None:
        """Compute here what nothing is heard of for too long, though its helper lives.

        Who does not answer is trusted with nothing else: what it is lent comes back, and no more
        goes there by this pairing.
        """
        for side in [*self._books.homes.values()]:
            overdue = [loan for loan in side.loans.values() if loan.is_overdue(now, LOST_S)]
            if overdue or side.is_silent(now, SILENT_S):
                side.hangs, side.pulled = True, False
                for loan in _latest_first(side):
                    if loan in overdue or loan.state is LoanState.LENT:
                        self._take_back(loan)
                self.watch(self._books.lane(side))

    def _take_back(self, loan: Loan) -> None:
        """Compute a request here that its helper does not give back."""
        side, seq = loan.side, loan.seq
        self._books.say(Withdraw(side.id, seq.id, seq.attempt))
        self.start_over(loan)
        seq.stays = True

    def start_over(self, loan: Loan) -> None:
        """Let a request that its helper has lost be computed here, in the memory that it has."""
        seq, lane = loan.seq, self._books.lane(loan.side)
        course = lane.courses.get(seq.number) if seq.number else None
        if loan.state is LoanState.LENT:
            self._books.close_loan(loan)
            seq.move(Phase.WAITING)
            lane.queue.push(seq)
        elif course is not None and not course.introduced:
            self._restart(loan)
        else:
            self.evicted(loan)
            self._books.planner.evict(seq)

    def _restart(self, loan: Loan, *, withdraw: bool = False) -> None:
        """Go on with a recalled request at its first layer."""
        seq, lane = loan.seq, self._books.lane(loan.side)
        lane.allocator.withhold(seq.number, withheld=False)
        self._books.close_loan(loan, withdraw=withdraw)
        course = lane.courses[seq.number]
        course.loan, course.layer, course.ready = None, 0, True
        seq.route = ()
        seq.stays = seq.stays or withdraw

    def evicted(self, loan: Loan, *, withdraw: bool = False) -> None:
        """Forget what has come of a request: its memory is taken from it."""
        self._books.close_loan(loan, withdraw=withdraw)
        loan.seq.route = ()
        loan.seq.stays = True

    def let_go(self, loan: Loan) -> None:
        """Tell the helper that a request is over, unless all that it had is here."""
        self._books.close_loan(loan, withdraw=not loan.is_whole)
        self.end_if_done(loan.side)

    def closed(self, side: HomeSide) -> None:
        """Take back what a helper had that is gone, the earliest to the front."""
        side.finished = True
        self._books.homes.pop(side.id, None)
        for loan in _latest_first(side):
            if not loan.is_whole:
                self.start_over(loan)
        self.watch(self._books.lane(side))

    def end_if_done(self, side: HomeSide) -> None:
        """End a pairing whose helper is complete and has sent all that it owed."""
        if side.finished and not side.loans and side.id in self._books.homes:
            del self._books.homes[side.id]
            self._books.end(side.id, "finished")
            self.watch(self._books.lane(side))

    def watch(self, lane: Lane) -> None:
        """Note whether an instance (still) has helpers that take from its queue."""
        lane.hosting = any(side.pulled and not side.finished for side in self._books.homes_of(lane))


def _loan(side: HomeSide, said: Handoff | Nothing | Offer) -> Loan | None:
    """Return what a message is about, unless that is over."""
    loan = side.loans.get(said.request_id)
    return loan if loan is not None and loan.seq.attempt == said.attempt else None


def _kept(side: HomeSide, said: Finished | Keep) -> list[Loan]:
    """Return what a helper keeps; it will hear itself of what has been withdrawn meanwhile."""
    loans = [(kept, side.loans.get(kept.request_id)) for kept in said.kept]
    return [
        loan
        for kept, loan in loans
        if loan is not None
        and loan.seq.attempt == kept.attempt
        and loan.state is not LoanState.HANDED
    ]


def _latest_first(side: HomeSide) -> list[Loan]:
    return sorted(side.loans.values(), key=lambda loan: loan.seq.turn, reverse=True)
