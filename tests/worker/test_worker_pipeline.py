"""Three executors, each with a span of the layers, give a sequence's tokens together."""

from dataclasses import replace

import pytest

from blitzgw.core.model import Dtype
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send, Step
from blitzgw.worker.execution import Executor
from blitzgw.worker.executor import StepRefused
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import Rig
from tests.worker.handoff_kit import GREEDY, LAYERS, SEEDED, Bench, Road, paced_engine

PROMPT = tuple(range(3, 44))
N = len(PROMPT)
WHOLE = Span(0, LAYERS)
CHUNKS = [(at, min(at + 16, N)) for at in range(0, N, 16)]
SPANS = (Span(0, 2), Span(2, 3), Span(3, LAYERS))
PENAL = replace(SEEDED, presence_penalty=1.5, frequency_penalty=0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    sizes = {"num_hidden_layers": LAYERS, "head_dim": 32, "vocab_size": 304}
    return tiny_checkpoint("llama", folder, **sizes)


@pytest.fixture(scope="module", params=["paced", "torch"])
def made(request, checkpoint):
    """Three stages, the road after each, and an instance that is alone."""
    roads = [Road() for _ in SPANS]
    if request.param == "paced":
        return [Bench(paced_engine(), road) for road in (*roads, roads[0])], roads
    rigs = [Rig(checkpoint, Dtype.FLOAT32) for _ in range(4)]
    return [
        Bench(r.engine, road, LAYERS, r.kv)
        for r, road in zip(rigs, (*roads, roads[0]), strict=True)
    ], roads


class Stage:
    """A stage as its scheduler drives it: it takes from the road before, sends on the one after."""

    def __init__(self, bench, index, before):
        self.bench, self.span, self.before = bench, SPANS[index], before
        self.last = index == len(SPANS) - 1
        bench.instance._parcels = self

    def take(self, edge, ticket):
        return self.before.take(edge, ticket)

    def send(self, send, outgoing):
        self.after.send(send, outgoing)

    def run(self, start, stop, *, sample=False, known=(), import_=True):
        row = Row(1, start, stop - start, sample and self.last)
        end = Span(self.span.stop, self.span.stop)
        sends = () if self.last else (Send("e", 1, 1, end, start, stop, hidden=True),)
        imports = (Import("e", 1, 1),) if self.span.start and import_ else ()
        return self.bench.step(self.span, (row,), known=known, imports=imports, sends=sends)


@pytest.fixture
def chain(made):
    """The stages, and the instance that is alone, without the sequences of other tests."""
    (*benches, alone), roads = made
    for bench in (*benches, alone):
        for seq in list(bench.instance.sequences):
            bench.step(WHOLE, (), drop=(seq,))
    stages = [Stage(b, i, roads[i - 1]) for i, b in enumerate(benches)]
    for stage, road in zip(stages, roads, strict=True):
        stage.after = road
    return stages, alone


def in_turn(stages):
    """Prefill chunk by chunk; returns the first token."""
    for start, stop in CHUNKS:
        for stage in stages:
            tokens = stage.run(start, stop, sample=stop == N)
            stage.after.carry()
    return tokens


def ahead(stages):
    """Each stage runs all chunks before the next one, which imports them with its first."""
    for stage in stages:
        for i, (start, stop) in enumerate(CHUNKS):
            tokens = stage.run(start, stop, sample=stop == N, import_=not i)
        stage.after.carry()
    return tokens


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, PENAL], ids=["greedy", "seeded", "penal"])
@pytest.mark.parametrize("prefill", [in_turn, ahead])
def test_a_pipeline_gives_the_tokens_of_one(chain, sampling, prefill):
    stages, alone = chain
    for bench in (alone, *(stage.bench for stage in stages)):
        bench.learn(1, PROMPT, sampling)
    expected = alone.prefill(1, N, WHOLE, 16) + alone.decode(1, 4)
    tokens = prefill(stages)
    for at in range(N, N + 4):
        for stage in stages:
            known = () if stage.last else ((1, tokens[at - N]),)
            sampled = stage.run(at, at + 1, sample=True, known=known)
            stage.after.carry()
        tokens += sampled
    assert tokens == expected
    for stage in stages[:-1]:
        assert stage.bench.instance.sequences[1].tokens == [*PROMPT, *expected[:-1]]
        frontier = stage.bench.instance.frontiers.get(1)
        assert frontier is None or not frontier.pieces


def test_tokens_of_unknown_sequences_are_refused_and_a_failure_forgets():
    bench = Bench(paced_engine(), Road())
    bench.learn(1, PROMPT)
    bench.learn(2, PROMPT)
    executor = Executor(now=lambda: 0.0)
    executor.instances["i0"] = bench.instance
    with pytest.raises(StepRefused, match="unknown sequence 9"):
        executor.execute(Step(1, "i0", SPANS[0], (), known=((1, 5), (9, 5))))
    assert set(bench.instance.sequences) == {2}
    new = NewSequence(3, PROMPT, N, 0, GREEDY)
    executor.execute(Step(2, "i0", SPANS[0], (), new=(new,), known=((3, 7), (2, 8))))
    assert bench.instance.sequences[3].tokens == [*PROMPT, 7]
    assert bench.instance.sequences[2].tokens == [*PROMPT, 8]


def test_what_is_not_given_away_stays():
    bench = Bench(paced_engine(), Road())
    bench.learn(1, PROMPT)
    bench.step(SPANS[0], (Row(1, 0, 16, False),))
    bench.step(SPANS[0], (Row(1, 16, 16, False),))
    bench.step(SPANS[1], (Row(1, 0, 16, False),), sends=(Send("e", 1, 1, Span(3, 3), 0, 16, True),))
    (piece,) = bench.instance.frontiers[1].pieces
    assert (piece.layer, piece.start, piece.stop) == (2, 16, 32)
