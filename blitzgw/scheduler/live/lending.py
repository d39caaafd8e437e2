"""What a home takes next, what it lends, and what it gives away when a helper is complete.

When the instance is about to run out of prefill it takes the earliest request that a helper has,
wherever that is; nobody having one, or only later ones, the head of its own queue. Who is due
before what it has begun goes first, as without helpers. What then waits is lent. A request that
begins like something in the home's KV stays, and so does one that has come back, and one with
which a helper could save nothing.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from blitzgw.core.live import Lend, LivePolicy, Recall
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.records import Course, HomeSide, Loan, LoanState
from blitzgw.scheduler.sequence import Phase, Sequence, Turn

SLOW_S = 1.0
"""Without news of a recalled request for so long its home goes on with another one: a helper
answers at its next layer boundary."""

LOOK_AHEAD = 64
"""Waiting requests looked at for one that can be lent: each costs the hash of a block."""


class Lending:
    """Decides who works on what of the queues of the instances that have helpers."""

    def __init__(self, books: LiveBooks, home_layers: int) -> None:
        self._books = books
        self._home_layers = home_layers

    def take(self, lane: Lane) -> None:
        """Begin the next prefill if none is left to post: several, if they fit into one step.

        A request is recalled while the last layers of the present prefill are left, as many as are
        posted ahead: its helper answers behind the steps that it has posted itself. What is due
        before all that goes on is begun at once.
        """
        self._books.planner.is_content(lane)
        before, room = self._present(lane)
        layered = any(not one.done and not one.is_whole for one in lane.courses.values())
        if before is None and layered and self._earliest(lane) is None:
            return
        first = True
        while lane.n_running < lane.max_running and room > 0:
            loan, head = self._earliest(lane), lane.queue.peek()
            if head is not None and not self._goes_first(lane, head, loan):
                head = None
            seq = head or (loan.seq if loan is not None else None)
            if seq is None or (len(seq.tokens) > room and not first and not lane.decoding):
                return
            if before is not None and seq.turn > before:
                return
            taken = self._admit(lane, seq) if loan is None or head else self._recall(lane, loan)
            if not taken:
                return
            room -= len(seq.tokens)
            first = False

    def _present(self, lane: Lane) -> tuple[Turn | None, int]:
        """Return the turn of the earliest prefill that the next step does not end, if there is one.

        With it the tokens that this step has left beside those that it ends.
        """
        room = lane.instance.max_batched_tokens
        before: list[Turn] = []
        whole = {seq.turn: len(seq.tokens) - seq.scheduled for seq in lane.prefilling.values()}
        for course in lane.courses.values():
            if course.done:
                continue
            if course.is_whole and course.ready and lane.decoding:
                whole[course.seq.turn] = course.tokens
            elif not self._is_nearly_done(lane, course):
                before.append(course.seq.turn)
        for turn, tokens in sorted(whole.items()):
            if tokens > room:
                before.append(turn)
                break
            room -= tokens
        return min(before, default=None), room

    def _is_nearly_done(self, lane: Lane, course: Course) -> bool:
        if course.loan is not None and not course.ready:
            return course.loan.is_overdue(self._books.planner.now, SLOW_S)
        ahead = self._home_layers * (self._books.planner.max_in_flight - 1)
        left = lane.instance.n_layers - course.layer
        return course.ready and not course.is_begun and left <= ahead

    def _is_slow(self, side: HomeSide) -> bool:
        """Tell whether a helper owes something for long: meanwhile it is not counted on."""
        now = self._books.planner.now
        return any(loan.is_overdue(now, SLOW_S) for loan in side.loans.values())

    def _earliest(self, lane: Lane) -> Loan | None:
        loans = [
            loan
            for side in self._books.homes_of(lane)
            if not self._is_slow(side)
            for loan in side.loans.values()
            if loan.is_takeable
        ]
        return min(loans, key=lambda loan: loan.seq.turn, default=None)

    def _goes_first(self, lane: Lane, head: Sequence, loan: Loan | None) -> bool:
        """Tell whether the head of the queue goes before what is lent.

        It does if it is due earlier; with nothing to recall, unless it is a helper's.
        """
        if loan is None:
            return not self._is_left(lane, head)
        return head.turn < loan.seq.turn

    def _is_left(self, lane: Lane, head: Sequence) -> bool:
        """Tell whether a request is left to a helper that begins all of them, and passes them on.

        One that has work in hand will offer it soon, unless it is slow. Beside a helper from which
        anything can be taken at any time nothing is left: no news would say that it is there.
        """
        sides = [side for side in self._books.homes_of(lane) if side.pulled and not side.finished]
        if _stays(lane, head) or any(side.policy is LivePolicy.ZIGZAG for side in sides):
            return False
        now = self._books.planner.now
        return any(
            (side.in_flight() or self._has_room(side, head)) and not side.is_silent(now, SLOW_S)
            for side in sides
            if not side.keeps
        )

    def _admit(self, lane: Lane, seq: Sequence) -> bool:
        planner = self._books.planner
        if planner.must_wait(lane):
            return False
        admitted = planner.allocate(lane, seq)
        if admitted is None:
            return False
        number, allocation = admitted
        lane.queue.remove(seq)
        planner.begin(lane, seq, number, allocation)
        lane.copies += allocation.copies
        start = allocation.cached_tokens
        lane.courses[number] = Course(seq, number, start=start, at=start)
        return True

    def _recall(self, lane: Lane, loan: Loan) -> bool:
        """Ask for a lent request, once there is memory for it: until then its helper keeps it."""
        planner, seq = self._books.planner, loan.seq
        if planner.must_wait(lane):
            return False
        admitted = planner.allocate(lane, seq, reuse=False)
        if admitted is None:
            return False
        number, allocation = admitted
        planner.begin(lane, seq, number, allocation)
        lane.courses[number] = Course(seq, number, ready=False, loan=loan)
        loan.state, loan.news_s = LoanState.RECALLED, planner.now
        lane.lent_tokens -= loan.lent_tokens
        loan.lent_tokens = 0
        self._books.say(Recall(loan.side.id, seq.id, seq.attempt))
        return True

    def is_worth(self, lane: Lane, seq: Sequence, layer: int) -> bool:
        """Tell whether a request is complete sooner from a layer on than from the first one.

        What has all layers before it goes into the steps of those who decode; for what has not
        these take a step of their own, each time.
        """
        pace, n_layers = lane.pace, lane.instance.n_layers
        if not lane.decoding or pace.decode_step_s is None or pace.prefill_tokens_per_s is None:
            return layer > 0
        tokens = min(len(seq.tokens), lane.instance.max_batched_tokens)
        saved_s = tokens / pace.prefill_tokens_per_s * layer / n_layers
        return saved_s > pace.decode_step_s

    def lend(self, lane: Lane) -> None:
        """Lend what waits in order, to the helper that has least, as long as they have room."""
        head = lane.queue.peek()
        if head is None or self._will_take(lane, head):
            return
        sides = [
            side
            for side in self._books.homes_of(lane)
            if side.pulled and not side.finished and not self._is_slow(side)
        ]
        busy = {side.id: len(side.in_flight()) for side in sides}
        seq: Sequence | None = None
        while sides:
            side = min(sides, key=lambda side: busy[side.id])
            seq = seq or self._first_to_go(lane)
            if seq is None:
                return
            if self._has_room(side, seq):
                self._lend(lane, side, seq)
                busy[side.id] += 1
                seq = None
            else:
                sides.remove(side)

    def _first_to_go(self, lane: Lane) -> Sequence | None:
        waiting = islice(lane.queue.in_order(), LOOK_AHEAD)
        n_layers = lane.instance.n_layers
        return next(
            (s for s in waiting if _may_go(lane, s) and self.is_worth(lane, s, n_layers)), None
        )

    def _will_take(self, lane: Lane, head: Sequence) -> bool:
        """Tell whether the instance itself is about to take the head of its queue."""
        if lane.n_running >= lane.max_running:
            return False
        if self._books.planner.is_starved(lane) or self._is_left(lane, head):
            return False
        loan, before = self._earliest(lane), self._present(lane)[0]
        if loan is not None and loan.seq.turn < head.turn:
            return False
        if before is not None:
            return head.turn < before
        busy = lane.posted_prefill_tokens or any(not one.done for one in lane.courses.values())
        return loan is None and not busy

    def _has_room(self, side: HomeSide, seq: Sequence) -> bool:
        loans = side.in_flight()
        tokens = sum(len(loan.seq.tokens) for loan in loans) + len(seq.tokens)
        return len(loans) < side.requests and (not loans or tokens <= side.tokens)

    def _lend(self, lane: Lane, side: HomeSide, seq: Sequence) -> None:
        lane.queue.remove(seq)
        seq.move(Phase.LENT)
        if not side.in_flight():
            side.news_s = self._books.planner.now
        self._books.planner.account_for(lane, seq, 0)
        ticket = self._books.next_ticket()
        loan = Loan(seq, side, ticket, lent_tokens=len(seq.tokens), n_tokens=len(seq.tokens))
        seq.role = side.loans[seq.id] = side.tickets[ticket] = loan
        lane.lent_tokens += loan.lent_tokens
        lane.lent_total += 1
        request = seq.request
        if len(seq.tokens) > len(request.tokens):  # it has been preempted
            request = replace(request, tokens=tuple(seq.tokens))
        self._books.say(Lend(side.id, request, ticket))

    def share(self, lane: Lane, theirs: int) -> list[Sequence]:
        """Return what waits that a complete helper gets: each goes to who has less to do.

        Work is counted in tokens × layers. Nobody here knows how far the helper is with what it
        keeps and has not offered. Helpers that are still to come will want the same share.
        """
        n_layers, mine = lane.instance.n_layers, self._work(lane)
        waiting = [side for side in self._books.homes_of(lane) if not side.finished]
        given: list[Sequence] = []
        for seq in list(lane.queue.in_order()):
            work = len(seq.tokens) * n_layers
            if theirs * (1 + len(waiting)) < mine:
                theirs += work
                given.append(seq)
            else:
                mine += work
        return given

    def _work(self, lane: Lane) -> int:
        """Return the prefill that is left to this instance of what it has begun."""
        n_layers = lane.instance.n_layers
        work = sum(posted.work for posted in self._books.planner.steps_of(lane))
        work += sum(len(s.tokens) - s.scheduled for s in lane.prefilling.values()) * n_layers
        return work + sum(course.work_left(n_layers) for course in lane.courses.values())


def _stays(lane: Lane, seq: Sequence) -> bool:
    if seq.stays or seq.attempt:  # one that has been elsewhere is moved no more
        return True
    return len(seq.tokens) > BLOCK_TOKENS and lane.allocator.has_prefix(
        seq.tokens, seq.account.name
    )


def _may_go(lane: Lane, seq: Sequence) -> bool:
    return seq.role is None and not _stays(lane, seq)
