"""The figures of an instance that shares requests with others."""

from __future__ import annotations

from blitzgw.scheduler.lane import InstanceStatistics, Lane, LiveStatistics
from blitzgw.scheduler.lengths import committed_tokens
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.kept import KeptSequences
from blitzgw.scheduler.live.moving import Moving
from blitzgw.scheduler.live.records import LoanState
from blitzgw.scheduler.live.relays import Station


def figures(
    lane: Lane, books: LiveBooks, kept: KeptSequences, station: Station | None, moving: Moving
) -> InstanceStatistics:
    """Return an instance's figures, with what it does for others and they for it."""
    name = lane.instance.id
    guests = books.guests_of(lane)
    homes = books.homes_of(lane)
    states = [loan.state for side in homes for loan in side.loans.values()]
    live = LiveStatistics(
        resident=lane.resident,
        layers=lane.instance.n_layers,
        loading=lane.loading,
        helping=tuple(side.there for side in guests if not side.finished),
        helped=tuple(side.there for side in homes if not side.finished),
        lent=states.count(LoanState.LENT),
        recalled=len(states) - states.count(LoanState.LENT),
        tasks=sum(len(side.tasks) for side in guests),
        sending=len(lane.sending) + moving.departing.leaving(name),
        kept=kept.count(name) + moving.arriving.count(name),
        lent_total=lane.lent_total,
        split_total=lane.split_total,
        dealt_total=lane.dealt_total,
        stage=station.span if station is not None and station.is_ready else None,
        stages=1 + len(station.behind or ()) if station is not None and station.is_ready else 0,
        staged=len(lane.relays),
        staged_total=lane.staged_total,
    )
    held = [seq for seq in books.requests.values() if seq.instance == name]
    return lane.statistics(live, committed_tokens(held, lane.outputs))
