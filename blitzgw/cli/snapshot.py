"""What `blitzgw top` looks at: the whole cluster at one moment, as one node tells it."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

from blitzgw.cli.ask import Asker
from blitzgw.cli.grid import guarded
from blitzgw.cli.units import unix_now
from blitzgw.errors import BlitzError

POLL_S = 0.5
"""From one answer to the next question: people see no more, and owners are asked each time."""

PATIENCE_S = 5.0
"""For one answer: a node that is asked asks owners in turn, which it waits for less long."""

LEAVE_S = 0.2
"""How long the end waits for a question under way, which ends by itself within PATIENCE_S."""

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster as it was at `at_s` (Unix time).

    `missing` is what the node did not tell of. `problem` says why nothing newer has come for
    `silent_s`; empty: it has.
    """

    url: str
    at_s: float
    nodes: tuple[Item, ...]
    instances: tuple[Item, ...]
    models: tuple[Item, ...]
    why: tuple[Item, ...] = ()
    operations: tuple[Item, ...] = ()
    missing: tuple[str, ...] = ()
    problem: str = ""
    silent_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


@guarded
def look(asker: Asker) -> Snapshot:
    """Ask a node about its cluster. Raises BlitzError where it does not tell the most of it.

    Owners are asked for the rest, so that it may be missing while the node itself is well.
    """
    nodes, instances, models = (
        _told(asker, what, what) for what in ("nodes", "instances", "models")
    )
    missing: list[str] = []
    why, operations = (
        _if_told(asker, what, key, missing)
        for what, key in (("why", "models"), ("operations", "operations"))
    )
    return Snapshot(
        asker.url, unix_now(), nodes, instances, models, why, operations, tuple(missing)
    )


def _told(asker: Asker, what: str, key: str) -> tuple[Item, ...]:
    return tuple(asker.get(f"/cluster/{what}")[key])


def _if_told(asker: Asker, what: str, key: str, missing: list[str]) -> tuple[Item, ...]:
    """Return what a node tells; nothing, and a note of that, where it does not."""
    try:
        return _told(asker, what, key)
    except BlitzError:
        missing.append(what)
        return ()


class Poller:
    """Looks again and again in a thread, which ends with the context that it is used as.

    A node out of reach is asked on: the last snapshot stays, with what went wrong.
    """

    def __init__(self, asker: Asker, first: Snapshot) -> None:
        self._asker = asker
        self._last = first
        self._came = time.monotonic()
        self._problem = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top-poller", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(LEAVE_S)

    def latest(self) -> Snapshot:
        """Return the last snapshot, and what has been wrong since."""
        with self._lock:
            if not self._problem:
                return self._last
            silent_s = time.monotonic() - self._came
            return replace(self._last, problem=self._problem, silent_s=silent_s)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                snapshot = look(self._asker)
            except BlitzError as error:
                with self._lock:
                    self._problem = str(error) or type(error).__name__
                continue
            with self._lock:
                self._last, self._came, self._problem = snapshot, time.monotonic(), ""
