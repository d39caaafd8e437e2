"""Sequences cross between real worker processes: hidden states and KV over real TCP."""

import asyncio
import secrets
from dataclasses import replace

import pytest

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, PacedCost
from blitzgw.core.messages import BlobResident, ModelLoaded, StepFailed, UnloadModel
from blitzgw.core.parcels import PARCELS, DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send, Step, StepResult
from blitzgw.core.transfer import (
    CloseEdge,
    EdgeClosed,
    EdgeTerms,
    OpenReceive,
    OpenSend,
    TrafficClass,
)
from blitzgw.worker.supervisor import WorkerSupervisor
from tests.worker.transfer_kit import CPU, connect, peers, resolved
from tests.worker.worker_kit import GREEDY, LAYERS, WHOLE, until, write_checkpoint

HEAVY = DeviceSpec("p0", DeviceKind.PACED, cost=PacedCost(kv_bytes=4096, hidden_bytes=1001))
PROMPT = tuple(range(5, 25))
N = len(PROMPT)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("roads")))


def build_road(source, target, edge="road"):
    terms = EdgeTerms(edge, "op", PARCELS, (), secrets.token_bytes(32), 3, "lan", TrafficClass.KV)
    source.post(OpenSend(terms))
    target.post(OpenReceive(terms, "127.0.0.1", source.port))


def new(seq):
    return NewSequence(seq, PROMPT, N, 0, GREEDY)


def row(seq, sample=False, table=True):
    """The whole prompt; the slot of the sequence's number."""
    return Row(seq, 0, N, sample, tuple(range(4 * seq, 4 * seq + 4)) if table else ())


async def run(peer, *steps):
    """Post steps at once; returns all that they sampled."""
    base = 1 + peer.__dict__.setdefault("posted", 0)
    peer.posted += len(steps)
    numbered = [replace(step, id=base + i) for i, step in enumerate(steps)]
    peer.post(*numbered)
    results = [await peer.wait(StepResult, step=step.id) for step in numbered]
    return [token for result in results for token in result.tokens]


def step(span, *rows, **more):
    return Step(0, "i0", span, rows, **more)


def decodes(seq, count):
    return [step(WHOLE, Row(seq, N + i, 1, True)) for i in range(count)]


@pytest.mark.parametrize("device", [HEAVY, CPU], ids=["paced", "cpu"])
async def test_a_sequence_crosses_between_workers_at_every_layer(device, small):
    async with peers(device, device) as (a, b):
        for peer in (a, b):
            peer.post(small.load())
            await peer.wait(ModelLoaded)
        expected = await run(b, step(WHOLE, row(0, True), new=(new(0),)), *decodes(0, 3))
        build_road(a, b)
        for k in range(1, LAYERS + 1):
            send = Send("road", k, k, Span(0, k), 0, N, hidden=True)
            layers = [step(Span(i, i + 1), row(k, table=i == 0)) for i in range(k)]
            layers[0] = replace(layers[0], new=(new(k),))
            await run(a, *layers, step(WHOLE, sends=(send,)))
            sent = await a.wait(ParcelsSent, ticket=k)
            assert sent.reason == ""
            if device is HEAVY:
                assert sent.size_bytes == N * (1001 + 4096 * k)
            hidden = Parcel(k, Span(k, k), 0, N)
            await b.wait(ParcelArrived, parcel=hidden)
            for i in range(k):
                await b.wait(ParcelArrived, parcel=Parcel(k, Span(i, i + 1), 0, N))
            order = Import("road", k, k, row(k).blocks)
            first = step(Span(k, LAYERS), row(k, True, table=False), new=(new(k),))
            got = await run(b, replace(first, imports=(order,)), *decodes(k, 3))
            assert got == expected, f"k = {k}"
            await run(b, step(WHOLE, drop=(k,)))


