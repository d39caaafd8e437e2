"""`blitzgw simulate trace --parts`: a cell by several processes; parts are kept as they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.queues import SimpleQueue
from typing import Any

from blitzgw.cli.local import follow_parent
from blitzgw.cli.simulating import no_collector
from blitzgw.errors import BlitzError
from blitzgw.sim.cluster.cell import duration_s, setup_of
from blitzgw.sim.cluster.parts import Part, counted, joined, parts_of, setup_of_part
from blitzgw.sim.cluster.setup import Latencies
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.store import Store

TOLD_S = 0.5
"""Between two lines of progress, on the wall."""

ENDED = (
    "a process that simulated a part was ended from outside, perhaps because memory is short;"
    " with --out, parts that are done are not simulated again"
)

Told = SimpleQueue[tuple[int, float]]
_told: Told | None = None
"""Where a process says how far its parts are: (part, share)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is simulated in parts."""

    about: Mapping[str, Any]
    system: str
    seed: int
    latencies: Latencies


def simulate_parts(
    cell: Cell, count: int, store: Store | None, progress: Callable[[float, str], None]
) -> Record:
    """Simulate a cell in so many parts, on all cores; those that a store has are not begun again.

    ^C ends all processes. Raises OSError for the store, BlitzError if a process is killed.
    """
    parts = parts_of(duration_s(cell.about), count)
    found: dict[int, Record] = {}
    if store is not None:
        kept = {part.number: store.get(*_key(cell, part, count)) for part in parts}
        found = {number: record for number, record in kept.items() if record is not None}
    shares = {part.number: 0.0 for part in parts if part.number not in found}
    told: Told = get_context("spawn").SimpleQueue()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with _processes(min(cores, count), told) as pool:
        with _interrupts_wait():
            running = {
                pool.submit(_simulated, cell, parts[number]): parts[number] for number in shares
            }
        while running:
            over, _ = wait(running, TOLD_S, FIRST_COMPLETED)
            while not told.empty():
                number, share = told.get()
                shares[number] = share
            for future in sorted(over, key=_has_failed):  # what is done is kept, whatever fails
                part = running.pop(future)
                found[part.number] = record = future.result()
                shares[part.number] = 1.0
                if store is not None:
                    store.put(record, _key(cell, part, count)[2])
            progress(sum(shares.values()) / len(shares), f"{len(found)} of {count} parts")
    ordered = [found[part.number] for part in parts]
    return joined(ordered, cell.system, cell.seed, cell.about)


@contextmanager
def _processes(count: int, told: Told) -> Iterator[ProcessPoolExecutor]:
    """Have processes, and end them whatever they do where this is left by an exception."""
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (os.getpid(), told)) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise BlitzError(ENDED) from None
            raise


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Have ^C wait, here and in processes that are started.

    A terminal sends it to them too, and until they ignore it they would tell of it.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _has_failed(future: Future[Record]) -> bool:
    return future.exception() is not None


def _key(cell: Cell, part: Part, count: int) -> tuple[str, int, str]:
    return cell.system, cell.seed, f"{part.number + 1}-of-{count}"


def _begin(parent: int, told: Told) -> None:
    """Begin a process: it ends with its parent, however that ends."""
    global _told  # noqa: PLW0603  a process has one
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    try:
        follow_parent(parent)
    except BlitzError:
        os._exit(1)  # it has gone already, and nobody is left to tell


def _simulated(cell: Cell, part: Part) -> Record:
    """Simulate one part."""

    def progress(share: float, _what: str) -> None:
        if _told is not None:
            _told.put((part.number, share))

    setup = setup_of(cell.about, SYSTEMS[cell.system], cell.seed, cell.latencies)
    with no_collector():
        record = counted(simulate_cluster(setup_of_part(setup, part), progress), part)
    record.seed = cell.seed
    return record
