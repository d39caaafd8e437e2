"""Single keys from a terminal that is as it was afterwards, whatever the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

MAX_KEYS = 64
"""Bytes that are read at a time: of what is pasted, the rest comes next."""

ESCAPE = "\x1b"
"""What arrows and the like begin with: nothing of it is a key of ours."""

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What ends a process without any cleaning up, unless it is handled."""

_LOCAL, _SPECIAL = 3, 6
"""Where `termios.tcgetattr` has the local modes and the special characters."""


class Keys:
    """Reads keys as they are pressed and does not show them; off a terminal there are none.

    ^C stays an interrupt. ^Z does nothing meanwhile: whoever is stopped cannot clean up.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd = -1
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(termios.error, ValueError, OSError):
            fd = self._stream.fileno()
            saved = termios.tcgetattr(fd)
            changed = termios.tcgetattr(fd)
            changed[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
            changed[_SPECIAL][termios.VSUSP] = b"\0"
            changed[_SPECIAL][termios.VMIN], changed[_SPECIAL][termios.VTIME] = 1, 0
            self._fd, self._saved = fd, saved
            termios.tcsetattr(fd, termios.TCSADRAIN, changed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error, OSError):  # the terminal has gone
                termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._saved)
            self._saved = None

    def wait(self, seconds: float) -> str:
        """Return what has been pressed, empty where that is nothing for so long."""
        if self._saved is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return ""
        pressed = os.read(self._fd, MAX_KEYS).decode(errors="replace")
        if not pressed:  # nothing will ever come any more
            self.__exit__(None, None, None)
        return "" if pressed.startswith(ESCAPE) else pressed


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that whatever has to be undone is undone.

    In the main thread only; raises ValueError elsewhere.
    """
    before = {number: signal.signal(number, _end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
