"""What must be true of a cluster some time after the last fault was mended.

living   believed ALIVE by every living node: none is dead for good, none forgotten
gone     believed to live by nobody: dead, left or forgotten
state    at every living node that of every other one is what its owner has published
sound    every decider's own `check_integrity` holds, at all times
"""

from __future__ import annotations

from collections.abc import Iterator

from blitzgw.core.rumours import Rumour, Status
from blitzgw.sim.process import Process
from blitzgw.sim.world import World


def violations(world: World) -> list[str]:
    """Return what does not hold of a cluster that has had time to settle, one line each."""
    processes = [process for process in world.running() if not process.leaving]
    found: list[str] = []
    for observer in processes:
        found += _unsound(observer)
        found += _beliefs(observer, processes)
        found += _state(observer, processes)
    return found


def unsound(world: World) -> list[str]:
    """Return which deciders contradict themselves, one line each."""
    return [line for process in world.running() for line in _unsound(process)]


def _unsound(observer: Process) -> Iterator[str]:
    try:
        observer.membership.check_integrity()
    except AssertionError as error:
        yield f"sound: {observer.boot} contradicts itself: {error}"


def _beliefs(observer: Process, processes: list[Process]) -> Iterator[str]:
    members = {member.boot: member for member in observer.membership.members()}
    for process in processes:
        member = members.pop(process.boot, None)
        if process is observer:
            continue
        if member is None:
            yield f"living: {observer.boot} does not know {process.boot}"
        elif member.status != Status.ALIVE:
            yield f"living: {observer.boot} believes {process.boot} {_named(member)}"
        elif (member.host, member.port) != process.address:
            yield f"living: {observer.boot} has a wrong address of {process.boot}"
    for boot, member in members.items():
        if member.status in (Status.ALIVE, Status.SUSPECT):
            yield f"gone: {observer.boot} believes {boot}, which has ended, {_named(member)}"


def _state(observer: Process, processes: list[Process]) -> Iterator[str]:
    for owner in processes:
        updates = observer.membership.entries(owner.boot).values()
        held = {update.key: update.value for update in updates if update.value is not None}
        if held != owner.published:
            wrong = [
                key
                for key in sorted(held.keys() | owner.published.keys())
                if held.get(key) != owner.published.get(key)
            ]
            yield f"state: {observer.boot} holds another {' '.join(wrong)} of {owner.boot}"


def _named(member: Rumour) -> str:
    return Status(member.status).name
