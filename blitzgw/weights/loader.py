"""A checkpoint → blobs, in blob order, with several threads reading ahead.

Threads rather than asyncio: `preadv` and numpy release the GIL, and a disk wants several requests
at once. The caller's thread only announces.
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
the embedding, which is needed first, occupies all threads."""

_CUT = frozenset({"embedding", "head"})


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
) -> None:
    """Fill blobs and call `on_blob(index)` in order, each as soon as it and all before are there.

    `buffer(index)` gives writable memory of the blob's size; all are asked for before reading
    begins. Both are called in the caller's thread. Padding is zeroed. A failed read, or an
    exception out of `on_blob`, stops all threads before it is raised; reads raise CheckpointError.
    """
    views = [_writable(buffer(layout.index), layout) for layout in layouts]
    tasks = [
        task
        for position, (layout, view) in enumerate(zip(layouts, views, strict=True))
        for task in _tasks(position, layout, view)
    ]
    work = _Work(checkpoint, dtype, tasks, len(layouts))
    names = [f"load-{i}" for i in range(max(1, min(threads, len(tasks))))]
    started = [threading.Thread(target=work.run, name=name, daemon=True) for name in names]
    try:
        for thread in started:
            thread.start()
        for position, layout in enumerate(layouts):
            work.wait(position)
            on_blob(layout.index)
    finally:
        work.stop()
        for thread in started:
            if thread.ident is not None:
                thread.join()


class _Work:
    """Tasks taken in order by any thread; counts what is left of each blob."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: Dtype, tasks: list[_Task], n_blobs: int
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._tasks = iter(tasks)
        self._left = [0] * n_blobs
        for task in tasks:
            self._left[task.blob] += 1
        self._changed = threading.Condition()
        self._stopped = False
        self._error: Exception | None = None

    def run(self) -> None:
        """Work until nothing is left, something failed or `stop` was called."""
        while (task := self._take()) is not None:
            error: Exception | None = None
            try:
                self._checkpoint.read(task.name, self._dtype, task.out, task.start)
            except Exception as caught:  # the caller's thread raises it
                error = caught
            with self._changed:
                self._left[task.blob] -= 1
                if error is not None:
                    self._stopped, self._error = True, self._error or error
                if error is not None or not self._left[task.blob]:
                    self._changed.notify_all()

    def wait(self, position: int) -> None:
        """Return when a blob is complete; bounded by the reads, each of which ends or fails."""
        with self._changed:
            while self._left[position] and self._error is None:
                self._changed.wait()
            error = self._error
        if error is None:
            return
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


def _writable(view: memoryview, layout: BlobLayout) -> memoryview:
    view = view.cast("B")
    if view.readonly or len(view) != layout.size_bytes:
        raise ValueError(
            f"blob {layout.index} needs {layout.size_bytes} writable bytes, not {len(view)}"
        )
    return view


def _tasks(position: int, layout: BlobLayout, view: memoryview) -> Iterator[_Task]:
    """Zero a blob's padding and give the reads that fill the rest."""
    end = 0
    for slot in layout.tensors:
        for part in slot.parts:
            view[end : part.offset] = bytes(part.offset - end)
            end = part.offset + part.size_bytes
            name = canonical(layout.name, part.name)
            for start, stop in _row_spans(part):
                row_bytes = part.size_bytes // part.shape[0]
                first = part.offset + start * row_bytes
                last = part.offset + stop * row_bytes
                yield _Task(position, name, view[first:last], start)
    view[end:] = bytes(len(view) - end)


def _row_spans(part: Part) -> Iterator[tuple[int, int]]:
    rows = part.shape[0]
    step = rows
    if part.name in _CUT:
        step = max(1, CHUNK_BYTES * rows // part.size_bytes)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
