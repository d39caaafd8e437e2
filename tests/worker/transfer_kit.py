"""Real workers that send weights to each other, and what it takes to tell them to."""

import contextlib
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.messages import Hello, LoadModel, ModelLoaded
from blitzgw.core.span import Span
from blitzgw.core.step import StepResult
from blitzgw.core.transfer import (
    DataNetwork,
    DropCopy,
    EdgeTerms,
    HoldCopy,
    OpenReceive,
    OpenSend,
)
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.manifest import compute_manifest
from tests.worker.worker_kit import KV, Mailbox, first_step, next_step, until

LAN = (DataNetwork("lan", "127.0.0.1"),)
HOST = DeviceSpec("h0", DeviceKind.HOST)
CPU = DeviceSpec("c0", DeviceKind.CPU, threads=1)


@dataclass(frozen=True)
class Model:
    """A checkpoint as a node resolves it."""

    spec: ModelSpec
    blobs: tuple[BlobDigest, ...]

    @property
    def weights(self):
        return self.spec.weights

    @property
    def everything(self):
        return tuple(range(len(self.blobs)))

    @property
    def size_bytes(self):
        return sum(blob.size_bytes for blob in self.blobs)

    @property
    def elsewhere(self):
        """The model as a node knows it that has no checkpoint."""
        return replace(self, spec=replace(self.spec, path=""))

    def at(self, path):
        """The same model, from another place."""
        return replace(self, spec=replace(self.spec, path=str(path)))

    def load(self, instance="i0", reads=None, **more):
        return LoadModel(instance, self.spec, KV, self.blobs, reads, **more)

    def hold(self, reads=(), load=0):
        return HoldCopy(self.weights, self.spec, self.blobs, tuple(reads), load)

    def drop(self):
        return DropCopy(self.weights)


def resolved(folder):
    """What a node finds out about a checkpoint of worker_kit: it has no tokenizer."""
    checkpoint = open_checkpoint(folder)
    try:
        shape, dtype = checkpoint.shape, checkpoint.dtype
        manifest = compute_manifest(checkpoint, dtype)
        eos_ids = checkpoint.eos_ids
    finally:
        checkpoint.close()
    spec = ModelSpec("tiny", str(folder), shape, dtype, 64, eos_ids, manifest.root())
    return Model(spec, manifest.blobs)


class Peer:
    """A worker, its messages, and where it listens."""

    def __init__(self, handle, box):
        self.handle, self.box = handle, box
        self.port, self.spans = 0, {}

    def post(self, *messages):
        for message in messages:
            if isinstance(message, LoadModel):
                self.spans[message.instance] = Span(0, message.model.shape.n_layers)
            self.handle.post(message)

    def of(self, kind, **fields):
        return [
            message
            for message in self.box.of(kind)
            if all(getattr(message, name) == value for name, value in fields.items())
        ]

    async def wait(self, kind, count=1, **fields):
        await until(
            lambda: len(self.of(kind, **fields)) >= count or self.box.deaths,
            f"{count} × {kind.__name__} {fields}",
        )
        assert len(self.of(kind, **fields)) >= count, self.box.deaths
        return self.of(kind, **fields)[count - 1]

    async def tokens(self, instance="i0", n=4, seq=1):
        """Generate greedily; the caller has loaded the instance."""
        await self.wait(ModelLoaded, instance=instance)
        base = 1000 * (1 + len(self.of(StepResult)))
        steps = [first_step(base, seq=seq, instance=instance)]
        steps += [next_step(base + i, 2 + i, seq=seq, instance=instance) for i in range(1, n)]
        self.post(*(replace(step, span=self.spans[instance]) for step in steps))
        return [(await self.wait(StepResult, step=base + i)).tokens[0] for i in range(n)]


@contextlib.asynccontextmanager
async def peers(*devices, networks=LAN, **options):
    """Start workers at the same time; they are gone afterwards, whatever happened."""
    started = []
    try:
        for device in devices:
            box = Mailbox()
            handle = await box.start(device, networks=networks, **options)
            started.append(Peer(handle, box))
        for peer in started:
            hello = await peer.wait(Hello)
            peer.port = hello.data_ports.get("lan", 0)
        yield started
    finally:
        for peer in started:
            await peer.handle.close()


def memory_of(pid, kind="Rss"):
    """Bytes of a process, as /proc/PID/smaps_rollup tells them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


def connect(source, target, model, edge="e1", blobs=None, seed=7):
    """Open an edge between two workers."""
    terms = EdgeTerms(
        edge,
        "op",
        model.weights,
        tuple(model.everything if blobs is None else blobs),
        secrets.token_bytes(32),
        seed,
        "lan",
    )
    source.post(OpenSend(terms))
    target.post(OpenReceive(terms, "127.0.0.1", source.port))
    return terms
