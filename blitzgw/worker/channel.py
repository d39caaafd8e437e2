"""The worker's end of the socket to its parent: blocking, one reader, any number of senders."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

from blitzgw.errors import WorkerLost
from blitzgw.wire import FrameBuffer, pack

RECEIVE_BYTES = 1 << 18
"""Bytes taken at once: the usual size of a local socket's buffer."""


class Channel:
    """Messages over a connected socket. The end of the connection is the end of the worker."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; waits while the parent does not read.

        Raises WorkerLost when the connection has ended, ProtocolError for a message too large.
        """
        frame = pack(message)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError as e:
            raise WorkerLost(f"the parent is gone: {e}") from e

    def receive(self) -> Iterator[Any]:
        """Yield messages until the connection ends. Raises ProtocolError for anything else."""
        frames = FrameBuffer()
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except OSError:
                return
            if not data:
                return
            yield from frames.feed(data)
