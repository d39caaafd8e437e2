"""The simulation's own eye: who believes what of whom, counted as beliefs change.

It knows what is true, so it can tell a false suspicion from a right one, and the moment at which
all agree without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blitzgw.core.rumours import Rumour, Status, Update

if TYPE_CHECKING:
    from blitzgw.sim.heap import EventHeap
    from blitzgw.sim.network import Network
    from blitzgw.sim.process import Process


class Spread:
    """The way of some entries of one node's state to all others. Moments in virtual seconds."""

    def __init__(self, owner: str, entries: dict[str, bytes], others: Iterable[str]) -> None:
        self.owner = owner
        self.complete_s: dict[str, float] = {}
        self._entries = entries
        self._lacking = {boot: set(entries) for boot in others}

    @property
    def done(self) -> bool:
        """Whether everybody has everything."""
        return not self._lacking

    def note(self, boot: str, updates: Iterable[Update], now: float) -> None:
        """Take note of what has arrived at a node."""
        lacking = self._lacking.get(boot)
        if lacking is None:
            return
        for update in updates:
            if update.boot == self.owner and self._entries.get(update.key) == update.value:
                lacking.discard(update.key)
        if not lacking:
            del self._lacking[boot]
            self.complete_s[boot] = now


class Death:
    """The news of one death. Moments in virtual seconds, None before they have come.

    A member that another observer has forgotten, or believes to have left, counts as known dead.
    """

    def __init__(self, boot: str, believers: int, now: float) -> None:
        self.boot = boot
        self.suspected_s: float | None = None
        self.detected_s: float | None = None
        self.known_s: float | None = None if believers else now
        self.believers = believers
        """How many still hold it for living."""

    def note(self, before: Status | None, after: Status | None, now: float) -> None:
        """Take note that one observer's belief has changed."""
        if after is Status.SUSPECT and self.suspected_s is None:
            self.suspected_s = now
        if not living(after) and self.detected_s is None:
            self.detected_s = now
        self._count(living(after) - living(before), now)

    def lost_believer(self, now: float) -> None:
        """Take note that an observer that held it for living has ended itself."""
        self._count(-1, now)

    def _count(self, change: int, now: float) -> None:
        self.believers += change
        if not self.believers and self.known_s is None:
            self.known_s = now


class Rift:
    """Two groups that cannot reach each other: how many of their members are still believed in."""

    def __init__(self, one: frozenset[str], processes: Iterable[Process]) -> None:
        self._one = one
        self.believers = sum(
            living(status)
            for process in processes
            for boot, status in process.view.items()
            if self._across(process.boot, boot)
        )

    def note(self, observer: str, boot: str, before: Status | None, after: Status | None) -> None:
        """Take note that one observer's belief has changed."""
        if self._across(observer, boot):
            self.believers += living(after) - living(before)

    def _across(self, observer: str, boot: str) -> bool:
        return (observer in self._one) != (boot in self._one)


class Watch:
    """Follows the beliefs of all running processes.

    `false_suspicions` and `false_failures` hold, by (boot, incarnation), how many observers have
    believed a running member that they could reach to be suspect or dead.
    """

    def __init__(self, heap: EventHeap, network: Network) -> None:
        self.processes: dict[str, Process] = {}
        self.links = 0
        """Ordered pairs of running processes of which the first believes the second ALIVE."""
        self.false_suspicions: dict[tuple[str, int], int] = {}
        self.false_failures: dict[tuple[str, int], int] = {}
        self.deaths: dict[str, Death] = {}
        self.spread: Spread | None = None
        self.rift: Rift | None = None
        self._heap = heap
        self._network = network

    @property
    def all_alive(self) -> bool:
        """Whether every running process believes every other one ALIVE."""
        running = len(self.processes)
        return self.links == running * (running - 1)

    def began(self, process: Process) -> None:
        """Follow a process from now on."""
        self.processes[process.boot] = process

    def ended(self, process: Process) -> None:
        """A process runs no more: its beliefs do not count, and those of it are out of date."""
        if self.processes.pop(process.boot, None) is None:
            return
        for boot, status in process.view.items():
            if boot in self.processes:
                self.links -= status is Status.ALIVE
            elif boot in self.deaths and living(status):
                self.deaths[boot].lost_believer(self._heap.now)
        beliefs = [other.view.get(process.boot) for other in self.processes.values()]
        self.links -= sum(status is Status.ALIVE for status in beliefs)
        believers = sum(map(living, beliefs))
        self.deaths[process.boot] = Death(process.boot, believers, self._heap.now)

    def changed(self, observer: Process, member: Rumour) -> None:
        """Note that an observer believes something else of a member."""
        status = Status(member.status)
        before = observer.view.get(member.boot)
        observer.view[member.boot] = status
        if status is not before:
            self._shift(observer, member.boot, before, status)
            if status is not Status.ALIVE:
                self._judge(observer, member)

    def forgot(self, observer: Process, boot: str) -> None:
        """Note that an observer knows a member no more."""
        before = observer.view.pop(boot, None)
        self._shift(observer, boot, before, None)

    def received(self, observer: Process, updates: tuple[Update, ...]) -> None:
        """Note that state has arrived at an observer."""
        if self.spread is not None:
            self.spread.note(observer.boot, updates, self._heap.now)

    def _shift(
        self, observer: Process, boot: str, before: Status | None, after: Status | None
    ) -> None:
        if not observer.running or boot == observer.boot:
            return
        if boot in self.processes:
            self.links += (after is Status.ALIVE) - (before is Status.ALIVE)
            if self.rift is not None:
                self.rift.note(observer.boot, boot, before, after)
        elif boot in self.deaths:
            self.deaths[boot].note(before, after, self._heap.now)

    def _judge(self, observer: Process, member: Rumour) -> None:
        accused = self.processes.get(member.boot)
        if accused is None or accused.leaving:
            return
        if not self._network.connected(observer.address, accused.address):
            return
        suspected = member.status == Status.SUSPECT
        count = self.false_suspicions if suspected else self.false_failures
        key = (member.boot, member.incarnation)
        count[key] = count.get(key, 0) + 1


def living(status: Status | None) -> bool:
    """Return whether a belief holds its member for living."""
    return status is Status.ALIVE or status is Status.SUSPECT
