"""A worker's main thread: it executes steps, and knows the instances that they are for."""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from blitzgw.core.messages import (
    LoadFailed,
    ModelLoaded,
    Start,
    StepFailed,
    UnloadModel,
)
from blitzgw.core.model import Dtype, ModelShape
from blitzgw.core.parcels import PARCELS, DropParcels
from blitzgw.core.step import Step
from blitzgw.core.transfer import OpenSend
from blitzgw.engine.grammar import Grammars
from blitzgw.errors import ProtocolError, WorkerLost
from blitzgw.weights.tokens import read_tokens
from blitzgw.worker.channel import Channel
from blitzgw.worker.devices import Device
from blitzgw.worker.execution import Begun, Executor
from blitzgw.worker.executor import Engine, InstanceExecutor, StepRefused
from blitzgw.worker.faults import describe
from blitzgw.worker.keeper import Keeper
from blitzgw.worker.loader import MAX_LOADS, Load, LoadHooks
from blitzgw.worker.parcels import Inbox, Roads

EXIT_INTERNAL = 70
"""An error that the process cannot live with (EX_SOFTWARE)."""

MAX_JOBS = 4096
"""Commands that may wait for the main thread; a scheduler posts a few steps ahead."""

MAX_UNDER_WAY = 2
"""Steps that are begun and not answered: one that the device computes, and one behind it."""

POLL_S = 1e-4
"""How often a device is asked whether a step is over, while nothing else arrives."""


