"""Processes that tell in their output when they see each other come and go.

Every line is stamped when it arrives here, on the machine's monotonic clock, so that products whose
logs have other formats, or whole seconds, are measured alike.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.support.ports import free_port

PATIENCE_S = 60.0
POLL_S = 0.02
END_S = 10.0
KEPT_LINES = 40


class FleetFailed(Exception):
    """A process ended by itself, or something did not come to pass; its last lines follow."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A line that says what one process believes of another."""

    at_s: float
    observer: str
    whom: str
    status: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A product. `command` gets name, port and seed (empty for the first) and returns a command.

    `up` matches the line that says that a process listens; each of `statuses` a line that says what
    is believed of the group `name`, by status.
    """

    name: str
    command: Callable[[str, int, str], Sequence[str]]
    up: re.Pattern[str]
    statuses: Mapping[str, re.Pattern[str]]


class Watched:
    """A process whose lines go to `on_line` with the time of their arrival, from a thread."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        on_line: Callable[[float, str], None] = lambda *_: None,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        self.process = subprocess.Popen(
            [*_dying_with_us(), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **env},
            start_new_session=True,  # ^C is for this process, which ends the others in order
        )
        self.pid = self.process.pid
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def tell(self, line: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self) -> float:
        """Kill it; return when."""
        at_s = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at_s

    def close(self, deadline_s: float) -> None:
        """Wait until it has ended, killing it after the deadline."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline_s - time.monotonic()))
        self.process.kill()
        self.process.wait()
        self._thread.join(END_S)  # its pipe has ended, unless a grandchild holds it
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            at_s = time.monotonic()
            self.tail.append(line.rstrip())
            self._on_line(at_s, line)


class Fleet:
    """Processes of one kind by name, each with a port that it keeps; all join the first."""

    def __init__(
        self,
        kind: Kind,
        env: Mapping[str, str],
        on_line: Callable[[str, float, str], None] = lambda *_: None,
    ) -> None:
        self._kind, self._env, self._on_line = kind, env, on_line
        self._ports: dict[str, int] = {}
        self.running: dict[str, Watched] = {}
        self.up_s: dict[str, float] = {}
        self.sightings: list[Sighting] = []

    def start(self, name: str) -> None:
        """Start a process, or one in the place of another that has ended."""
        seed = next(iter(self._ports.values()), None)
        port = self._ports.setdefault(name, free_port(self._ports.values()))
        self.up_s.pop(name, None)
        command = self._kind.command(
            name, port, "" if seed in {None, port} else f"127.0.0.1:{seed}"
        )
        self.running[name] = Watched(command, self._env, self._hearing(name))

    def start_all(self, count: int) -> None:
        """Start the first process, and then all others at once."""
        for number in range(count):
            self.start(f"n{number}")
            if number == 0:
                self.await_up()
        self.await_up()

    def kill(self, name: str) -> float:
        """Kill a process; return when."""
        return self.running.pop(name).kill()

    def await_up(self) -> float:
        """Wait until all listen; return when the last of them did."""
        self.until(lambda: self.up_s.keys() >= self.running.keys(), "all listening")
        return max(self.up_s.values())

    def await_sightings(
        self, pairs: Sequence[tuple[str, str]], status: str, since_s: float
    ) -> float:
        """Wait until each (observer, whom) has been told of; return when the last of them was."""
        told: dict[tuple[str, str], float] = {}

        def complete() -> bool:
            for one in self._after(since_s, status):
                told.setdefault((one.observer, one.whom), one.at_s)
            return all(pair in told for pair in pairs)

        self.until(complete, f"news that others are {status}")
        return max(told[pair] for pair in pairs)

    def count(self, status: str, since_s: float) -> int:
        """How often anybody has believed that of anybody since then."""
        return len(self._after(since_s, status))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait; raises FleetFailed."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for name, one in self.running.items():
                if one.process.poll() is not None:
                    raise FleetFailed(f"{self._kind.name} {name} has ended\n" + "\n".join(one.tail))
            if time.monotonic() > deadline:
                raise FleetFailed(f"no {what} in {PATIENCE_S} s\n{self.tails()}")
            time.sleep(POLL_S)

    def tails(self) -> str:
        """The last lines of all processes."""
        tails = [f"-- {n}\n" + "\n".join(w.tail) for n, w in self.running.items()]
        return "\n".join(tails)

    def close(self) -> None:
        """End all processes, by their ids, and wait for them."""
        for one in self.running.values():
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + END_S
        for one in self.running.values():
            one.close(deadline_s)

    def _after(self, since_s: float, status: str) -> list[Sighting]:
        return [one for one in [*self.sightings] if one.at_s >= since_s and one.status == status]

    def _hearing(self, name: str) -> Callable[[float, str], None]:
        def hear(at_s: float, line: str) -> None:
            if self._kind.up.search(line):
                self.up_s[name] = at_s
            for status, pattern in self._kind.statuses.items():
                if found := pattern.search(line):
                    self.sightings.append(Sighting(at_s, name, found["name"], status))
            self._on_line(name, at_s, line)

        return hear


@contextlib.contextmanager
def fleet(
    kind: Kind,
    env: Mapping[str, str],
    on_line: Callable[[str, float, str], None] = lambda *_: None,
) -> Iterator[Fleet]:
    """An empty fleet; whatever happens, nothing of it is left at the end."""
    made = Fleet(kind, env, on_line)
    try:
        yield made
    finally:
        made.close()


def _dying_with_us() -> list[str]:
    """What to put before a command so that it ends even where this process is killed."""
    tool = shutil.which("setpriv")
    return [tool, "--pdeathsig", "KILL", "--"] if tool else []
