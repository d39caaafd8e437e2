"""Real stores over tensors of any torch device, as a worker on a GPU has them."""

import os
import threading

import torch

from blitzgw.transport.nccl import CupyNccl
from blitzgw.transport.nccl_bypasses import NcclBypasses
from blitzgw.transport.nccl_pair import PairState
from blitzgw.weights.digests import blob_digest
from blitzgw.worker.device_slab import DeviceSlab
from tests.transport.edges_kit import Host, join, terms, until

MB = 1 << 20


def random_blobs(*sizes):
    return [os.urandom(size) for size in sizes]


class Weights:
    """A model's weights on a device: an engine's memory, its store, and what that has announced.

    `there` makes them all resident, as if NCCL had brought them.
    """

    def __init__(self, data, device="cpu", *, weights="w", there=False):
        self.data = data
        self.tensors = [torch.zeros(len(blob), dtype=torch.uint8, device=device) for blob in data]
        self.checked, self.damaged, self.landed_bytes = [], [], 0
        self.changed = threading.Condition()
        self.slab = DeviceSlab(len(data))
        self.store = self.slab.store(
            weights, [blob_digest(blob) for blob in data], self._checked, self._damaged
        )
        self._landed, self.store.landed = self.store.landed, self._count_landed
        assert self.slab.attach(self)
        if there:
            for index in range(len(data)):
                self.land(index, 0, len(data[index]))

    def blob_memory(self, index):
        return self.tensors[index]

    def land(self, index, start, stop, source="", *, flipped=None):
        """Bring bytes as NCCL does; `flipped` is where one is not right."""
        data = torch.frombuffer(bytearray(self.data[index][start:stop]), dtype=torch.uint8)
        self.tensors[index][start:stop] = data.to(self.tensors[index].device)
        if flipped is not None:
            self.tensors[index][flipped] ^= 64
        self.store.begin(index, source)
        self._landed(index, start, stop)
        self.store.advance(index, start, stop, source)

    def write(self, index, start, stop, source=""):
        """Bring bytes through the host, as TCP does."""
        self.store.begin(index, source)
        self.store.view(index)[start:stop] = self.data[index][start:stop]
        self.store.advance(index, start, stop, source)

    def contents(self):
        return [bytes(tensor.cpu().numpy()) for tensor in self.tensors]

    def is_right(self):
        return self.contents() == self.data

    def proven(self):
        return all(self.store.is_proven(index) for index in range(len(self.data)))

    def end(self):
        self.store.close()
        assert self.store.join(10)
        self.slab.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.end()

    def _count_landed(self, index, start, stop):
        self.landed_bytes += stop - start
        self._landed(index, start, stop)

    def _checked(self, index):
        with self.changed:
            self.checked.append(index)
            self.changed.notify_all()

    def _damaged(self, index, source):
        with self.changed:
            self.damaged.append((index, source))
            self.changed.notify_all()


class GpuHost(Host):
    """A worker with a GPU of a fake world; its stores are `Weights`."""

    def __init__(self, world, name, *weights, version=22809):
        self.gpu = world.gpu(version, name)
        self.bypasses = NcclBypasses(CupyNccl(self.gpu, 0))
        self.name = name
        super().__init__(*(each.store for each in weights), bypasses=self.bypasses)

    def __exit__(self, *exc):
        try:
            super().__exit__(*exc)
        finally:
            self.bypasses.stop()
            assert self.bypasses.join(10.0), [t.name for t in threading.enumerate()]
        assert not self.gpu.live, "communicators that nobody has aborted"


def agreed(source, edge):
    """Whether the sender of an edge would send its next piece by NCCL."""
    ends = list(source.edges._ends.values())
    return any(end.terms.id == edge.id and end._bypass and end._bypass.ready for end in ends)


def warm(source, target):
    """Let two workers make their pair before the edge that a test is about."""
    edge = terms(f"warm-{source.name}-{target.name}", (0,), f"warm-{source.name}-{target.name}")
    data = random_blobs(2 * MB)
    with Weights(data, weights=edge.weights) as here, Weights(data, weights=edge.weights) as there:
        source.stores[edge.weights], target.stores[edge.weights] = here.store, there.store
        join(source, target, edge)
        leases = target.bypasses._pairs._leases
        until(lambda: any(each.pair.state is PairState.READY for each in leases.values()))
        here.write(0, 0, MB)
        until(lambda: agreed(source, edge))
        here.write(0, MB, 2 * MB)
        assert source.closed(edge.id).reason == target.closed(edge.id).reason == ""
        assert there.is_right()


def send(source, target, data, edge, *, by_nccl=True, target_device="cpu"):
    """Begin to send whole blobs; by NCCL from the first piece on where a pair is there."""
    here = Weights(data, weights=edge.weights)
    there = Weights(data, target_device, weights=edge.weights)
    source.stores[edge.weights], target.stores[edge.weights] = here.store, there.store
    join(source, target, edge)
    if by_nccl:
        until(lambda: agreed(source, edge))
    for index, blob in enumerate(data):
        here.land(index, 0, len(blob))
    return here, there