class Worker:
    """The main thread's state: the device and the instances. All else is the keeper's."""

    def __init__(
        self, channel: Channel, device: Device, start: Start, now: Callable[[], float]
    ) -> None:
        self._channel, self._device, self._now = channel, device, now
        # in C, so that the main thread wakes sooner; `post` bounds it
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[str, Load] = {}
        hooks = LoadHooks(
            new_engine=lambda load, memory: device.engine(load.model, load.kv, memory),
            created=lambda load, engine: self._jobs.put(partial(self._created, load, engine)),
            loaded=lambda load: self._jobs.put(partial(self._loaded, load)),
            failed=lambda load, why: self._jobs.put(partial(self._load_failed, load, why)),
            over=lambda load: self._jobs.put(partial(self._over, load)),
            send=channel.send,
        )
        forget: Callable[[Load], None] = lambda load: self._jobs.put(  # noqa: E731
            partial(self._remove, load)
        )
        self._inbox = Inbox(self._tell, now)
        self._keeper = Keeper(start, hooks, forget, now, self._inbox)
        self._roads = Roads(self._inbox, self._keeper.edges, self._tell, now)
        self._executor = Executor(now)
        self._under_way: deque[Begun] = deque()
        self._warmed: set[tuple[ModelShape, Dtype]] = set()

    @property
    def data_ports(self) -> dict[str, int]:
        """Where this worker listens for others, by the name of the network."""
        return self._keeper.data_ports

    def run(self) -> NoReturn:
        """Carry out what arrives until the process ends."""
        self._keeper.start()
        while True:
            job = self._next()
            job()
            del job  # it may hold an engine

    def _next(self) -> Callable[[], None]:
        """Return the next job; unbounded on purpose. Meanwhile answer steps that are over.

        Where nothing is posted, and none is over, an engine may use the moment.
        """
        while True:
            patience_s = POLL_S if self._under_way else self._executor.moment_s()
            try:
                return self._jobs.get(timeout=patience_s)
            except queue.Empty:
                if self._under_way and self._under_way[0].is_ready():
                    self._answer()
                elif self._executor.moment_s() == 0:
                    self._executor.use_moment()

    def post(self, message: Any) -> None:
        """Queue a message for its thread; called by the reader. Raises ProtocolError.

        What is unloaded is gone for the steps that follow, and then for the keeper.
        """
        if isinstance(message, Step):
            self._post(partial(self._step, message))
            return
        if isinstance(message, OpenSend) and message.edge.weights == PARCELS:
            self._keeper.edges.open_send(message)  # before steps that send there
            return
        if isinstance(message, DropParcels):  # in order: steps before it import and send them
            self._post(partial(self._roads.drop, message))
            return
        if isinstance(message, UnloadModel):
            self._post(partial(self._unload, message))
        self._keeper.post(message)

    def close(self) -> None:
        """Let go of what the end of the process does not; called by the reader, as the last."""
        self._inbox.close()
        self._keeper.close()

    def _tell(self, message: Any) -> None:
        """Tell the node, on a road's thread; where it is gone, so is this process in a moment."""
        with suppress(WorkerLost):
            self._channel.send(message)

    def _post(self, job: Callable[[], None]) -> None:
        if self._jobs.qsize() >= MAX_JOBS:
            raise ProtocolError(f"more than {MAX_JOBS} commands are waiting")
        self._jobs.put(job)

    def _step(self, step: Step) -> None:
        """Begin a step, and answer those that are over."""
        while len(self._under_way) >= MAX_UNDER_WAY:
            self._answer()
        try:
            self._under_way.append(self._executor.begin(step))
        except Exception as error:
            self._answer_all()  # in the order they were posted in
            self._failed(step, error)
        while self._under_way and self._under_way[0].is_ready():
            self._answer()

    def _answer(self) -> None:
        """Wait for the oldest step under way, and answer it."""
        begun = self._under_way.popleft()
        try:
            result = self._executor.finish(begun)
        except Exception as error:
            self._failed(begun.step, error)
        else:
            self._channel.send(result)

    def _answer_all(self) -> None:
        while self._under_way:
            self._answer()

    def _failed(self, step: Step, error: Exception) -> None:
        why = str(error) if isinstance(error, StepRefused) else describe(error)
        self._channel.send(StepFailed(step.id, step.instance, why))
        if not isinstance(error, StepRefused) and self._device.is_broken(error):
            os._exit(EXIT_INTERNAL)

    def _unload(self, message: UnloadModel) -> None:
        """Forget an instance, whole or half loaded; there is no answer, and none to its load."""
        load = self._owners.get(message.instance)
        if load is not None:
            load.cancelled.set()
            self._remove(load)

    def _created(self, load: Load, engine: Engine) -> None:
        """Note an instance; one that is cancelled serves what was posted before its `_remove`."""
        if not load.removed:
            instance, model = load.message.instance, load.message.model
            self._owners[instance] = load
            self._executor.instances[instance] = InstanceExecutor(
                engine,
                model.shape.n_layers,
                self._roads,
                Grammars(
                    partial(read_tokens, model.tokenizer, model.shape.vocab),
                    model.shape.vocab,
                    model.eos_ids,
                ),
            )

    def _loaded(self, load: Load) -> None:
        if load.cancelled.is_set():
            return
        instance = load.message.instance
        try:
            self._warm_up(load)
        except Exception as error:
            self._load_failed(load, f"the warm-up step failed: {describe(error)}")
        else:
            duration_s = self._now() - load.started
            self._channel.send(ModelLoaded(instance, duration_s, load.message.load))

    def _warm_up(self, load: Load) -> None:
        """Run an instance once, unless this process has run one of that shape.

        What starts lazily belongs to the process, and whoever waits from zero waits for this too.
        """
        kind = load.message.model.shape, load.message.model.dtype
        if kind in self._warmed:
            return
        self._executor.instances[load.message.instance].warm_up()
        if len(self._warmed) < MAX_LOADS:
            self._warmed.add(kind)

    def _load_failed(self, load: Load, why: str) -> None:
        if not load.cancelled.is_set():
            self._remove(load)
            self._keeper.failed(load)
            self._channel.send(LoadFailed(load.message.instance, why, load.message.load))

    def _remove(self, load: Load) -> None:
        """Forget a load's engine, unless the instance's name is another load's by now."""
        instance = load.message.instance
        load.removed = True
        if self._owners.get(instance) is load:
            self._answer_all()
            del self._owners[instance]
            del self._executor.instances[instance]
            if not self._executor.instances:
                self._inbox.clear()
            self._device.reclaim()

    def _over(self, load: Load) -> None:
        if load.cancelled.is_set():
            self._device.reclaim()  # the load's thread has held the engine until now
