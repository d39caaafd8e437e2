"""The schedulers of a pipeline drive real executors, on the paced device."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from itertools import count
from random import Random

import pytest

from blitzgw.core.live import LivePolicy, Return, back_of
from blitzgw.core.parcels import ParcelArrived, ParcelsSent
from blitzgw.core.request import FinishReason
from blitzgw.core.span import Span
from blitzgw.core.step import StepResult
from blitzgw.worker.execution import Executor
from blitzgw.worker.executor import InstanceExecutor
from tests.scheduler.stage_kit import StageWorld
from tests.worker.handoff_kit import LAYERS, Bench, Road, paced_engine

NAMES, CUTS = ["a", "b", "c"], [1, 3, LAYERS]


class RealWorker:
    """An executor behind what a toy worker can be asked."""

    stage = Span(0, 0)
    resident = 0

    def __init__(self, name: str) -> None:
        self.posted, self.ran = deque(), []
        self.inbox, self.outgoing, self.dropped = {}, {}, set()
        clock = count()
        self._executor = Executor(now=lambda: next(clock) * 1e-3)
        self._executor.instances[name] = InstanceExecutor(paced_engine(), LAYERS, self)
        self._instance = self._executor.instances[name]

    @property
    def sequences(self):
        return self._instance.sequences

    def post(self, step) -> None:
        self.posted.append(step)

    def run_next(self, *, fail: bool = False) -> StepResult:
        assert not fail
        self.ran.append(self.posted.popleft())
        return self._executor.execute(self.ran[-1])

    def take(self, edge, ticket):
        return self.inbox.pop((edge, ticket), [])

    def send(self, send, outgoing) -> None:
        if (send.edge, send.ticket) not in self.dropped:
            queue = self.outgoing.setdefault(send.edge, deque())
            queue.extend((*outgoing, ParcelsSent(send.edge, send.ticket, 1, 0.001)))

    def read_next(self, edge):
        one = self.outgoing[edge].popleft()
        if isinstance(one, ParcelsSent):
            return one
        return one.parcel, memoryview(bytearray(one.read()))

    def receive(self, edge, parcel, data):
        if (edge, parcel.ticket) in self.dropped:
            return None
        self.inbox.setdefault((edge, parcel.ticket), []).append((parcel, data))
        return ParcelArrived(edge, parcel)

    def drop(self, command) -> None:
        queue = self.outgoing.get(command.edge, ())
        left = [
            one
            for one in queue
            if (one if isinstance(one, ParcelsSent) else one.parcel).ticket not in command.tickets
        ]
        self.outgoing[command.edge] = deque(left)
        for ticket in command.tickets:
            self.inbox.pop((command.edge, ticket), None)
            self.dropped.add((command.edge, ticket))

    def close(self, edge) -> None:
        self.outgoing.pop(edge, None)
        self.outgoing.pop(back_of(edge), None)


@lru_cache(maxsize=64)
def alone(tokens, sampling):
    bench = Bench(paced_engine(), Road())
    bench.learn(1, tokens, sampling)
    first = bench.prefill(1, len(tokens), Span(0, LAYERS))
    return [*first, *bench.decode(1, sampling.max_tokens - 1)]


class RealWorld(StageWorld):
    """Workers are executors, and one that is alone says what is right."""

    def add(self, name, **options):
        node = super().add(name, **options)
        node.worker = RealWorker(name)
        return node

    def expected(self, story):
        request = story.request
        prompt = request.tokens[: request.prompt_length]
        return alone(prompt, request.sampling), FinishReason.LENGTH


@pytest.mark.parametrize("seed", range(6))
def test_a_pipeline_of_executors_gives_the_tokens_of_one(seed):
    random = Random(seed)
    world = RealWorld()
    world.add("home", max_num_seqs=1, max_batched_tokens=20)
    for name in NAMES:
        world.add(name, loading=True, max_batched_tokens=20)
        world.nodes[name].scheduler._live.pipelines.lead.headroom = random.choice([1, 9])
    world.chain(NAMES, CUTS)
    world.serve(NAMES, CUTS)
    world.pair("a", "home", LivePolicy.PIPELINE)
    world.play()
    for _ in range(5):
        prompt = [random.randrange(300) for _ in range(random.randint(1, 60))]
        world.ask(prompt, random.choice([1, 6, 20]))
    for _ in range(seed * 40):
        if found := world.choices():
            act, *arguments = random.choice(found)
            act(*arguments)
    if seed % 3 == 1:
        world.complete("a")
    if seed % 3 == 2:
        world.kill("b")
    world.play(random)
    world.assert_done()
    assert not any(story.failures for story in world.stories.values())
    assert any(step.rows for step in world.nodes["c"].worker.ran)


@pytest.mark.parametrize("seed", range(4))
def test_kv_that_comes_back_to_a_lead_is_what_it_would_have_computed(seed):
    random = Random(seed)
    world = RealWorld()
    for name in NAMES:
        world.add(name, loading=True, max_batched_tokens=20)
    world.chain(NAMES, CUTS)
    world.serve(NAMES, CUTS)
    world.play()
    for _ in range(3):
        prompt = [random.randrange(300) for _ in range(random.randint(1, 60))]
        world.ask(prompt, 25, instance="a")
    while not all(len(story.outputs) > seed for story in world.stories.values()):
        act, *arguments = random.choice(world.choices())
        act(*arguments)
    world.complete("a")
    assert sum(isinstance(said, Return) for said in world.said) == 3
    world.play(random)
    world.assert_done()
    assert not any(story.failures for story in world.stories.values())
    ran = [step for step in world.nodes["a"].worker.ran if step.span == Span(0, LAYERS)]
    assert sum(row.count for step in ran for row in step.rows) <= 3 * 25
