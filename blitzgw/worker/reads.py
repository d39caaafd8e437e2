"""Reads blobs from disk beside everything else: one checkpoint at a time, in the order asked for.

One at a time, because several checkpoints at once would share the same disk and delay the first
layers of all of them. A load that waits for its peers waits elsewhere.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blitzgw.core.instance import ModelSpec
from blitzgw.core.layout import BlobLayout, blob_layouts
from blitzgw.core.transfer import StoreClosed
from blitzgw.errors import CheckpointError
from blitzgw.worker.faults import Cancelled, describe

MAX_READS = 256
"""Jobs that may wait; a worker holds a handful of models, so more is a mistake of the parent."""

MEASURED_BYTES = 16 << 20
"""Of a job that says how fast the disk is: opening a checkpoint takes as long as some MB."""


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
    """Carries out what `submit` is given, for the life of the process.

    At most at `bytes_per_s`, taken over a job; 0: as fast as it goes.
    """

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        self._bytes_per_s = bytes_per_s
        self.rate = 0.0
        """What the last job of MEASURED_BYTES or more has come to, in bytes per second; 0: none."""
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
            size, took_s = _timed(self._queue.get(), self._bytes_per_s)  # no name outlives the job
            if size >= MEASURED_BYTES:
                self.rate = size / max(took_s, 1e-6)


def _timed(job: Read, bytes_per_s: float) -> tuple[int, float]:
    """Carry a job out; return its size, and how long it took from its turn on."""
    began_s = time.monotonic()
    return carry_out(job, bytes_per_s), time.monotonic() - began_s


def carry_out(job: Read, bytes_per_s: float = 0.0) -> int:
    """Read what is lacking of a job, and return its size; its failure is told, never raised."""
    why, size = None, 0
    try:
        size = _read(job, bytes_per_s)
    except (Cancelled, StoreClosed):
        pass
    except Exception as error:
        why = describe(error)
    # Only here has the traceback gone, and with it its hold on memory.
    if why is not None:
        job.failed(why)
    job.over()
    return size


def _read(job: Read, bytes_per_s: float) -> int:
    layouts = blob_layouts(job.model.shape, job.model.dtype)
    wanted = [layouts[index] for index in job.blobs if job.lacking(index)]
    if wanted:
        _read_blobs(job, wanted, bytes_per_s)
    return sum(layout.size_bytes for layout in wanted)


def _read_blobs(job: Read, wanted: Sequence[BlobLayout], bytes_per_s: float) -> None:
    from blitzgw.weights.info import open_checkpoint  # noqa: PLC0415  numpy: not all workers read
    from blitzgw.weights.loader import load_blobs  # noqa: PLC0415

    checkpoint = open_checkpoint(job.model.path)
    try:
        if checkpoint.shape != job.model.shape:
            raise CheckpointError(f"{job.model.path}: is not the model that the node has resolved")
        arrived = job.arrived if bytes_per_s <= 0 else _paced(job.arrived, wanted, bytes_per_s)
        load_blobs(checkpoint, wanted, job.model.dtype, job.buffer, arrived, begin=job.begin)
    finally:
        checkpoint.close()


def _paced(
    arrived: Callable[[int], None], wanted: Sequence[BlobLayout], bytes_per_s: float
) -> Callable[[int], None]:
    """Return an `arrived` that says of no blob that it is there before its bytes are due."""
    sizes = {layout.index: layout.size_bytes for layout in wanted}
    due_s = time.monotonic()

    def later(index: int) -> None:
        nonlocal due_s
        due_s += sizes[index] / bytes_per_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        arrived(index)

    return later
