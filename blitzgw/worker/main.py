"""The child process: reads commands, executes steps, loads models.

Three threads. The *reader* takes messages off the socket. The *main* thread alone knows the
instances and runs everything that touches them, in the order in which it was posted. The *loader*
reads checkpoints, so that a model that arrives does not stop one that serves.

The connection's end is the process's end: nothing here outlives the parent. Signals that a
terminal or a service manager sends to the whole group are ignored, because the parent drains
first and then closes the connection.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

from blitzgw.core.messages import (
    LoadFailed,
    LoadModel,
    ModelLoaded,
    Start,
    StepFailed,
    UnloadModel,
)
from blitzgw.core.step import Step
from blitzgw.errors import ProtocolError, WorkerLost
from blitzgw.worker.channel import Channel
from blitzgw.worker.devices import Device, open_device, undilated
from blitzgw.worker.executor import Engine, Executor, InstanceExecutor, StepRefused
from blitzgw.worker.loader import MAX_LOADS, Load, Loader, LoadHooks, describe

EXIT_PROTOCOL = 65
"""The parent sent something that is not a message (EX_DATAERR of sysexits.h)."""
EXIT_INTERNAL = 70
"""An error that the process cannot live with (EX_SOFTWARE)."""

MAX_JOBS = 4096
"""Commands that may wait for the main thread; a scheduler posts a few steps ahead."""

_PR_SET_PDEATHSIG = 1


class Worker:
    """The main thread's state: the device, the instances, and the loads under way."""

    def __init__(self, channel: Channel, device: Device, now: Callable[[], float]) -> None:
        self._channel, self._device, self._now = channel, device, now
        self._executor = Executor(now)
        # in C, so that the main thread wakes sooner; `post` bounds it
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._loads: dict[str, Load] = {}
        self._loader = Loader(
            LoadHooks(
                new_engine=lambda load: device.engine(load.model, load.kv),
                created=lambda load, engine: self._jobs.put(partial(self._created, load, engine)),
                loaded=lambda load: self._jobs.put(partial(self._loaded, load)),
                failed=lambda load, why: self._jobs.put(partial(self._load_failed, load, why)),
                send=channel.send,
            )
        )

    def run(self) -> NoReturn:
        """Carry out what arrives until the process ends."""
        self._loader.start()
        while True:
            job = self._jobs.get()
            job()
            del job  # it may hold an engine

    def post(self, message: Any) -> None:
        """Queue a message for the main thread; called by the reader. Raises ProtocolError."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a worker does not take {type(message).__name__}")
        if self._jobs.qsize() >= MAX_JOBS:
            raise ProtocolError(f"more than {MAX_JOBS} commands are waiting")
        self._jobs.put(partial(handler, self, message))

    def step(self, step: Step) -> None:
        """Execute a step and answer it."""
        try:
            result = self._executor.execute(step)
        except StepRefused as error:
            self._channel.send(StepFailed(step.id, step.instance, str(error)))
        except Exception as error:
            self._channel.send(StepFailed(step.id, step.instance, describe(error)))
            if self._device.is_broken(error):
                os._exit(EXIT_INTERNAL)
        else:
            self._channel.send(result)

    def load(self, message: LoadModel) -> None:
        """Begin to load a model; the answers follow."""
        if message.instance in self._loads:
            why = f"instance {message.instance} is already here"
            self._channel.send(LoadFailed(message.instance, why))
            return
        load = Load(message, self._now())
        self._loads[message.instance] = load
        try:
            self._loader.submit(load)
        except queue.Full:
            self._load_failed(load, f"more than {MAX_LOADS} models are waiting to be loaded")

    def unload(self, message: UnloadModel) -> None:
        """Forget an instance, whole or half loaded; there is no answer, and none to its load."""
        load = self._loads.get(message.instance)
        if load is not None:
            load.cancelled.set()
            self._remove(load)

    def _created(self, load: Load, engine: Engine) -> None:
        if not load.cancelled.is_set():
            layers = load.message.model.shape.n_layers
            self._executor.instances[load.message.instance] = InstanceExecutor(engine, layers)

    def _loaded(self, load: Load) -> None:
        if load.cancelled.is_set():
            return
        instance = load.message.instance
        try:
            self._executor.instances[instance].warm_up()
        except Exception as error:
            self._load_failed(load, f"the warm-up step failed: {describe(error)}")
        else:
            duration_s = self._now() - load.started
            self._channel.send(ModelLoaded(instance, duration_s))

    def _load_failed(self, load: Load, why: str) -> None:
        if not load.cancelled.is_set():
            self._remove(load)
            self._channel.send(LoadFailed(load.message.instance, why))

    def _remove(self, load: Load) -> None:
        del self._loads[load.message.instance]
        self._executor.instances.pop(load.message.instance, None)
        self._device.reclaim()


_HANDLERS: dict[type[Any], Callable[[Worker, Any], None]] = {
    Step: Worker.step,
    LoadModel: Worker.load,
    UnloadModel: Worker.unload,
}


def main(arguments: Sequence[str]) -> NoReturn:
    """Run a worker on an inherited socket; the process ends in here.

    It ends by `os._exit`: threads inside torch or a read must not hold it up.
    """
    parser = argparse.ArgumentParser(prog="python -m blitzgw.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the parent")
    sock = socket.socket(fileno=parser.parse_args(arguments).fd)
    os.set_inheritable(sock.fileno(), False)
    _follow_parent()
    _end_after(partial(_serve, Channel(sock)))


def _serve(channel: Channel) -> None:
    messages = channel.receive()
    start = next(messages, None)
    if start is None:
        return
    if not isinstance(start, Start):
        raise ProtocolError(f"the first message is {type(start).__name__}, not Start")
    device = open_device(start.device, start.dilation)
    worker = Worker(channel, device, undilated(start.dilation))
    gc.freeze()  # what torch's import has made lives for ever: no collection need look at it
    read = partial(_end_after, partial(_read, messages, worker))
    threading.Thread(target=read, name="reader", daemon=True).start()
    channel.send(device.hello())
    worker.run()


def _read(messages: Iterator[Any], worker: Worker) -> None:
    for message in messages:
        worker.post(message)


def _end_after(work: Callable[[], None]) -> NoReturn:
    """End the process once `work` is over, whatever other threads are doing."""
    status = 0
    try:
        work()
    except WorkerLost:
        pass
    except ProtocolError as error:
        sys.stderr.write(f"worker_protocol_error pid={os.getpid()} error={error}\n")
        status = EXIT_PROTOCOL
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        status = EXIT_INTERNAL
    finally:
        sys.stderr.flush()
        os._exit(status)


def _follow_parent() -> None:
    """Ignore what the parent handles; ask Linux to kill this process when the parent dies.

    The end of the connection does that too, wherever Python runs; the kernel's signal also reaches
    a process that is stuck inside a foreign call.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
