"""Processes that belong together: started, listened to, told to stop, and reported on.

The main thread starts them and looks after them a few times a second; a thread for each passes its
output on. Their standard input is empty, and they do not belong to the terminal's foreground group,
so that ^C reaches them through this process alone, once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

import click

from blitzgw.cli.local import LocalNode
from blitzgw.cli.output import columns

POLL_S = 0.1
"""How often signals, ends and readiness are looked at: soon for people, little for the machine."""

PROBE_TIMEOUT_S = 0.5
"""A node of this machine answers in milliseconds, but not while a busy machine starts several."""

STOP_SLACK_S = 20.0
"""What a node may take to end beyond its own patience with running streams."""

FORCE_S = 5.0
"""What it may take once it was told to hurry."""

LAST_WORDS_S = 1.0
"""What is left in the pipe of a process that has ended is read at once."""

MAX_LINE_BYTES = 1 << 16
"""Longer lines of output are broken, so that nobody's output is collected without end."""

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red")

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

QUIET_ENDS = (0, EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a node that was told to stop; not 0 where it had not quite started."""


class Child:
    """One node's process and the thread that passes its output on."""

    def __init__(self, node: LocalNode, environment: dict[str, str], output: Output) -> None:
        self.node = node
        self.ready = False
        self.code: int | None = None
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and options
            node.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=output.relay, args=(node.name, self._process.stdout), daemon=True
        )
        self._reader.start()

    def has_ended(self) -> bool:
        """Say whether it has ended since this was asked last."""
        if self.code is not None or self._process.poll() is None:
            return False
        self.code = self._process.returncode
        self._reader.join(LAST_WORDS_S)
        return True

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        with contextlib.suppress(OSError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once and wait for that; its workers end with it."""
        self.send(signal.SIGKILL)
        self._process.wait()  # bounded: nothing survives SIGKILL for long
        self._reader.join(LAST_WORDS_S)


class Output:
    """Standard error, shared: whole lines, each with the name of whose it is."""

    def __init__(self, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        width = max(map(len, names))
        self._prefixes = {name: f"{name:<{width}} |" for name in names}
        if not os.environ.get("NO_COLOR"):
            for i, name in enumerate(names):
                colour = COLOURS[i % len(COLOURS)]
                self._prefixes[name] = click.style(self._prefixes[name], fg=colour)

    def relay(self, name: str, stream: IO[bytes]) -> None:
        """Pass lines on to the end of a stream, whether anybody can still read them or not."""
        with stream:
            while line := stream.readline(MAX_LINE_BYTES):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                self.say(f"{self._prefixes[name]} {text}")

    def say(self, text: str) -> None:
        """Write a line; click drops its colours where there is no terminal."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            click.echo(text, err=True)


class Children:
    """The nodes of one `--local-nodes`. `drain_s` is their patience with running streams."""

    def __init__(
        self,
        nodes: Sequence[LocalNode],
        environment: dict[str, str],
        drain_s: float,
        api_key: str = "",
    ) -> None:
        self._nodes = nodes
        self._environment = environment
        self._drain_s = drain_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._output = Output([node.name for node in nodes])
        self._children: list[Child] = []
        self._signals: list[int] = []
        self._obeyed = 0
        self._deadline = float("inf")
        self._announced = False

    def run(self) -> int:
        """Start all, and stay until all have ended; return the exit code."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            for node in self._nodes:
                self._children.append(Child(node, self._environment, self._output))
            while any(child.code is None for child in self._children):
                self._look()
                time.sleep(POLL_S)
        finally:
            for child in self._children:
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._exit_code()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _look(self) -> None:
        for child in self._children:
            if child.has_ended():
                self._report(child)
        while self._obeyed < len(self._signals):
            self._obey(self._signals[self._obeyed])
            self._obeyed += 1
        if time.monotonic() > self._deadline:
            self._send(signal.SIGKILL)
        if not self._signals and not self._announced:
            self._await_ready()

    def _obey(self, number: int) -> None:
        """Stop: the first time gracefully, the second time hurrying, then at once."""
        now = time.monotonic()
        if self._obeyed == 0:
            self._deadline = now + self._drain_s + STOP_SLACK_S
            self._send(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        elif self._obeyed == 1:
            self._deadline = now + FORCE_S
            self._send(signal.SIGINT)  # a node hurries for ^C alone
        else:
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for child in self._children:
            child.send(number)

    def _report(self, child: Child) -> None:
        if self._signals and child.code in QUIET_ENDS:
            return
        living = sum(other.code is None for other in self._children)
        rest = f"; {living} of {len(self._children)} go on" if living else ""
        self._output.say(f"blitzgw: {child.node.name} {_end(child.code)}{rest}")

    def _await_ready(self) -> None:
        """Look at the next node that is not ready; once there is none, say where they are."""
        living = [child for child in self._children if child.code is None]
        waiting = [child for child in living if not child.ready]
        if waiting:
            waiting[0].ready = self._is_ready(waiting[0].node)
        if living and all(child.ready for child in living):
            self._announced = True
            self._output.say(f"\n{self._table()}\n")

    def _table(self) -> str:
        rows = [
            [child.node.name, child.node.url if child.code is None else _end(child.code)]
            for child in self._children
        ]
        url = next(child.node.url for child in self._children if child.code is None)
        count = sum(child.code is None for child in self._children)
        title = "Ready:" if count == 1 else f"Ready, {count} nodes:"
        return f"{title}\n{columns(rows, indent=2)}\n\nblitzgw inspect nodes --url {url}"

    def _is_ready(self, node: LocalNode) -> bool:
        """Say whether that very node takes requests, not somebody else at its port."""
        connection = http.client.HTTPConnection(node.host, node.port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/ready", headers=self._headers)
            response = connection.getresponse()
            return response.status == 200 and response.headers["x-blitzgw-node"] == node.name
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _exit_code(self) -> int:
        codes = [child.code for child in self._children]
        if len(self._signals) > 1:
            return EXIT_INTERRUPTED
        well = QUIET_ENDS if self._signals else (0,)
        return 0 if all(code in well for code in codes) else EXIT_FAILED


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
