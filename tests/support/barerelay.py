"""What a chain of bare sockets does on a testbed: the floor that transfers are compared with.

Run as a program it is one member of a chain: it listens, takes bytes from the one before (or makes
them up) and passes them on as they come, with one thread for each direction and neither digests nor
plans. It prints when it had all (the first one, when it began), on the machine's monotonic clock.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.testbed import Testbed

PORT = 7000
CHUNK_BYTES = 1 << 20
PATIENCE_S = 120.0


class _Progress:
    """How much has come, for the thread that passes it on."""

    def __init__(self, size: int, go: Path | None) -> None:
        self.data = bytearray(size)
        self.go = go
        self._have = size if go else 0
        self._changed = threading.Condition()

    def begin(self) -> None:
        """Wait until all are connected, where this is the first of the chain."""
        if self.go is not None:
            while not self.go.exists():
                time.sleep(0.005)
            _tell("done", time.monotonic())

    def advance(self, count: int) -> None:
        with self._changed:
            self._have += count
            self._changed.notify_all()

    def beyond(self, offset: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._have > offset, PATIENCE_S)
            return self._have


def _tuned(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return sock


def _receive(sock: socket.socket, progress: _Progress) -> None:
    view, done = memoryview(progress.data), 0
    while done < len(view):
        count = sock.recv_into(view[done : done + CHUNK_BYTES], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("the one before has ended")
        done += count
        progress.advance(count)


def _send(listener: socket.socket, progress: _Progress) -> None:
    sock, _ = listener.accept()
    view, done = memoryview(progress.data), 0
    progress.begin()
    with _tuned(sock):
        while done < len(view):
            upto = progress.beyond(done)
            sock.sendall(view[done:upto])
            done = upto
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)  # until the other end has closed


def member(size: int, address: str, before: str, go: Path, *, last: bool) -> None:
    """Be one member of a chain; `before` is the address of the one before, empty for the first.

    The first one begins when there is a file `go`.
    """
    progress = _Progress(size, None if before else go)
    with socket.create_server((address, PORT)) as listener:
        sender = threading.Thread(target=_send, args=(listener, progress))
        if not last:
            sender.start()
        _tell("listening", time.monotonic())
        if before:
            with _tuned(socket.create_connection((before, PORT), PATIENCE_S)) as sock:
                _tell("connected", time.monotonic())
                _receive(sock, progress)
            _tell("done", time.monotonic())
        if not last:
            sender.join()


def _tell(event: str, at_s: float) -> None:
    print(json.dumps({"event": event, "at": at_s}), flush=True)


def chain(bed: Testbed, size: int, nodes: Sequence[int]) -> float:
    """Send bytes along a chain of nodes; return the seconds until the last one has them."""
    logs = [bed.folder / f"bare{node}.log" for node in nodes]
    go = bed.folder / "go"
    go.unlink(missing_ok=True)
    for place, node in enumerate(nodes):
        before = bed.address(nodes[place - 1]) if place else ""
        last = "last" if node == nodes[-1] else ""
        words = [sys.executable, __file__, str(size), bed.address(node), before, str(go), last]
        logs[place].unlink(missing_ok=True)
        bed.start(node, words, {}, logs[place])
        _await(logs[place], "connected" if place else "listening")
    go.touch()
    told_s = [_await(log, "done") for log in logs]
    for node in nodes:
        bed.end(node)
    return max(told_s) - told_s[0]


def _await(log: Path, event: str) -> float:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for line in log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                told = json.loads(line)
                if told["event"] == event:
                    return float(told["at"])
        time.sleep(0.02)
    raise TimeoutError(f"no {event!r} in {log.name}: {log.read_text()[-2000:]}")


def _dial(address: str) -> socket.socket:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((address, PORT), PATIENCE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.05)


if __name__ == "__main__":
    member(int(sys.argv[1]), *sys.argv[2:4], Path(sys.argv[4]), last=bool(sys.argv[5]))
