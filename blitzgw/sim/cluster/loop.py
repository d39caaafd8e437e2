"""The event loop as shells of nodes see it, in virtual time.

The shells that join schedulers (pairings.py, helping.py) ask the running loop for two things: to
call something soon, or later. While `virtual_loop` holds, a heap of events is what they get.
"""

from __future__ import annotations

import asyncio.events
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from blitzgw.sim.heap import EventHeap


class VirtualClock:
    """A `core.clock.Clock` that shells only read."""

    def __init__(self, heap: EventHeap) -> None:
        self._heap = heap

    def now(self) -> float:
        """Return the present moment in seconds."""
        return self._heap.now

    async def sleep(self, duration_s: float) -> None:
        """Refuse to wait: nothing here is a coroutine."""
        raise NotImplementedError(f"sleeping {duration_s} s in virtual time")


class Handle:
    """What was to be called, until it is cancelled."""

    __slots__ = ("_arguments", "_call")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._call: Callable[..., object] | None = call
        self._arguments = arguments

    def cancel(self) -> None:
        """Call nothing."""
        self._call = None

    def run(self) -> None:
        """Call it."""
        if self._call is not None:
            self._call(*self._arguments)


class VirtualLoop:
    """The part of an event loop that shells use."""

    def __init__(self, heap: EventHeap) -> None:
        self._heap = heap

    def call_soon(self, call: Callable[..., object], *arguments: Any) -> Handle:
        """Call something when what happens now is over."""
        return self.call_later(0.0, call, *arguments)

    def call_later(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> Handle:
        """Call something after a delay."""
        handle = Handle(call, arguments)
        self._heap.after(max(0.0, delay_s), handle.run)
        return handle

    def is_running(self) -> bool:
        """Return True: whoever asks is called by it."""
        return True


@contextmanager
def virtual_loop(heap: EventHeap) -> Iterator[VirtualLoop]:
    """Have shells call by a heap. Raises RuntimeError where a real loop runs in this thread."""
    if asyncio.events._get_running_loop() is not None:
        raise RuntimeError("virtual time within a running event loop")
    loop = VirtualLoop(heap)
    asyncio.events._set_running_loop(cast(Any, loop))
    try:
        yield loop
    finally:
        asyncio.events._set_running_loop(None)
