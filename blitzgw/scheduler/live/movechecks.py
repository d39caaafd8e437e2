"""Do the books of sequences that move agree with the scheduler's? Costs O(all)."""

from __future__ import annotations

from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.moving import Moving
from blitzgw.scheduler.live.passages import Arrival, Departure, Stage
from blitzgw.scheduler.live.records import Passage
from blitzgw.scheduler.sequence import Phase, Sequence


def check_moves(moving: Moving, requests: dict[str, Sequence]) -> None:
    """Raise AssertionError at the first contradiction."""
    lanes = moving.lanes
    for leaving in moving.departing.sides.values():
        for name, departure in leaving.departures.items():
            assert departure.seq.id == name
            _check_departure(departure, lanes[leaving.here])
    for name, arrival in moving.arriving.arrivals.items():
        assert requests[name] is arrival.seq
        assert arrival.side.tickets[arrival.ticket] is arrival
        _check_arrival(arrival, lanes[arrival.seq.instance])
    for name, seq in requests.items():
        role = seq.role
        if isinstance(role, Departure):
            assert role.side.departures[name] is role
            assert role.stage in (Stage.ASKED, Stage.COPYING, Stage.STOPPED)
        elif isinstance(role, Passage):
            assert moving.arriving.arrivals[name] is role


def _check_departure(departure: Departure, lane: Lane) -> None:
    seq = departure.seq
    assert departure.sent <= departure.room
    if departure.stage is Stage.GONE:
        assert seq.phase is Phase.ENDED
        return
    assert seq.role is departure
    if departure.stage is Stage.LAST:
        assert lane.sending[seq.number] is seq
    elif departure.stage is Stage.STOPPED:
        assert lane.courses[seq.number].passage is departure
    else:
        assert lane.decoding[seq.number] is seq


def _check_arrival(arrival: Arrival, lane: Lane) -> None:
    seq = arrival.seq
    assert seq.role is arrival
    assert seq.phase is Phase.RUNNING
    assert lane.courses[seq.number].passage is arrival
    assert not arrival.landed
    assert not arrival.over
    assert arrival.importing >= 0
    assert len(arrival.blocks) * BLOCK_TOKENS == seq.capacity
