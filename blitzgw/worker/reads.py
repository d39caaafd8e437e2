"""Reads blobs from disk beside everything else: one checkpoint at a time, in the order asked for.

One at a time, because several checkpoints at once would share the same disk and delay the first
layers of all of them. A load that waits for its peers waits elsewhere.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blitzgw.core.instance import ModelSpec
from blitzgw.core.layout import BlobLayout, blob_layouts
from blitzgw.core.transfer import StoreClosed
from blitzgw.errors import CheckpointError
from blitzgw.worker.faults import Cancelled, describe

MAX_READS = 256
"""Jobs that may wait; a worker holds a handful of models, so more is a mistake of the parent."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Blobs of a checkpoint, in the order wanted, and where they go.

    All are called on one thread, but for `begin`. `lacking` says, when the job begins, whether a
    blob is still to be read. `begin` says so when its first byte is due, and makes its memory the
    job's until `arrived`; it is called on any thread. `arrived` may raise Cancelled or StoreClosed,
    which end the job silently, as they do from `buffer`. `over` is called at the end, whatever that
    was, when nothing is written any more.
    """

    model: ModelSpec
    blobs: Sequence[int]
    lacking: Callable[[int], bool]
    buffer: Callable[[int], memoryview]
    arrived: Callable[[int], None]
    failed: Callable[[str], None]
    begin: Callable[[int], bool] = lambda index: True  # noqa: ARG005
    over: Callable[[], None] = lambda: None


class DiskReads:
    """Carries out what `submit` is given, for the life of the process."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Read] = queue.Queue(MAX_READS)
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        self._thread.start()

    def submit(self, job: Read) -> None:
        """Queue a job; beyond MAX_READS it fails at once."""
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            job.failed(f"more than {MAX_READS} reads are waiting")

    def _run(self) -> None:
        while True:
            carry_out(self._queue.get())  # a job holds memory: no name may outlive it


def carry_out(job: Read) -> None:
    """Read what is lacking of a job; its failure is told, never raised."""
    why = None
    try:
        _read(job)
    except (Cancelled, StoreClosed):
        pass
    except Exception as error:
        why = describe(error)
    # Only here has the traceback gone, and with it its hold on memory.
    if why is not None:
        job.failed(why)
    job.over()


def _read(job: Read) -> None:
    layouts = blob_layouts(job.model.shape, job.model.dtype)
    wanted = [layouts[index] for index in job.blobs if job.lacking(index)]
    if wanted:
        _read_blobs(job, wanted)


def _read_blobs(job: Read, wanted: Sequence[BlobLayout]) -> None:
    from blitzgw.weights.info import open_checkpoint  # noqa: PLC0415  numpy: not all workers read
    from blitzgw.weights.loader import load_blobs  # noqa: PLC0415

    checkpoint = open_checkpoint(job.model.path)
    try:
        if checkpoint.shape != job.model.shape:
            raise CheckpointError(f"{job.model.path}: is not the model that the node has resolved")
        load_blobs(checkpoint, wanted, job.model.dtype, job.buffer, job.arrived, begin=job.begin)
    finally:
        checkpoint.close()
