"""A store in memory, and workers' edges to join into plans."""

import os
import threading
import time

from blitzgw.core.transfer import (
    DataNetwork,
    EdgeClosed,
    EdgeProgress,
    EdgeTerms,
    OpenReceive,
    OpenSend,
    StoreClosed,
)
from blitzgw.transport.edges import Edges

NET = "net"


class MemoryStore:
    """A core.transfer.BlobStore without digests of blobs.

    What a test advances by hand, as "", needs no `begin` where nobody else fills the blob.
    """

    def __init__(self, sizes, weights="w"):
        self.weights = weights
        self.blobs = [bytearray(size) for size in sizes]
        self.resident = [0] * len(sizes)
        self.closed = False
        self.fillers = {}
        self.sources = {}
        self.changed = threading.Condition()

    @classmethod
    def full(cls, blobs, weights="w"):
        store = cls([len(b) for b in blobs], weights)
        for index, blob in enumerate(blobs):
            store.blobs[index][:] = blob
            store.resident[index] = len(blob)
        return store

    def size_bytes(self, index):
        return len(self.blobs[index])

    def view(self, index):
        if self.closed:
            raise StoreClosed
        return memoryview(self.blobs[index])

    def resident_bytes(self, index):
        return self.resident[index]

    def wait(self, index, beyond, timeout_s):
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.resident[index] > beyond, timeout_s)
            if self.closed:
                raise StoreClosed
            return self.resident[index]

    def begin(self, index, source=""):
        with self.changed:
            if self.closed:
                raise StoreClosed
            if index in self.fillers or self.resident[index] == len(self.blobs[index]):
                return False
            self.fillers[index] = source
            return True

    def end(self, index, source=""):
        with self.changed:
            if self.fillers.get(index) == source:
                del self.fillers[index]

    def advance(self, index, start, stop, source=""):
        with self.changed:
            if self.closed:
                raise StoreClosed
            if self.fillers.get(index, "") != source:
                raise ValueError(f"blob {index} is filled by {self.fillers.get(index)!r}")
            if start != self.resident[index]:
                raise ValueError(f"{start} is not where the prefix ends")
            self.resident[index] = stop
            if stop == len(self.blobs[index]):
                self.fillers.pop(index, None)
            self.sources.setdefault(index, []).append((start, stop, source))
            self.changed.notify_all()

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def complete(self):
        return self.resident == [len(b) for b in self.blobs]


class Host:
    """One worker's edges, the stores it has and what it was told."""

    def __init__(self, *stores, host="127.0.0.1", **options):
        self.stores = {store.weights: store for store in stores}
        self.told = []
        self.changed = threading.Condition()
        networks = [DataNetwork(NET, host)]
        self.edges = Edges(networks, self.stores.get, self._tell, **options)
        self.port = self.edges.ports[NET]

    def _tell(self, message):
        with self.changed:
            self.told.append(message)
            self.changed.notify_all()

    def closed(self, edge, timeout_s=20.0):
        """Wait for the end of an edge and return what was told."""
        with self.changed:
            assert self.changed.wait_for(lambda: self._ends(edge), timeout_s), f"{edge} goes on"
            return self._ends(edge)[0]

    def _ends(self, edge):
        return [m for m in self.told if isinstance(m, EdgeClosed) and m.edge == edge]

    def closed_edges(self):
        return [m.edge for m in self.told if isinstance(m, EdgeClosed)]

    def progress(self, edge):
        return [m for m in self.told if isinstance(m, EdgeProgress) and m.edge == edge]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.edges.stop()
        assert self.edges.join(10.0), [t.name for t in threading.enumerate()]
        edges = [m.edge for m in self.told if isinstance(m, EdgeClosed)]
        assert len(edges) == len(set(edges)), "EdgeClosed twice"


def terms(edge="e", blobs=(0,), weights="w", seed=7, key=None):
    return EdgeTerms(edge, "op", weights, tuple(blobs), key or os.urandom(32), seed, NET)


def join(source, target, edge, port=None):
    """Open an edge at both ends."""
    source.edges.open_send(OpenSend(edge))
    target.edges.open_receive(OpenReceive(edge, "127.0.0.1", port or source.port))


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
