"""What the threads of edges see of NCCL: pairs, and transfers over them.

A pair's states, and who moves it:

    WARMING ──── the peer's end is there as well ────► READY
       │                                                 │   launching thread only
       └── failed · too late · aborted ──► BROKEN ◄──────┘

A broken pair never comes back; a new one is made, under a new name.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Final

from blitzgw.transport.base import ChannelLost
from blitzgw.transport.nccl_library import Role


class PairState(Enum):
    """Where a pair is in its life."""

    WARMING = "warming"
    READY = "ready"
    BROKEN = "broken"


_LEGAL: Final = {
    (PairState.WARMING, PairState.READY),
    (PairState.WARMING, PairState.BROKEN),
    (PairState.READY, PairState.BROKEN),
}


_WEDGED: Final[list[object]] = []
"""What wedged devices may still write to: a few transfers, after which NCCL is not used again."""


class Pair:
    """One end of a communicator of two, by which bytes go one way."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = PairState.WARMING
        self.why = ""
        """Why it is broken."""

    def move(self, state: PairState, why: str = "") -> None:
        """Go to another state; on the launching thread. Raises ValueError for an illegal one."""
        if (self.state, state) not in _LEGAL:
            raise ValueError(f"a pair that is {self.state.value} becomes {state.value}")
        self.why = why or self.why
        self.state = state


class Transfer:
    """One piece on its way over a pair. `keep` is what its memory lives by, until it has ended."""

    def __init__(self, pair: Pair, pointer: int, size_bytes: int, keep: object) -> None:
        self.pair, self.pointer, self.size_bytes = pair, pointer, size_bytes
        self._keep: object = keep
        self._ended = threading.Event()
        self._error = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing reads or writes its memory any more."""
        return self._ended.is_set()

    def end(self, error: str = "", *, is_wedged: bool = False) -> None:
        """Say that it is over, empty: well; on the launching thread.

        With `is_wedged` the device may still write: its memory is never given back.
        """
        self._error = error
        if is_wedged:
            _WEDGED.append(self._keep)
        self._keep = None
        self._ended.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it has come. Raises ChannelLost where it went badly."""
        if not self._ended.wait(timeout_s):
            return False
        if self._error:
            raise ChannelLost(f"NCCL: {self._error}")
        return True
