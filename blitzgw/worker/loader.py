"""Brings models into memory beside the steps that run: one at a time, on a thread of its own."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blitzgw.core.layout import blob_layouts
from blitzgw.core.messages import BlobResident, LoadModel
from blitzgw.errors import BlitzError, CheckpointError
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.loader import load_blobs
from blitzgw.worker.executor import Engine

MAX_LOADS = 64
"""Models that may wait; a worker holds a handful, so more is a mistake of the parent."""

MESSAGE_CHARACTERS = 500
"""Longest text of a foreign error that is passed on: enough to name the fault."""


@dataclass(slots=True, eq=False)
class Load:
    """One `LoadModel`, when it began, and whether it is still wanted."""

    message: LoadModel
    started: float
    cancelled: threading.Event = field(default_factory=threading.Event)


class LoadCancelled(Exception):
    """Raised into a load that nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class LoadHooks:
    """What the loader asks of its worker. All are called on the loader's thread."""

    new_engine: Callable[[LoadModel], Engine]
    created: Callable[[Load, Engine], None]
    loaded: Callable[[Load], None]
    failed: Callable[[Load, str], None]
    send: Callable[[Any], None]


class Loader:
    """Loads what `submit` is given, in that order, for the life of the process."""

    def __init__(self, hooks: LoadHooks) -> None:
        self._hooks = hooks
        self._queue: queue.Queue[Load] = queue.Queue(MAX_LOADS)
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        self._thread.start()

    def submit(self, load: Load) -> None:
        """Queue a load. Raises queue.Full beyond MAX_LOADS."""
        self._queue.put_nowait(load)

    def _run(self) -> None:
        while True:
            self._carry_out(self._queue.get())

    def _carry_out(self, load: Load) -> None:
        why = None
        try:
            self._load(load)
        except LoadCancelled:
            pass
        except Exception as error:
            why = describe(error)
        # Only here has the traceback gone, and with it the last hold on the engine's memory.
        if why is not None:
            self._hooks.failed(load, why)

    def _load(self, load: Load) -> None:
        model, instance = load.message.model, load.message.instance

        def on_blob(index: int) -> None:
            if load.cancelled.is_set():
                raise LoadCancelled
            engine.blob_arrived(index)
            self._hooks.send(BlobResident(instance, index))

        if load.cancelled.is_set():
            raise LoadCancelled
        checkpoint = open_checkpoint(model.path)
        try:
            if checkpoint.shape != model.shape:
                raise CheckpointError(f"{model.path}: is not the model that the node has resolved")
            engine = self._hooks.new_engine(load.message)
            self._hooks.created(load, engine)
            layouts = blob_layouts(model.shape, model.dtype)
            load_blobs(checkpoint, layouts, model.dtype, engine.blob_buffer, on_blob)
        finally:
            checkpoint.close()
        self._hooks.loaded(load)


def describe(error: Exception) -> str:
    """Return one line for the operator; a foreign error's traceback goes to stderr as well."""
    if isinstance(error, BlitzError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {str(error)[:MESSAGE_CHARACTERS]}"
