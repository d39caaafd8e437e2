"""What ends a node from outside: SIGTERM and ^C."""

from __future__ import annotations

import asyncio
import logging
import signal

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
"""128 + SIGINT: what a shell expects of a process that did not end in its own time."""


class Signals:
    """SIGTERM and ^C: the first asks for an end, `hurry` is that there has been another one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        log.info("signal name=%s", signal.Signals(number).name)
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
