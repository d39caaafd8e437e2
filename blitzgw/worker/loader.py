"""Brings models into memory beside the steps that run: a thread for each load.

    new engine → blobs, in the order in which they arrive → (all of them) → warm-up, by the worker

Where the blobs come from is nothing to the load: a disk, a host copy and peers all announce them
in the same way, once they have been checked. Only those that were in the machine's memory when it
began are taken one by one, as fast as that may be read.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blitzgw.core.messages import BlobResident, LoadModel
from blitzgw.core.transfer import BlobChecked, StoreClosed
from blitzgw.worker.executor import Engine
from blitzgw.worker.faults import Cancelled, describe
from blitzgw.worker.holding import Holding
from blitzgw.worker.pacing import Pace
from blitzgw.worker.reads import DiskReads, Read

MAX_LOADS = 64
"""Models that may be loading; a worker holds a handful, so more is a mistake of the parent."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """The end of a load before its last blob; `why` is empty where nobody waits for it."""

    why: str


@dataclass(slots=True, eq=False)
class Load:
    """One `LoadModel`: when it began, the blobs that have arrived, and whether it is wanted.

    `holding` are the weights that it shares with others; None where no manifest is known.
    `in_memory` are those of its blobs that a host copy has had when it began. `removed` is the
    main thread's: no step will run on it any more, whenever it was cancelled.
    """

    message: LoadModel
    started: float
    holding: Holding | None = None
    in_memory: frozenset[int] = frozenset()
    cancelled: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[int | _Stop] = field(default_factory=queue.SimpleQueue)
    removed: bool = False

    def arrived(self, index: int) -> None:
        """Note a blob that is there and checked. From any thread, at once.

        Raises Cancelled when the load is not wanted any more.
        """
        if self.cancelled.is_set():
            raise Cancelled
        self.events.put(index)  # at most one for each blob

    def announce(self, index: int) -> None:
        """Note a blob, whether or not the load is still wanted."""
        self.events.put(index)

    def fail(self, why: str) -> None:
        """End it with `LoadFailed`."""
        self.events.put(_Stop(why))

    def cancel(self) -> None:
        """End it without a word."""
        self.cancelled.set()
        self.events.put(_Stop(""))


@dataclass(frozen=True, slots=True)
class LoadHooks:
    """What a load asks of its worker. All are called on the load's thread.

    `over` is called last, when nothing of the load is left on its thread.
    """

    new_engine: Callable[[LoadModel, memoryview | None], Engine]
    created: Callable[[Load, Engine], None]
    loaded: Callable[[Load], None]
    failed: Callable[[Load, str], None]
    over: Callable[[Load], None]
    send: Callable[[Any], None]


class Loader:
    """Carries out loads, each on a thread of its own that ends with it."""

    def __init__(self, hooks: LoadHooks, reads: DiskReads, host: Pace) -> None:
        self._hooks, self._reads, self._host = hooks, reads, host

    def start(self, load: Load) -> None:
        """Begin a load; whoever does so cancels it when it is not wanted any more."""
        name = f"load-{load.message.instance}"[:64]
        threading.Thread(target=self._run, args=(load,), name=name, daemon=True).start()

    def _run(self, load: Load) -> None:
        why = None
        try:
            why = self._load(load)
        except Exception as error:
            why = describe(error)
        # Only here has the traceback gone, and with it the last hold on the engine's memory.
        if why and not load.cancelled.is_set():
            self._hooks.failed(load, why)
        self._hooks.over(load)

    def _load(self, load: Load) -> str:
        """Return why the load has failed; nothing where it has not, or nobody cares."""
        if load.cancelled.is_set():
            return ""
        holding = load.holding
        try:
            memory = None if holding is None else holding.slab.memory
            engine = self._hooks.new_engine(load.message, memory)
            del memory
            self._hooks.created(load, engine)
            if holding is None:
                self._reads.submit(_unchecked(load, engine))
                return self._take_blobs(load, engine, None)
            is_source = holding.slab.attach(engine)
            return self._take_blobs(load, engine, None if is_source else holding)
        except StoreClosed:  # with the last user of it, which was this
            return ""

    def _take_blobs(self, load: Load, engine: Engine, source: Holding | None) -> str:
        """Make blobs usable as they come; with a source, they are copied from there first."""
        missing = set(range(load.message.model.shape.n_layers + 2))
        coming = _Coming(load, self._host)
        while missing:
            event = coming.next()
            if isinstance(event, _Stop):
                return event.why
            if event in missing and not load.cancelled.is_set():
                if source is not None:
                    engine.blob_buffer(event)[:] = source.store.view(event)
                engine.blob_arrived(event)
                missing.discard(event)
                self._tell(load, event)
        self._hooks.loaded(load)
        return ""

    def _tell(self, load: Load, index: int) -> None:
        number, holding = load.message.load, load.holding
        if holding is not None and index in load.in_memory:  # it was told of long before
            self._hooks.send(BlobChecked(holding.weights, index, number))
        self._hooks.send(BlobResident(load.message.instance, index, number))


class _Coming:
    """The events of a load, but that blobs from a host copy wait their turn, the first one first.

    Meanwhile others overtake them, and the end does.
    """

    def __init__(self, load: Load, host: Pace) -> None:
        self._load, self._host = load, host
        self._waiting: list[int] = []
        self._due: tuple[float, int] | None = None

    def next(self) -> int | _Stop:
        """Return the next event; unbounded on purpose: peers may take their time."""
        while True:
            try:
                event = self._load.events.get(timeout=self._left_s())
            except queue.Empty:
                assert self._due is not None
                (_, index), self._due = self._due, None
                return index
            if isinstance(event, _Stop) or not self._waits(event):
                return event
            heapq.heappush(self._waiting, event)

    def _waits(self, index: int) -> bool:
        return self._host.limited and index in self._load.in_memory

    def _left_s(self) -> float | None:
        """Return how long until the next of those that wait is there; None: none waits."""
        if self._due is None and self._waiting:
            index = heapq.heappop(self._waiting)
            self._due = self._host.due(self._load.message.blobs[index].size_bytes), index
        return None if self._due is None else max(0.0, self._due[0] - time.monotonic())


def _unchecked(load: Load, engine: Engine) -> Read:
    """Return how an instance is read whose manifest is not known: straight into its engine."""
    model, reads = load.message.model, load.message.reads
    return Read(
        model,
        range(model.shape.n_layers + 2) if reads is None else reads,
        lacking=lambda index: not load.cancelled.is_set(),  # noqa: ARG005
        buffer=engine.blob_buffer,
        arrived=load.arrived,
        failed=load.fail,
    )
