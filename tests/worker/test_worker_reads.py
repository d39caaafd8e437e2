"""Reading a checkpoint at no more than a given rate."""

import queue
import time

from blitzgw.core.layout import blob_layouts
from blitzgw.worker.reads import DiskReads, Read
from tests.worker.transfer_kit import resolved
from tests.worker.worker_kit import write_checkpoint

LEAST = 0.9
"""Of the time that a rate asks for: sleeping is never shorter, clocks differ a little."""


def job_of(model, layouts, over):
    buffers = {layout.index: bytearray(layout.size_bytes) for layout in layouts}
    return Read(
        model.spec,
        [layout.index for layout in layouts],
        lacking=lambda _: True,
        buffer=lambda index: memoryview(buffers[index]),
        arrived=lambda _: None,
        failed=lambda _: None,
        over=over,
    )


def test_what_is_measured_begins_with_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("blitzgw.worker.reads.MEASURED_BYTES", 1)
    model = resolved(write_checkpoint(tmp_path / "model"))
    layouts = blob_layouts(model.spec.shape, model.spec.dtype)
    rate = sum(layout.size_bytes for layout in layouts) / 0.3
    reads, ended = DiskReads(rate), queue.Queue()
    reads.start()
    time.sleep(0.8)  # nothing is asked for meanwhile
    reads.submit(job_of(model, layouts, lambda: ended.put(None)))
    ended.get(timeout=30)
    deadline_s = time.monotonic() + 5
    while not reads.rate and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert 0.4 * rate < reads.rate <= rate / LEAST


def test_a_rate_is_kept_over_a_job_and_the_bytes_are_the_same(tmp_path):
    model = resolved(write_checkpoint(tmp_path / "model"))
    layouts = blob_layouts(model.spec.shape, model.spec.dtype)
    size = sum(layout.size_bytes for layout in layouts)
    found = {}
    for rate in (0.0, size / 0.4):
        buffers = {layout.index: bytearray(layout.size_bytes) for layout in layouts}
        arrived, told = [], queue.Queue()
        job = Read(
            model.spec,
            [layout.index for layout in layouts],
            lacking=lambda _: True,
            buffer=lambda index, own=buffers: memoryview(own[index]),
            arrived=arrived.append,
            failed=told.put,
            over=lambda out=told: out.put(None),
        )
        reads = DiskReads(rate)
        reads.start()
        began_s = time.monotonic()
        reads.submit(job)
        assert told.get(timeout=30) is None
        found[rate] = time.monotonic() - began_s, buffers
        assert arrived == job.blobs
    (_, free), (paced_s, paced) = found.values()
    assert paced_s >= LEAST * 0.4
    assert paced == free
