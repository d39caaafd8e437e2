"""One running node of the simulation: a production decider, its timer, and what waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from blitzgw.core.rumours import Status
from blitzgw.gossip.events import Address, Effect, Event, PacketArrived, TimePassed

if TYPE_CHECKING:
    from blitzgw.gossip.membership import Membership
    from blitzgw.sim.heap import EventHeap

TICK_S = 0.001
"""The finest step of a timer: event loops round up to milliseconds, and a decider that names a
moment of the past must not stop the time."""

INBOX_PACKETS = 256
"""Datagrams that wait for a process that does not run: Linux's default receive buffer, 208 KiB,
holds about so many small ones."""


@dataclass(slots=True)
class Traffic:
    """What a process has sent, with all headers, in bytes. Streams count in `sync_bytes` alone."""

    packets: int = 0
    packet_bytes: int = 0
    syncs: int = 0
    sync_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Everything, in bytes."""
        return self.packet_bytes + self.sync_bytes

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(
            self.packets - before.packets,
            self.packet_bytes - before.packet_bytes,
            self.syncs - before.syncs,
            self.sync_bytes - before.sync_bytes,
        )

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.packets + other.packets,
            self.packet_bytes + other.packet_bytes,
            self.syncs + other.syncs,
            self.sync_bytes + other.sync_bytes,
        )

    def copy(self) -> Traffic:
        """Return what it is now."""
        return self + Traffic()


class Process:
    """A node from its start to its end. Its monotonic clock has an origin of its own."""

    def __init__(
        self,
        heap: EventHeap,
        membership: Membership,
        boot: str,
        address: Address,
        *,
        origin_s: float,
        perform: Callable[[Process, Effect], None],
    ) -> None:
        self.membership = membership
        self.boot = boot
        self.address = address
        self.running = True
        self.leaving = False
        self.began_s = heap.now
        self.syncs_begun = 0
        self.syncs_taken = 0
        self.traffic = Traffic()
        self.published: dict[str, bytes] = {}
        self.view: dict[str, Status] = {}
        self._heap = heap
        self._origin_s = origin_s
        self._perform = perform
        self._alarm_s = inf
        self._paused = False
        self._packets = 0
        self._inbox: deque[Event] = deque()
        self._arm()

    def take(self, event: Event) -> None:
        """Let the decider handle an event, after the pause where it is in one."""
        if not self.running:
            return
        if not self._paused:
            self._handle(event)
        elif type(event) is not PacketArrived:
            self._inbox.append(event)
        elif self._packets < INBOX_PACKETS:
            self._packets += 1
            self._inbox.append(event)

    def pause(self, duration_s: float, *, timer_first: bool) -> None:
        """Process nothing for a while, then everything that has come; a paused one stays so.

        `timer_first`: whether the decider learns of the time before it gets what has waited.
        """
        if self.running and not self._paused:
            self._paused = True
            self._heap.after(duration_s, self._resume, timer_first)

    def end(self) -> None:
        """Stop for good; what is under way to it is lost."""
        self.running = False
        self._inbox.clear()

    def _resume(self, timer_first: bool) -> None:
        self._paused = False
        if timer_first and self._overdue():
            self.take(TimePassed())
        waiting, self._inbox, self._packets = self._inbox, deque(), 0
        for event in waiting:
            self.take(event)
        if self.running and self._overdue():
            self.take(TimePassed())

    def _overdue(self) -> bool:
        return self.membership.deadline() <= self._heap.now + self._origin_s

    def _handle(self, event: Event) -> None:
        for effect in self.membership.handle(event, self._heap.now + self._origin_s):
            self._perform(self, effect)
        self._arm()

    def _arm(self) -> None:
        """Keep one alarm in the heap, at or before the decider's deadline."""
        due_s = self.membership.deadline() - self._origin_s
        if due_s < self._alarm_s:
            self._alarm_s = max(due_s, self._heap.now + TICK_S)
            self._heap.at(self._alarm_s, self._ring, self._alarm_s)

    def _ring(self, alarm_s: float) -> None:
        if alarm_s != self._alarm_s or not self.running:
            return  # an earlier one has taken its place
        self._alarm_s = inf
        if self._paused:
            return  # `_resume` looks after it
        if self._overdue():
            self._handle(TimePassed())
        else:
            self._arm()
