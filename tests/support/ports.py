"""Ports for processes that are told where to listen."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Collection

PORTS = range(20_000, 26_000)
"""Below those that the system gives out by itself, so that nobody takes one while its process
starts, or is restarted; one more for each, PORTS.stop and above, is left where it needs a second.
"""


def free_port(taken: Collection[int] = ()) -> int:
    """Return a port that is free for UDP and TCP on loopback."""
    while True:
        port = random.choice(PORTS)
        if port in taken:
            continue
        with (
            contextlib.suppress(OSError),
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.socket() as tcp,
        ):
            udp.bind(("127.0.0.1", port))
            tcp.bind(("127.0.0.1", port))
            return port
