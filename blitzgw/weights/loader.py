"""A checkpoint → blobs, in the order asked for, with several threads reading ahead.

Threads rather than asyncio: `preadv` and numpy release the GIL, and a disk wants several requests
at once. The caller's thread only announces. Within a blob the reads follow the file, whatever the
order of its tensors there: a disk that can read ahead is then as fast as with one file in one go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from blitzgw.core.layout import BlobLayout, Part
from blitzgw.core.model import Dtype
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import Checkpoint, canonical

CHUNK_BYTES = 8 << 20
"""Target bytes of one task where a tensor may be cut: large enough for a disk, small enough that
all threads work on what is needed first."""

FIRST_BYTES = 2 << 20
"""The same in the first blobs: with smaller tasks, less of what comes after is read beside them and
they are there sooner. More requests for the same bytes, which a disk does not like in the long run.
"""

FIRST_BLOBS = 2
"""Embedding and first layer, where all is read in order: what computing begins with."""

_WHOLE = frozenset({"q", "k", "q.bias", "k.bias"})
"""Not cut: some formats store the rows of a head in another order."""


@dataclass(frozen=True, slots=True)
class _Task:
    blob: int
    name: str
    out: memoryview
    start: int


def load_blobs(
    checkpoint: Checkpoint,
    layouts: Sequence[BlobLayout],
    dtype: Dtype,
    buffer: Callable[[int], memoryview],
    on_blob: Callable[[int], None],
    threads: int = 4,
    begin: Callable[[int], bool] = lambda index: True,  # noqa: ARG005
) -> None:
    """Fill blobs and call `on_blob(index)` in order, each as soon as it and all before are there.

    `layouts` may be any of the model's blobs, in any order: that in which they are read. `buffer
    (index)` gives writable memory of the blob's size; all are asked for before reading begins. Both
    are called in the caller's thread. `begin(index)` is asked before the first byte of a blob is
    written, on any thread; a blob that must not be written is left out. Padding is zeroed. A failed
    read, or an exception out of `on_blob`, stops all threads before it is raised; reads raise
    CheckpointError.
    """
    blobs = [(layout, _writable(buffer(layout.index), layout)) for layout in layouts]
    work = _Work(checkpoint, dtype, blobs, begin)
    names = [f"load-{i}" for i in range(max(1, threads))]
    started = [threading.Thread(target=work.run, name=name, daemon=True) for name in names]
    try:
        for thread in started:
            thread.start()
        for position, layout in enumerate(layouts):
            if work.wait(position):
                on_blob(layout.index)
    finally:
        work.stop()
        for thread in started:
            if thread.ident is not None:
                thread.join()


_Blobs = Sequence[tuple[BlobLayout, memoryview]]


class _Work:
    """Tasks taken in order by any thread; counts what is left of each blob."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: Dtype, blobs: _Blobs, begin: Callable[[int], bool]
    ) -> None:
        self._checkpoint, self._begin = checkpoint, begin
        self._dtype = dtype
        self._blobs = blobs
        self._tasks = self._cut()
        self._left = [1] * len(blobs)  # until it is cut
        self._left_out: set[int] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._error: Exception | None = None

    def run(self) -> None:
        """Work until nothing is left, something failed or `stop` was called."""
        try:
            while (task := self._take()) is not None:
                self._checkpoint.read(task.name, self._dtype, task.out, task.start)
                with self._changed:
                    self._left[task.blob] -= 1
                    if not self._left[task.blob]:
                        self._changed.notify_all()
        except Exception as error:  # the caller's thread raises it
            with self._changed:
                self._stopped, self._error = True, self._error or error
                self._changed.notify_all()

    def wait(self, position: int) -> bool:
        """Return when a blob is complete, False where it was left out.

        Bounded by the reads, each of which ends or fails.
        """
        with self._changed:
            while self._left[position] and self._error is None:
                self._changed.wait()
            error = self._error
        if error is None:
            return position not in self._left_out
        if isinstance(error, CheckpointError):
            raise error
        raise CheckpointError(f"{self._checkpoint.path}: loading failed ({error!r})") from error

    def stop(self) -> None:
        """Let every thread end after the task that it is at."""
        with self._changed:
            self._stopped = True

    def _take(self) -> _Task | None:
        with self._changed:
            return None if self._stopped else next(self._tasks, None)

    def _cut(self) -> Iterator[_Task]:
        """Yield all tasks. A blob is cut when its first one is due, so that reading begins early.

        Under the lock.
        """
        for position, (layout, view) in enumerate(self._blobs):
            if not self._begin(layout.index):
                self._left_out.add(position)
                self._left[position] = 0
                self._changed.notify_all()
                continue
            tasks = [*_tasks(self._checkpoint, position, layout, view)]
            self._left[position] = len(tasks)
            yield from tasks


def _writable(view: memoryview, layout: BlobLayout) -> memoryview:
    view = view.cast("B")
    if view.readonly or len(view) != layout.size_bytes:
        raise ValueError(
            f"blob {layout.index} needs {layout.size_bytes} writable bytes, not {len(view)}"
        )
    return view


def _tasks(
    checkpoint: Checkpoint, position: int, layout: BlobLayout, view: memoryview
) -> Iterator[_Task]:
    """Zero a blob's padding and give the reads that fill the rest, in the order of the file."""
    parts = [part for slot in layout.tensors for part in slot.parts]
    end = 0
    for part in parts:
        view[end : part.offset] = bytes(part.offset - end)
        end = part.offset + part.size_bytes
    view[end:] = bytes(len(view) - end)
    named = [(canonical(layout.name, part.name), part) for part in parts]
    chunk_bytes = min(CHUNK_BYTES, FIRST_BYTES) if position < FIRST_BLOBS else CHUNK_BYTES
    for name, part in sorted(named, key=lambda entry: checkpoint.place(entry[0])):
        row_bytes = part.size_bytes // part.shape[0]
        for start, stop in _row_spans(part, chunk_bytes):
            first, last = part.offset + start * row_bytes, part.offset + stop * row_bytes
            yield _Task(position, name, view[first:last], start)


def _row_spans(part: Part, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    rows = part.shape[0]
    step = rows
    if part.name not in _WHOLE:
        step = max(1, chunk_bytes * rows // part.size_bytes)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
