"""The one thread of a GPU that calls NCCL: it launches, asks how far things are, and aborts.

Two ranks that launch in different orders wait for each other for ever, so one thread launches all,
receives before sends, and a link carries bytes one way only. It waits for nothing: every link is
asked again each POLL_S while something is under way, and what is late is aborted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from blitzgw.transport.base import ChannelLost
from blitzgw.transport.nccl_library import Library, NcclFailed, Role
from blitzgw.transport.nccl_pair import Pair, PairState, Transfer
from blitzgw.transport.nccl_run import Run

log = logging.getLogger(__name__)

POLL_S = 0.0001
"""How often links are asked while something is under way: a tenth of what a piece of a megabyte
takes at 1 GB/s. An idle thread sleeps."""

REST_S = 0.005
"""How often while links only warm, which takes 0.2 to 0.6 s."""

MAX_JOBS = 512
"""Jobs that wait to be launched: a few for each of the edges a worker can have. Beyond it whoever
asks is refused, and goes inline."""


class Launcher:
    """The launching thread of one GPU. `start` it once; every other call may come from any thread.

    `wedged` says that an abort was not heeded: from then on everything is refused.
    """

    def __init__(self, library: Library, clock: Callable[[], float] = time.monotonic) -> None:
        self.library = library
        self.wedged = False
        self._clock = clock
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._stopped = False
        self._runs: dict[Pair, Run] = {}
        self.thread = threading.Thread(target=self._work, name="nccl", daemon=True)

    def start(self) -> None:
        """Start the thread; `stop` ends it."""
        self.thread.start()

    def connect(self, unique_id: bytes, role: Role) -> Pair:
        """Begin to warm a pair; raises ChannelLost where that is refused."""
        pair = Pair(role)
        self._submit(_Job(pair, unique_id=unique_id))
        return pair

    def transfer(self, pair: Pair, pointer: int, size_bytes: int, keep: object) -> Transfer:
        """Launch a transfer behind those before it on its pair; raises ChannelLost if refused."""
        transfer = Transfer(pair, pointer, size_bytes, keep)
        self._submit(_Job(pair, transfer=transfer))
        return transfer

    def abort(self, pair: Pair, why: str) -> None:
        """End a pair and all that is under way on it; returns at once."""
        with self._changed:
            if not self._stopped:
                self._jobs.appendleft(_Job(pair, why=why))
                self._changed.notify()

    def give_up(self) -> None:
        """Refuse everything from now on: NCCL holds the thread, or the device is wedged."""
        self.wedged = True

    def stop(self) -> None:
        """End all pairs, then the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """Wait, after `stop`, for the thread to end; return whether it has."""
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._stopped or self.wedged:
                raise ChannelLost("NCCL is not used any more in this process")
            if len(self._jobs) >= MAX_JOBS:
                raise ChannelLost("too much to launch")
            self._jobs.append(job)
            self._changed.notify()

    def _work(self) -> None:
        try:
            self.library.use()
            while (jobs := self._next()) is not None:
                for job in jobs:
                    self._begin(job)
                self._look()
        except Exception:
            log.exception("nccl_thread_failed")
        finally:
            self._end_all()

    def _next(self) -> list[_Job] | None:
        """Return new jobs, after POLL_S if there are none but something is under way."""
        with self._changed:
            if not self._jobs and not self._stopped:
                self._changed.wait(self._pause_s())  # None: until there is a job, or `stop`
            if self._stopped:
                return None
            jobs = list(self._jobs)
            self._jobs.clear()
        return sorted(jobs, key=lambda job: job.turn)

    def _pause_s(self) -> float | None:
        runs = [run for run in self._runs.values() if run.is_busy]
        if not runs:
            return None
        return REST_S if all(run.is_warming for run in runs) else POLL_S

    def _begin(self, job: _Job) -> None:
        if job.unique_id:
            self._connect(job.pair, job.unique_id)
            return
        run = self._runs.get(job.pair)
        if run is None:
            if job.transfer is not None:
                job.transfer.end(job.pair.why or "the pair is gone")
        elif job.transfer is not None:
            run.add(job.transfer)
        else:
            run.end(job.why, self._clock())

    def _connect(self, pair: Pair, unique_id: bytes) -> None:
        try:
            link = self.library.link(unique_id, pair.role)
        except NcclFailed as e:
            log.warning("nccl_no_pair role=%s error=%r", pair.role.name, str(e))
            pair.move(PairState.BROKEN, str(e))
        else:
            self._runs[pair] = Run(pair, link, self._clock())

    def _look(self) -> None:
        """Ask all links how far they are: the receiving ones first, so they launch first."""
        now = self._clock()
        for run in sorted(self._runs.values(), key=lambda run: -run.pair.role):
            run.look(now)
            if run.is_over:
                self.wedged |= run.is_wedged
                del self._runs[run.pair]

    def _end_all(self) -> None:
        """Abort everything, and wait a little for the device to let go of it."""
        with self._changed:
            self._stopped = True
            jobs = list(self._jobs)
            self._jobs.clear()
        for run in self._runs.values():
            run.end("this worker is stopping", self._clock())
        while self._runs:  # each has drained, or is given up, after DRAIN_S
            self._look()
            time.sleep(POLL_S)
        for job in jobs:
            if job.transfer is not None:
                job.transfer.end("this worker is stopping")
            if job.unique_id:
                job.pair.move(PairState.BROKEN, "this worker is stopping")


class _Job:
    """What the thread is asked to do: exactly one of the three."""

    def __init__(
        self,
        pair: Pair,
        *,
        unique_id: bytes = b"",
        transfer: Transfer | None = None,
        why: str = "",
    ) -> None:
        self.pair, self.unique_id, self.transfer, self.why = pair, unique_id, transfer, why

    @property
    def turn(self) -> int:
        """New links first, what ends them last: a job never overtakes one of its own pair."""
        if self.unique_id:
            return 0
        return 2 if self.transfer is None else 1
