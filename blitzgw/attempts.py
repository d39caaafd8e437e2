"""Attempts at something that others may prevent: ever rarer, and each cause told once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from blitzgw.core.clock import Clock

RETRY_S = 1.0
"""Between the first two attempts; each wait is twice the one before."""

MAX_RETRY_S = 30.0
"""Longest wait between two attempts: a cause that lasts costs little, and its end is noticed within
the time that an operator looks for it."""

MAX_CAUSES = 16
"""Causes that are told; more only repeat them in other words."""


class Attempts:
    """A task that tries again and again. `news` ends its wait: something is different now."""

    task: asyncio.Task[None]

    def __init__(self, clock: Clock) -> None:
        self.news = asyncio.Event()
        self._clock = clock
        self._wait_s = RETRY_S
        self._causes: set[str] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin; whoever has made this owns `task`."""
        self.task = asyncio.get_running_loop().create_task(work)

    def is_new(self, error: Exception) -> bool:
        """Tell whether the cause of a failure has not been met before."""
        cause = f"{type(error).__name__}: {error}"
        if cause in self._causes or len(self._causes) >= MAX_CAUSES:
            return False
        self._causes.add(cause)
        return True

    async def pause(self) -> None:
        """Wait for news, at most MAX_RETRY_S and longer each time."""
        loop = asyncio.get_running_loop()
        news = loop.create_task(self.news.wait())
        limit = loop.create_task(self._clock.sleep(self._wait_s))
        self._wait_s = min(2 * self._wait_s, MAX_RETRY_S)
        try:
            await asyncio.wait({news, limit}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            limit.cancel()
            await asyncio.wait({news, limit})  # at once
