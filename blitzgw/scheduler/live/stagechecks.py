"""Do the books of pipelines agree with the scheduler's? Costs O(all)."""

from __future__ import annotations

from collections import Counter

from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.records import Task
from blitzgw.scheduler.live.relays import Relay, Station
from blitzgw.scheduler.live.stagebooks import StageBooks
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.slots import blocks_for


def check_stages(books: StageBooks, requests: dict[str, Sequence]) -> None:
    """Raise AssertionError at the first contradiction."""
    lanes = books.live.planner.lanes
    for name, station in books.stations.items():
        assert station.instance == name
        assert name in lanes
        assert not station.up or books.hosts[station.up] is station
        assert not station.down or books.guests[station.down] is station
        _check_station(station, lanes[name])
    assert all(station.up == name for name, station in books.hosts.items())
    assert all(station.down == name for name, station in books.guests.items())
    for seq in requests.values():
        if seq.phase is Phase.STAGED:
            assert books.stations[seq.instance].relays[seq.id].seq is seq
    steps = Counter(
        id(relay) for step in books.live.planner.in_flight.values() for relay, _ in step.relays
    )
    for lane in lanes.values():
        for number, relay in lane.relays.items():
            assert relay.number == number
            assert relay.station.relays[relay.id] is relay
            assert steps[id(relay)] == relay.steps
            _check_relay(relay, requests)


def _check_station(station: Station, lane: Lane) -> None:
    assert len(station.relays) == len(lane.relays)
    assert all(lane.relays[relay.number] is relay for relay in station.relays.values())
    assert all(station.relays[relay.id] is relay for relay in station.tickets.values())
    assert len(station.tickets) == sum(1 for relay in station.relays.values() if relay.ticket)
    if station.relays:
        assert station.span is not None
        assert station.is_ready
        assert station.is_last or station.down
        assert station.is_lead or station.up


def _check_relay(relay: Relay, requests: dict[str, Sequence]) -> None:
    assert not relay.over
    assert relay.at <= relay.passed <= relay.reserved
    assert relay.at <= relay.ready or relay.at == relay.passed
    assert relay.granted <= relay.reserved
    assert relay.introduced == bool(relay.at)
    assert not relay.blocks or len(relay.blocks) <= blocks_for(relay.reserved)
    seq = relay.seq
    assert (seq is not None) == relay.station.is_lead
    if seq is not None:
        assert requests[seq.id] is seq
        assert seq.phase is Phase.STAGED or isinstance(seq.role, Task)
        assert relay.passed == relay.sample_stop == len(seq.tokens)
