"""How soon bytes may count as there, where a rate is not to be exceeded."""

from __future__ import annotations

import threading
import time


class Pace:
    """One rate that all share who ask; 0: none. Thread-safe."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._taken_s = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._bytes_per_s > 0

    def due(self, size_bytes: int) -> float:
        """Return when these bytes are there that follow all those asked for, by the wall's clock.

        That is `time.monotonic`; whoever asks waits until then.
        """
        if not self.limited:
            return 0.0
        with self._lock:
            begin_s = max(self._taken_s, time.monotonic())
            self._taken_s = begin_s + size_bytes / self._bytes_per_s
            return self._taken_s
