"""A store on a GPU that is none, and workers whose payloads go by the fake NCCL."""

import ctypes
import threading

import numpy as np

from blitzgw.transport.nccl import CupyNccl
from blitzgw.transport.nccl_bypasses import NcclBypasses
from tests.transport.edges_kit import Host, MemoryStore


def lane_sum(data):
    """Σ w_i · (2i + 1) mod 2⁶⁴ over the 32-bit words, the last one filled up with zeros."""
    data = bytes(data)
    words = np.frombuffer(data + bytes(-len(data) % 4), np.uint32).astype(np.uint64)
    return int((words * (2 * np.arange(len(words), dtype=np.uint64) + 1)).sum(dtype=np.uint64))


class DeviceMemoryStore(MemoryStore):
    """A nccl_device.DeviceStore: "device" buffers beside the mirror that `view` gives."""

    def __init__(self, sizes, weights="w"):
        super().__init__(sizes, weights)
        self.device = [(ctypes.c_ubyte * size)() for size in sizes]
        self.n_landed = self.landed_bytes = self.staged_bytes = 0
        self.only_there = set()

    @classmethod
    def full(cls, blobs, weights="w"):
        store = super().full(blobs, weights)
        for index, blob in enumerate(blobs):
            ctypes.memmove(store.device[index], blob, len(blob))
        return store

    def pointer(self, index, offset):
        return ctypes.addressof(self.device[index]) + offset

    def lane_sum(self, index, start, stop):
        return lane_sum(memoryview(self.device[index])[start:stop])

    def landed(self, index, start, stop):
        self.n_landed += 1
        self.landed_bytes += stop - start
        self.only_there.add((index, start, stop))

    def advance(self, index, start, stop, source=""):
        if (index, start, stop) not in self.only_there:
            there = memoryview(self.device[index]).cast("B")
            there[start:stop] = self.blobs[index][start:stop]
        super().advance(index, start, stop, source)

    def stage(self, index, start, stop):
        for span in [s for s in self.only_there if s[0] == index and s[1] < stop and start < s[2]]:
            self.staged_bytes += span[2] - span[1]
            self.blobs[index][span[1] : span[2]] = bytes(self.device[index])[span[1] : span[2]]
            self.only_there.discard(span)
        return self.view(index)[start:stop]

    def contents(self):
        return [bytes(blob) for blob in self.device]


class NcclHost(Host):
    """A worker with a GPU of a fake world."""

    def __init__(self, world, *stores, version=22809, name="gpu", **options):
        self.gpu = world.gpu(version, name)
        self.bypasses = NcclBypasses(CupyNccl(self.gpu, 0))
        super().__init__(*stores, bypasses=self.bypasses, **options)

    def __exit__(self, *exc):
        try:
            super().__exit__(*exc)
        finally:
            self.bypasses.stop()
            assert self.bypasses.join(10.0), [t.name for t in threading.enumerate()]
        assert not self.gpu.live, "communicators that nobody has aborted"