async def test_a_loading_instance_computes_the_layers_it_has(small):
    """It helps with layer 0, keeps a sequence, and goes on with that when it is complete."""
    async with peers(HEAVY, HEAVY) as (home, helper):
        home.post(small.load())
        await home.wait(ModelLoaded)
        expected = await run(home, step(WHOLE, row(3, True), new=(new(3),)), *decodes(3, 3))
        helper.post(small.elsewhere.load(reads=()))
        connect(home, helper, small, blobs=(0, 1))
        build_road(helper, home)
        await helper.wait(BlobResident, index=1)
        send = Send("road", 1, 1, Span(0, 1), 0, N, hidden=True)
        first = step(Span(0, 1), row(0), row(1), new=(new(0), new(1)))
        await run(helper, first, step(WHOLE, sends=(send,)))
        await home.wait(ParcelArrived, count=2)
        order = Import("road", 1, 1, row(1).blocks)
        rest = step(Span(1, LAYERS), row(1, True, table=False), new=(new(1),), imports=(order,))
        assert await run(home, rest, *decodes(1, 3)) == expected
        helper.post(replace(step(Span(1, 2), row(1, table=False)), id=900))
        await helper.wait(StepFailed, step=900)  # its hidden states have gone, layer 1 is absent
        assert not helper.of(ModelLoaded)
        connect(home, helper, small, "e2", blobs=small.everything[2:])
        await helper.wait(ModelLoaded)
        rest = step(Span(1, LAYERS), row(0, True, table=False))
        assert await run(helper, rest, *decodes(0, 3)) == expected


async def test_dropped_parcels_and_the_end_of_a_road(small):
    async with peers(HEAVY, HEAVY) as (a, b):
        for peer in (a, b):
            peer.post(small.load())
            await peer.wait(ModelLoaded)
        expected = await run(b, step(WHOLE, row(0, True), new=(new(0),)), *decodes(0, 1))
        build_road(a, b)
        b.post(DropParcels("road", (1,)))
        sends = tuple(Send("road", t, 1, Span(0, 2), 0, N, hidden=t == 2) for t in (1, 2))
        await run(a, step(Span(0, 2), row(1), new=(new(1),), sends=sends))
        await b.wait(ParcelArrived, count=3)
        await a.wait(ParcelsSent, count=2)
        assert {message.parcel.ticket for message in b.of(ParcelArrived)} == {2}
        a.post(CloseEdge("road"))
        await b.wait(EdgeClosed, edge="road")
        await a.wait(EdgeClosed, edge="road")
        order = Import("road", 2, 1, row(1).blocks)
        rest = step(Span(2, LAYERS), row(1, True, table=False), new=(new(1),), imports=(order,))
        assert await run(b, rest, *decodes(1, 1)) == expected
        await run(a, step(WHOLE, sends=(Send("road", 3, 1, Span(0, 2), 0, N),)))
        assert (await a.wait(ParcelsSent, ticket=3)).reason


async def test_an_instance_is_unloaded_while_its_parcels_wait(small):
    """What is still to be read then is not sent; the worker goes on."""
    async with peers(HEAVY) as (a,):
        a.post(small.load())
        await a.wait(ModelLoaded)
        terms = EdgeTerms("r", "op", PARCELS, (), secrets.token_bytes(32), 3, "lan")
        a.post(OpenSend(terms))
        send = Send("r", 1, 1, WHOLE, 0, N)
        await run(a, step(WHOLE, row(1), new=(new(1),), sends=(send,)))
        a.post(UnloadModel("i0"))
        await asyncio.sleep(0.1)
        assert not a.of(ParcelsSent)
        a.post(DropParcels("r", (1,)), CloseEdge("r"))
        await a.wait(EdgeClosed)
        assert not a.of(ParcelsSent)
        a.post(small.load("i1"))
        await a.tokens("i1")


class Listener:
    """Hears of parcels, and of nothing else."""

    def __init__(self):
        self.news = []

    def __getattr__(self, name):
        return lambda *_: None

    def told(self, message):
        self.news.append(message)


async def test_the_supervisor_passes_news_of_parcels_up_and_drops_down(small):
    """Without a road they cannot be sent, which is said at once."""
    listener, ready = Listener(), []
    listener.instance_ready = lambda *_: ready.append(True)
    supervisor = WorkerSupervisor(HEAVY, (small.load(),), MonotonicClock(), listener)
    supervisor.start()
    try:
        await until(lambda: ready, "the load")
        supervisor.send(DropParcels("nowhere", (1,)))
        sends = (Send("nowhere", 4, 1, Span(0, 0), 0, N, hidden=True),)
        first = step(Span(0, 1), row(1), new=(new(1),), sends=sends)
        supervisor.post(replace(first, id=7))
        of_parcels = lambda: [n for n in listener.news if isinstance(n, ParcelsSent)]  # noqa: E731
        await until(of_parcels, "news of parcels")
        assert of_parcels() == [replace(of_parcels()[0], edge="nowhere", ticket=4, size_bytes=0)]
        assert of_parcels()[0].reason
    finally:
        await supervisor.stop()
