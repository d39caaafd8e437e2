"""A wire within a process: two bounded buffers, with the patience of a socket."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from blitzgw.transport.base import STALL_S, ChannelLost

CAPACITY_BYTES = 1 << 20
"""What one direction holds before its writer waits; about what sockets hold."""


def memory_pair(stall_s: float = STALL_S) -> tuple[MemoryWire, MemoryWire]:
    """Return both ends of a connection."""
    there, back = _Pipe(stall_s), _Pipe(stall_s)
    return MemoryWire(back, there), MemoryWire(there, back)


class MemoryWire:
    """One end: a base.Wire over two pipes."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write all of it."""
        for part in parts:
            self._outgoing.put(part)

    def read_into(self, view: memoryview) -> None:
        """Fill a buffer."""
        self._incoming.fill(view)

    def poll(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or the end; return whether there is."""
        return self._incoming.poll(timeout_s)

    def lost(self) -> bool:
        """Whether the peer has ended the connection."""
        return self._incoming.closed

    def end(self) -> None:
        """End both streams; what is on its way can still be read at the other end."""
        self._incoming.close(discard=True)
        self._outgoing.close(discard=False)

    def close(self) -> None:
        """End both streams."""
        self.end()


class _Pipe:
    """A bounded queue of bytes between two threads."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._parts: deque[memoryview] = deque()
        self._size = 0
        self.closed = False
        self._changed = threading.Condition()

    def put(self, part: bytes | memoryview) -> None:
        for start in range(0, len(part), CAPACITY_BYTES):
            copied = memoryview(bytes(part[start : start + CAPACITY_BYTES]))
            with self._changed:
                self._await(lambda: self._size < CAPACITY_BYTES)
                if self.closed:
                    raise ChannelLost("the connection has ended")
                self._parts.append(copied)
                self._size += len(copied)
                self._changed.notify_all()

    def fill(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            with self._changed:
                self._await(lambda: bool(self._parts))
                if not self._parts:
                    raise ChannelLost("the peer has ended the connection")
                part = self._parts.popleft()
                taken = min(len(part), len(view) - at)
                view[at : at + taken] = part[:taken]
                if taken < len(part):
                    self._parts.appendleft(part[taken:])
                at += taken
                self._size -= taken
                self._changed.notify_all()

    def poll(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.closed or bool(self._parts), timeout_s)

    def close(self, *, discard: bool) -> None:
        with self._changed:
            self.closed = True
            if discard:
                self._parts.clear()
            self._changed.notify_all()

    def _await(self, ready: Callable[[], bool]) -> None:
        """Wait until it is so or the pipe is closed; raises ChannelLost after the patience."""
        began = time.monotonic()
        if not self._changed.wait_for(lambda: self.closed or ready(), self._stall_s):
            raise ChannelLost(f"the peer is silent for {time.monotonic() - began:.1f} s")
