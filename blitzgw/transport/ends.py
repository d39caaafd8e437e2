"""What both ends of an edge have in common: a thread, a connection at a time, one last word."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from blitzgw.core.transfer import BlobStore, EdgeClosed, EdgeProgress, EdgeTerms, StoreClosed
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import STALL_S, Channel, ChannelLost
from blitzgw.transport.digests import PieceDigests

log = logging.getLogger(__name__)

Tell = Callable[[EdgeProgress | EdgeClosed], None]
FindStore = Callable[[str], BlobStore | None]

STORE_WAIT_S = 3.0
"""Patience for the store: both ends of an edge, and what fills them, are told at the same time."""

MAX_LOSSES = 4
"""Connections that may be lost one after the other without a piece in between."""

_POLL_S: Final = 0.05


class EdgeFailed(Exception):
    """The edge cannot go on; the message is for the operator."""


class EdgeEnd(ABC):
    """One end of an edge. `start` it once; `close` ends it, from any thread."""

    path_s = STALL_S
    """How long the network may leave bytes of the edge unacknowledged."""

    def __init__(self, terms: EdgeTerms, tell: Tell) -> None:
        self.terms, self._tell = terms, tell
        self._closed = threading.Event()
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._payload_bytes = 0
        self._first_at: float | None = None
        self._yielded_s = self._delayed_s = 0.0

    def start(self, ended: Callable[[], None]) -> threading.Thread:
        """Run on a thread of its own, which calls `ended` as the last thing; return the thread."""
        thread = threading.Thread(
            target=self._run, args=(ended,), name=f"edge {self.terms.id}", daemon=True
        )
        thread.start()
        return thread

    def close(self) -> None:
        """End the edge; its thread tells so within a moment."""
        self._closed.set()
        self._end_channel()

    @abstractmethod
    def _work(self) -> None:
        """Do all of it; raises EdgeFailed, StoreClosed, ChannelLost, ProtocolError."""

    def _run(self, ended: Callable[[], None]) -> None:
        reason = "ended by a fault of its own"
        try:
            reason = self._reason()
        except Exception:
            log.exception("edge_failed edge=%s", self.terms.id)
        finally:
            self._let_go()
            ended()
            self._finish(reason)
            self._say_closed(reason)

    def _reason(self) -> str:
        """Do the work and return why it has ended, empty where it is done."""
        try:
            self._work()
        except StoreClosed:
            return "the store is given up"
        except (EdgeFailed, ChannelLost, ProtocolError) as e:
            return "closed" if self._closed.is_set() else str(e)
        return ""

    def _say_closed(self, reason: str) -> None:
        seconds = 0.0 if self._first_at is None else time.monotonic() - self._first_at
        self._say(
            EdgeClosed(
                self.terms.id,
                reason,
                self._payload_bytes,
                seconds,
                self._yielded_s,
                self._delayed_s,
            )
        )

    def _say(self, message: EdgeProgress | EdgeClosed) -> None:
        try:
            self._tell(message)
        except Exception:
            log.exception("edge_news_lost edge=%s", self.terms.id)

    def _count(self, n_bytes: int) -> None:
        if self._first_at is None:
            self._first_at = time.monotonic()
        self._payload_bytes += n_bytes

    def _finish(self, reason: str) -> None:  # noqa: B027
        """Do what is to be done before the last word; must not raise."""

    def _hold(self, channel: Channel) -> None:
        """Make a connection the present one; raises EdgeFailed where the edge is closed."""
        with self._lock:
            self._channel = channel
        if self._closed.is_set():
            raise EdgeFailed("closed")

    def _end_channel(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.end()

    def _let_go(self) -> None:
        """Close the present connection, on the edge's own thread."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class StoreEnd(EdgeEnd):
    """One end of an edge between stores."""

    def __init__(
        self, terms: EdgeTerms, stores: FindStore, digests: PieceDigests, tell: Tell
    ) -> None:
        super().__init__(terms, tell)
        self._stores, self._digests = stores, digests

    def _store(self) -> BlobStore:
        """Return the store of the edge's weights, and wait a little for it."""
        deadline = time.monotonic() + STORE_WAIT_S
        while True:
            store = self._stores(self.terms.weights)
            if store is not None:
                return store
            if time.monotonic() > deadline or self._closed.wait(_POLL_S):
                raise EdgeFailed("there is no store of these weights")
