"""Keeps one device's worker alive and its instances loaded.

    start → Hello → load what is wanted → … → death → wait → start

    wait_s = min(10, 0.1 · 2ⁿ) after the n-th death in a row; n is 0 again for a worker that lived
    for 60 s.

A crash is answered with a restart, however often. A checkpoint that cannot be loaded is not: the
same bytes would fail again, so the instance waits until somebody asks with `load`.

An instance whose blobs came from peers is read from disk the second time, or mapped from a host
copy: the edges of the first time are gone. Where it has neither, it has failed.

Loads and host copies are numbered. What a worker says of one that has been given up is not heard:
the instance of the same name, or the store of the same weights, that came after it is another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from blitzgw.core.clock import Clock
from blitzgw.core.instance import DeviceSpec
from blitzgw.core.messages import (
    BlobResident,
    Hello,
    LoadFailed,
    LoadModel,
    ModelLoaded,
    Start,
    StepFailed,
    UnloadModel,
)
from blitzgw.core.step import Step, StepResult
from blitzgw.core.transfer import CapWeights, CopyFailed, DataNetwork, DropCopy, HoldCopy
from blitzgw.errors import WorkerLost
from blitzgw.worker.handle import EXIT_GRACE_S, WorkerHandle
from blitzgw.worker.listener import TransferCommand, TransferNews, WorkerListener
from blitzgw.worker.stores import StoreNews, Stores

FIRST_WAIT_S = 0.1
"""Wait after a first death: long enough not to spin, short enough not to be noticed."""

LONGEST_WAIT_S = 10.0
"""Cap of the doubling: how late a device comes back after whatever broke it was mended."""

HEALTHY_S = 60.0
"""A worker that lived this long did not die of what it does at its start."""

HELLO_S = 120.0
"""Longest start: importing torch from a cold disk takes tens of seconds, a hang takes for ever."""


@dataclass(slots=True)
class _Wanted:
    message: LoadModel
    load: int = 0
    """The number under which the present worker has been told; 0: no worker has."""
    failed: bool = False
    resident: set[int] = field(default_factory=set)


class WorkerSupervisor:
    """One device. `start` it once, `stop` it at the end; in between it looks after itself."""

    def __init__(
        self,
        device: DeviceSpec,
        instances: Iterable[LoadModel],
        clock: Clock,
        listener: WorkerListener,
        *,
        dilation: float = 1.0,
        networks: Sequence[DataNetwork] = (),
        copies: str = "",
        weight_bytes_per_s: float = 0.0,
        disk_bytes_per_s: float = 0.0,
        host_bytes_per_s: float = 0.0,
    ) -> None:
        self.device = device
        self._clock, self._listener = clock, listener
        self._start = Start(
            device,
            dilation,
            tuple(networks),
            copies,
            weight_bytes_per_s,
            disk_bytes_per_s,
            host_bytes_per_s,
        )
        self._wanted = {message.instance: _Wanted(message) for message in instances}
        self._loads = 0
        self._stores = Stores()
        self._handle: WorkerHandle | None = None
        self._up = self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None between two of them."""
        return None if self._handle is None else self._handle.pid

    def start(self) -> None:
        """Begin: the first worker is started from the event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the worker and wait until its process is gone. The listener hears nothing more.

        Can be called twice, and again after being cancelled: the end goes on by itself.
        """
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
        await self.join()  # bounded by the handle's grace and SIGKILL

    async def join(self) -> None:
        """Wait for the end, which `stop` brings, or an exception of the listener: it is raised."""
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    def post(self, step: Step) -> None:
        """Send a step without waiting; without a worker it is dropped, as `worker_lost` said."""
        if self._up and self._handle is not None:
            self._handle.post(step)

    def send(self, command: TransferCommand) -> None:
        """Send a command about weights without waiting; without a worker it is dropped.

        A cap on the rate of weights holds for every worker to come.
        """
        if isinstance(command, CapWeights):
            self._start = replace(self._start, weight_bytes_per_s=command.bytes_per_s)
        if not self._up or self._handle is None:
            return
        if isinstance(command, HoldCopy):
            command = replace(command, load=self._next_load())
            self._stores.begin(command.weights, None, command.load)
        elif isinstance(command, DropCopy):
            self._stores.end(command.weights, None)
        self._handle.post(command)

    def load(self, message: LoadModel) -> None:
        """Want an instance, from now on and on every worker to come.

        One that has failed is tried again; one that is wanted already stays as it is.
        """
        known = self._wanted.get(message.instance)
        if known is not None and not known.failed:
            return
        self._wanted[message.instance] = wanted = _Wanted(message)
        if self._up:
            self._post_load(wanted)

    def unload(self, instance: str) -> None:
        """Stop wanting an instance and forget it on the worker."""
        wanted = self._wanted.pop(instance, None)
        if wanted is not None and self._up and self._handle is not None:
            self._stores.end(wanted.message.model.weights, instance)
            self._handle.post(UnloadModel(instance))

    async def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            born = self._clock.now()
            reason = await self._one_life()
            self._listener.worker_lost(reason)
            if self._clock.now() - born >= HEALTHY_S:
                wait_s = FIRST_WAIT_S
            await self._clock.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    async def _one_life(self) -> str:
        """Start a worker, serve until it dies, return why it did."""
        loop = asyncio.get_running_loop()
        hello: asyncio.Future[None] = loop.create_future()
        death: asyncio.Future[str] = loop.create_future()

        def on_message(message: Any) -> None:
            if isinstance(message, Hello) and not hello.done():
                hello.set_result(None)
            self._dispatch(message)

        def on_death(error: WorkerLost) -> None:
            self._up = False
            if not death.done():  # cancelled, when `stop` came first
                death.set_result(str(error))

        try:
            self._handle = handle = await WorkerHandle.start(
                self._start,
                self._clock,
                on_message=on_message,
                on_death=on_death,
            )
        except OSError as error:
            return f"a worker could not be started: {error}"
        try:
            await self._wait_for_either(hello, death, HELLO_S)
            if not hello.done():
                handle.kill(f"was not ready within {HELLO_S:.0f} s")
            return await death  # unbounded on purpose: this is the worker's life
        finally:
            self._up, self._handle = False, None
            await handle.close(EXIT_GRACE_S)

    async def _wait_for_either(
        self, first: asyncio.Future[Any], second: asyncio.Future[Any], patience_s: float
    ) -> None:
        timer = asyncio.get_running_loop().create_task(self._clock.sleep(patience_s))
        try:
            await asyncio.wait({first, second, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            await asyncio.wait({timer})  # at once

    def _dispatch(self, message: Any) -> None:
        handler = _HANDLERS.get(type(message))
        if handler is not None and not self._stopping:
            handler(self, message)

    def _on_hello(self, hello: Hello) -> None:
        self._up = True
        self._stores.clear()  # with the worker that had them
        self._listener.worker_up(hello)
        for wanted in list(self._wanted.values()):
            if not wanted.failed:
                self._post_load(wanted)

    def _post_load(self, wanted: _Wanted) -> None:
        if self._handle is None:
            return
        if wanted.load:  # by a worker that has died, and with it what its peers had sent
            wanted.message = replace(wanted.message, reads=None)
        wanted.load = self._next_load()
        wanted.resident.clear()
        self._stores.begin(wanted.message.model.weights, wanted.message.instance, wanted.load)
        self._handle.post(replace(wanted.message, load=wanted.load))

    def _next_load(self) -> int:
        self._loads += 1
        return self._loads

    def _of(self, message: BlobResident | ModelLoaded | LoadFailed) -> _Wanted | None:
        """Return what news are about; None for what is not wanted any more."""
        wanted = self._wanted.get(message.instance)
        return wanted if wanted is not None and wanted.load == message.load else None

    def _on_blob(self, message: BlobResident) -> None:
        wanted = self._of(message)
        if wanted is None:
            return
        self._listener.blob_resident(message.instance, message.index)
        total = wanted.message.model.shape.n_layers
        if 1 <= message.index <= total:
            wanted.resident.add(message.index)
            self._listener.instance_loading(message.instance, len(wanted.resident), total)

    def _on_loaded(self, message: ModelLoaded) -> None:
        if self._of(message) is not None:
            self._listener.instance_ready(message.instance, message.duration_s)

    def _on_load_failed(self, message: LoadFailed) -> None:
        wanted = self._of(message)
        if wanted is not None:
            wanted.failed = True
            self._stores.end(wanted.message.model.weights, message.instance)
            self._listener.instance_failed(message.instance, message.message)

    def _on_result(self, message: StepResult) -> None:
        self._listener.step_done(message)

    def _on_step_failed(self, message: StepFailed) -> None:
        self._listener.step_failed(message)

    def _on_news(self, message: TransferNews) -> None:
        if isinstance(message, StoreNews) and not self._stores.is_present(message):
            return
        if isinstance(message, CopyFailed):
            self._stores.end(message.weights, None)
        self._listener.told(message)


_HANDLERS: dict[type[Any], Callable[[WorkerSupervisor, Any], None]] = {
    Hello: WorkerSupervisor._on_hello,
    BlobResident: WorkerSupervisor._on_blob,
    ModelLoaded: WorkerSupervisor._on_loaded,
    LoadFailed: WorkerSupervisor._on_load_failed,
    StepResult: WorkerSupervisor._on_result,
    StepFailed: WorkerSupervisor._on_step_failed,
    **dict.fromkeys(get_args(TransferNews), WorkerSupervisor._on_news),
}
