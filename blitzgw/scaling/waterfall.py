"""The phases of an operation with their times, as `inspect events` shows them.

decided → planned → claimed → connected → first_byte → blob (one for each) → complete → ready →
done; in between policy (what targets do while they load), pipeline (some are to serve together, by
then), helping (a target has begun to help), replanned, lost, refused, damaged, failed, cancelled.
"""

from __future__ import annotations

from blitzgw.core.operation import OperationEvent

MAX_EVENTS = 4096
"""Kept of one operation: all blobs of a large model at dozens of targets; the rest is counted."""


class Waterfall:
    """What has happened since `started`, a moment of the decider's clock."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._events: list[OperationEvent] = []
        self._left_out = 0

    def note(self, now: float, what: str, about: str = "", detail: str = "") -> OperationEvent:
        """Add an event and return it; beyond MAX_EVENTS it is only counted."""
        event = OperationEvent(self.since(now), what, about, detail)
        if len(self._events) < MAX_EVENTS:
            self._events.append(event)
        else:
            self._left_out += 1
        return event

    def since(self, now: float) -> float:
        """Return the seconds from the start to `now`."""
        return max(0.0, now - self._started)

    def events(self) -> tuple[OperationEvent, ...]:
        """Return what is kept, in order, and at last how much is not."""
        if not self._left_out:
            return tuple(self._events)
        last = self._events[-1]
        return (*self._events, OperationEvent(last.at_s, "truncated", "", f"{self._left_out} more"))
