"""Do the books of shared requests agree with the scheduler's? Costs O(all)."""

from __future__ import annotations

from blitzgw.scheduler.live.live import Live
from blitzgw.scheduler.live.movechecks import check_moves
from blitzgw.scheduler.live.records import Course, Keep, Loan, LoanState, Task
from blitzgw.scheduler.live.stagechecks import check_stages
from blitzgw.scheduler.sequence import Phase, Sequence


def check_live(live: Live, requests: dict[str, Sequence]) -> None:
    """Raise AssertionError at the first contradiction."""
    books = live.books
    check_stages(live.pipelines.books, requests)
    check_moves(live.moving, requests)
    for seq in requests.values():
        role = seq.role
        if isinstance(role, Loan):
            assert role.side.loans[seq.id] is role
            assert (seq.phase is Phase.LENT) == (role.state is LoanState.LENT)
        elif isinstance(role, Task):
            assert role.side.tasks[seq.id] is role
            assert books.planner.lanes[seq.instance].loading
            assert seq.phase in (Phase.LENT, Phase.RUNNING)
            assert (role.course is not None) == (seq.phase is Phase.RUNNING)
        elif isinstance(role, Keep):
            assert live.kept.get(seq.id) is role
        else:
            assert seq.phase is not Phase.LENT
    for home in books.homes.values():
        assert home.here in books.planner.lanes
        assert len(home.loans) == len(home.tickets)
        assert all(loan.seq.role is loan for loan in home.loans.values())
        assert all(requests[name] is loan.seq for name, loan in home.loans.items())
    for guest in books.guests.values():
        assert guest.here in books.planner.lanes
        assert not (guest.finished and guest.tasks)
        assert all(requests[name] is task.seq for name, task in guest.tasks.items())
        for task in guest.sending.values():
            assert task.seq.phase is Phase.SENDING
            assert books.planner.lanes[guest.here].sending[task.seq.number] is task.seq
    for lane in books.planner.lanes.values():
        loans = [s for s in requests.values() if s.instance == lane.instance.id]
        lent = [s for s in loans if isinstance(s.role, Loan) and s.phase is Phase.LENT]
        assert lane.lent_tokens == sum(len(s.tokens) for s in lent)
        assert not (lane.loading and (lane.queue or lane.decoding or lane.prefilling))
        for number, course in lane.courses.items():
            _check_course(course, number, lane.instance.n_layers)


def _check_course(course: Course, number: int, n_layers: int) -> None:
    seq = course.seq
    assert (course.number, seq.number) == (number, number)
    assert 0 <= course.start <= course.at < len(seq.tokens) or course.done
    assert 0 <= course.layer <= n_layers
    known = course.introduced or course.loan is not None or course.passage is not None
    assert known or not course.layer
    assert course.done or not seq.samples_in_flight
    assert course.loan is None or course.loan.seq is seq
