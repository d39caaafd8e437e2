"""Do the router's books agree with each other? For tests and for `inspect`; costs O(all)."""

from __future__ import annotations

from collections.abc import Mapping

from blitzgw.router.fleet import Fleet
from blitzgw.router.tokenlog import Entry
from blitzgw.router.waiting import WaitingRoom


def check_books(log: Mapping[str, Entry], waiting: WaitingRoom, fleet: Fleet) -> None:
    """Raise AssertionError at the first contradiction."""
    fleet.check_integrity()
    held = waiting.everybody()
    assert len(held) == sum(waiting.count(model) for model in waiting.models())
    assert all(waiting.count(model) for model in waiting.models())
    for entry in held:
        assert log.get(entry.request.id) is entry
        assert entry.admitted
        assert entry.held_since is not None
    for name, entry in log.items():
        assert entry.request.id == name
        assert bool(entry.instance) != (entry in waiting), f"{name} is nowhere or twice"
        assert entry.failures + entry.moves <= entry.attempt
        if entry.instance:
            seat = fleet.get(entry.instance)
            assert seat is not None
            assert seat.port.model == entry.request.model
    numbers = [entry.number for entry in log.values()]
    assert numbers == sorted(set(numbers))
