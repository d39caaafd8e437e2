"""Two executors with a road between them, and steps in short."""

import numpy as np

from blitzgw.core.instance import ModelSpec, PacedCost
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry, NewSequence, Row, Step
from blitzgw.engine.paced import PacedEngine
from blitzgw.worker.executor import InstanceExecutor

LAYERS = 5
KV = KvGeometry(slots=6, blocks_per_slot=6, block_bytes=0)
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
SEEDED = SamplingParams(max_tokens=8, temperature=1.0, seed=11)


class Road:
    """Holds what one executor sends until another takes it."""

    def __init__(self):
        self.sent, self.arrived = [], {}

    def send(self, send, outgoing):
        """Keep the parcels unread: their turn comes later."""
        self.sent += [(send.edge, one) for one in outgoing]

    def carry(self):
        """Let all parcels arrive; returns them."""
        parcels = []
        for edge, one in self.sent:
            key = (edge, one.parcel.ticket)
            data = memoryview(bytearray(one.read()))
            self.arrived.setdefault(key, []).append((one.parcel, data))
            parcels.append(one.parcel)
        self.sent.clear()
        return parcels

    def take(self, edge, ticket):
        return self.arrived.pop((edge, ticket), [])


def paced_engine(kv_bytes=20, hidden_bytes=12):
    """A paced engine whose blobs are there; always the same ones."""
    shape = ModelShape("llama", LAYERS, 16, 2, 1, 8, 24, 301, 1e-5, Rope(), 256, True)
    spec = ModelSpec("tiny", "/nowhere", shape, Dtype.BFLOAT16, 96, (0, 7))
    cost = PacedCost(kv_bytes=kv_bytes, hidden_bytes=hidden_bytes)
    made = PacedEngine(spec, KV, cost, sleep=lambda _: None)
    rng = np.random.default_rng(1)
    for index in range(LAYERS + 2):
        buffer = made.blob_buffer(index)
        buffer[:] = rng.bytes(len(buffer))
        made.blob_arrived(index)
    return made


class Bench:
    """One instance; steps in short, sequences by number, each in the slot of its number."""

    def __init__(self, engine, road, layers=LAYERS, kv=KV):
        self.layers, self.kv = layers, kv
        self.instance = InstanceExecutor(engine, layers, road)

    def blocks(self, seq):
        first = seq * self.kv.blocks_per_slot
        return tuple(range(first, first + self.kv.blocks_per_slot))

    def learn(self, seq, tokens, sampling=GREEDY, blocks=True):
        """Let a sequence be known, with the whole of its slot."""
        new = NewSequence(seq, tuple(tokens), len(tokens), 0, sampling)
        self.step(Span(0, self.layers), (), new=(new,))
        if blocks:
            self.instance.sequences[seq].table += self.blocks(seq)

    def step(self, span, rows, **more):
        """Carry out a step; returns the tokens that it sampled."""
        step = Step(1, "i0", span, tuple(rows), **more)
        try:
            return [one.token for one in self.instance.execute(step)]
        except BaseException:
            self.instance.forget(step)
            raise

    def prefill(self, seq, n, span, chunk=None, layer_major=False, cached=0):
        """Run the layers of a span for all positions; samples with the last where it ends."""
        top = span.stop == self.layers
        chunk = chunk or n
        rows = [
            Row(seq, start, min(chunk, n - start), top and start + chunk >= n)
            for start in range(cached, n, chunk)
        ]
        if not layer_major or not len(span):
            return [token for row in rows for token in self.step(span, (row,))]
        tokens = []
        for layer in span.layers():
            for row in rows:
                sample = row.sample and layer == self.layers - 1
                tokens += self.step(Span(layer, layer + 1), (row._replace(sample=sample),))
        return tokens

    def decode(self, seq, n):
        """Generate n tokens more with all layers."""
        tokens = []
        for _ in range(n):
            at = len(self.instance.sequences[seq].tokens) - 1
            tokens += self.step(Span(0, self.layers), (Row(seq, at, 1, True),))
        return tokens
