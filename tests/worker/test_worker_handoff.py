"""A sequence that begins on one instance and goes on at another, cut at any layer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.model import Dtype
from blitzgw.core.parcels import Parcel
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send
from blitzgw.worker import outgoing
from blitzgw.worker.executor import StepRefused
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import Rig
from tests.worker import handoff_kit
from tests.worker.handoff_kit import GREEDY, LAYERS, SEEDED, Bench, Road, paced_engine

PROMPT = tuple(range(3, 44))
N = len(PROMPT)
WHOLE = Span(0, LAYERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handoff")
    sizes = {"num_hidden_layers": LAYERS, "head_dim": 32, "vocab_size": 304}
    return tiny_checkpoint("llama", folder, **sizes)


@pytest.fixture(scope="module", params=["paced", "torch"])
def made(request, checkpoint):
    """Two benches, a road from the first to the second, and a third that is alone."""
    road = Road()
    if request.param == "paced":
        return tuple(Bench(paced_engine(), road) for _ in range(3)), road
    rigs = [Rig(checkpoint, Dtype.FLOAT32) for _ in range(3)]
    return tuple(Bench(rig.engine, road, LAYERS, rig.kv) for rig in rigs), road


@pytest.fixture
def benches(made):
    """Without the sequences of other tests."""
    (one, two, alone), road = made
    for bench in (one, two, alone):
        for seq in list(bench.instance.sequences):
            bench.step(WHOLE, (), drop=(seq,))
    return one, two, alone, road


def expected(alone, sampling, n=N):
    alone.learn(1, PROMPT[:n], sampling)
    tokens = alone.prefill(1, n, WHOLE) + alone.decode(1, 3)
    alone.step(WHOLE, (), drop=(1,))
    return tokens


@pytest.mark.parametrize("chunk", [None, 16, 7])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_handoff_at_every_layer(benches, chunk, sampling):
    """[0, k) layer by layer at the helper, the rest at the home, which then decodes alone."""
    one, two, alone, road = benches
    tokens = expected(alone, sampling)
    for k in range(LAYERS + 1):
        one.learn(1, PROMPT, sampling)
        two.learn(2, PROMPT, sampling, blocks=False)
        for layer in range(k):
            span = Span(layer, layer + 1)
            for start in range(0, N, chunk or N):
                one.step(span, (Row(1, start, min(chunk or N, N - start), False),))
        if k:
            send = Send("e", 9, 1, Span(0, k), 0, N, hidden=True)
            one.step(WHOLE, (), sends=(send,))
            parcels = road.carry()
            hidden = [parcel.is_hidden for parcel in parcels]
            assert hidden == sorted(hidden, reverse=True)
            assert [p.span for p in parcels[-k:]] == [Span(i, i + 1) for i in range(k)]
        assert not one.instance.frontiers or not one.instance.frontiers[1].pieces
        order = Import("e", 9, 2, two.blocks(2))
        two.step(WHOLE, (), imports=(order,))
        got = two.prefill(2, N, Span(k, LAYERS), chunk, layer_major=True)
        assert got + two.decode(2, 3) == tokens, f"k = {k}"
        one.step(WHOLE, (), drop=(1,))
        two.step(WHOLE, (), drop=(2,))


def test_a_model_of_one_layer_is_cut_before_it_or_behind_it(monkeypatch):
    monkeypatch.setattr(handoff_kit, "LAYERS", 1)
    road = Road()
    one, two, alone = (Bench(paced_engine(), road, layers=1) for _ in range(3))
    alone.learn(1, PROMPT, SEEDED)
    tokens = alone.prefill(1, N, Span(0, 1), 16) + alone.decode(1, 3)
    assert not alone.instance.frontiers[1].pieces
    one.learn(1, PROMPT, SEEDED)
    two.learn(1, PROMPT, SEEDED)
    for start in range(0, N, 16):
        one.step(Span(0, 1), (Row(1, start, min(16, N - start), False),))
    one.step(Span(0, 1), (), sends=(Send("e", 1, 1, Span(0, 1), 0, N, hidden=True),))
    road.carry()
    two.step(Span(0, 1), (), imports=(Import("e", 1, 1),))
    assert two.prefill(1, N, Span(1, 1)) + two.decode(1, 3) == tokens


def test_kv_below_may_come_after_the_prefill_above(benches):
    """The home needs the layers below k only to decode."""
    one, two, alone, road = benches
    tokens = expected(alone, GREEDY)
    one.learn(1, PROMPT)
    two.learn(2, PROMPT)
    one.prefill(1, N, Span(0, 3))
    one.step(WHOLE, (), sends=(Send("e", 4, 1, Span(0, 0), 0, N, hidden=True),))
    road.carry()
    got = []
    got += two.step(Span(3, LAYERS), (Row(2, 0, N, True),), imports=(Import("e", 4, 2),))
    one.step(WHOLE, (), sends=(Send("e", 4, 1, Span(0, 3), 0, N),))
    road.carry()
    at = Row(2, N, 1, True)
    got += two.step(WHOLE, (at,), imports=(Import("e", 4, 2),))
    assert got + two.decode(2, 2) == tokens


def test_sequences_at_the_same_boundary_share_a_step(benches):
    one, two, alone, road = benches
    lengths = {1: 9, 2: 33, 3: 16}
    tokens = {seq: expected(alone, SEEDED, n) for seq, n in lengths.items()}
    for seq, n in lengths.items():
        one.learn(seq, PROMPT[:n], SEEDED)
        two.learn(seq, PROMPT[:n], SEEDED)
    one.step(Span(0, 2), [Row(seq, 0, n, False) for seq, n in lengths.items()])
    one.step(Span(2, 3), [Row(3, 0, 16, False), Row(1, 0, 9, False)])
    one.step(Span(2, 3), [Row(2, 0, 20, False), Row(2, 20, 13, False)])
    sends = [Send("e", seq, seq, Span(0, 3), 0, n, hidden=True) for seq, n in lengths.items()]
    one.step(WHOLE, (), sends=tuple(sends))
    road.carry()
    imports = tuple(Import("e", seq, seq) for seq in lengths)
    rows = [Row(seq, 0, n, True) for seq, n in lengths.items()][::-1]
    got = two.step(Span(3, LAYERS), rows, imports=imports)
    for seq, first in zip([row.seq for row in rows], got, strict=True):
        assert [first, *two.decode(seq, 3)] == tokens[seq]


def test_a_pipeline_passes_every_token_through_both(benches):
    one, two, alone, road = benches
    tokens = expected(alone, SEEDED)
    one.learn(1, PROMPT, SEEDED)
    two.learn(1, PROMPT, SEEDED)
    start, got = 0, []
    for _ in range(4):
        row = Row(1, start, N + len(got) - start, False)
        send = Send("e", 1, 1, Span(0, 0), start, start + row.count, hidden=True)
        one.step(Span(0, 2), (row,), sends=(send,))
        road.carry()
        rows = (row._replace(sample=True),)
        got += two.step(Span(2, LAYERS), rows, imports=(Import("e", 1, 1),))
        one.instance.sequences[1].tokens.append(got[-1])
        start = N + len(got) - 1
    assert got == tokens


def test_a_running_sequence_moves(benches):
    """Its KV goes while it decodes, the rest when it has stopped."""
    one, two, alone, road = benches
    tokens = expected(alone, SEEDED)
    one.learn(1, PROMPT, SEEDED)
    got = one.prefill(1, N, WHOLE)
    one.step(WHOLE, (), sends=(Send("e", 3, 1, WHOLE, 0, N),))
    got += one.decode(1, 2)
    road.carry()
    one.step(WHOLE, (), sends=(Send("e", 3, 1, WHOLE, N, N + 2),))
    road.carry()
    two.learn(1, (*PROMPT, *got), SEEDED)
    two.instance.sequences[1].prompt_length = N
    two.step(WHOLE, (), imports=(Import("e", 3, 1),))
    assert got + two.decode(1, 1) == tokens


def test_a_sequence_may_be_dropped_while_its_parcels_wait(benches):
    one, two, alone, road = benches
    tokens = expected(alone, GREEDY)
    one.learn(1, PROMPT)
    one.prefill(1, N, Span(0, 3))
    one.step(WHOLE, (), sends=(Send("e", 3, 1, Span(0, 3), 0, N, hidden=True),))
    one.step(WHOLE, (), drop=(1,))
    one.learn(2, PROMPT[::-1])
    one.prefill(2, N, WHOLE)
    road.carry()
    two.learn(2, PROMPT)
    row = Row(2, 0, N, True)
    got = two.step(Span(3, LAYERS), (row,), imports=(Import("e", 3, 2),))
    assert got + two.decode(2, 3) == tokens


def test_long_sequences_go_in_several_parcels(benches, monkeypatch):
    one, two, alone, road = benches
    monkeypatch.setattr(outgoing, "PARCEL_TOKENS", 16)
    tokens = expected(alone, GREEDY)
    one.learn(1, PROMPT)
    one.prefill(1, N, Span(0, 2))
    one.step(WHOLE, (), sends=(Send("e", 3, 1, Span(0, 2), 0, N, hidden=True),))
    assert len(road.carry()) == 9
    two.learn(2, PROMPT)
    row = Row(2, 0, N, True)
    got = two.step(Span(2, LAYERS), (row,), imports=(Import("e", 3, 2),))
    assert got + two.decode(2, 3) == tokens


REFUSED = [
    (Span(2, 5), (Row(1, 0, N, True),), "at layer 2"),
    (Span(1, 1), (Row(1, 0, N, False),), "a model that has 5"),
    (Span(0, 0), (Row(1, 0, N, False),), "a model that has 5"),
    (Span(4, 6), (Row(1, 0, N, False),), "a model that has 5"),
    (Span(3, 4), (Row(1, 0, N, True),), "cannot sample"),
    (Span(3, 4), (Row(1, 0, N - 1, False), Row(1, N - 2, 2, False)), "at layer 3"),
    (Span(0, 1), (Row(1, 0, 4, False),), "at layer 3 already"),
    (Span(5, 5), (Row(1, N - 1, 1, True),), "at layer 5"),
]


@pytest.mark.parametrize(("span", "rows", "why"), REFUSED)
def test_what_cannot_be_meant_is_refused_and_the_sequence_forgotten(benches, span, rows, why):
    one, _, _, _ = benches
    one.learn(1, PROMPT)
    one.learn(2, PROMPT)
    one.prefill(1, N, Span(0, 3))
    with pytest.raises(StepRefused, match=why):
        one.step(span, rows)
    assert set(one.instance.sequences) == {2}
    assert one.instance.frontiers == {}


@pytest.mark.parametrize(
    ("send", "why"),
    [
        (Send("e", 1, 9, WHOLE, 0, 4), "unknown sequence 9"),
        (Send("e", 1, 1, WHOLE, 0, 4, hidden=True), "at one layer"),
        (Send("e", 1, 1, Span(0, 6), 0, 4), "a model that has 5"),
        (Send("e", 1, 1, WHOLE, 0, 5000), "positions"),
        (Send("e", 1, 1, WHOLE, 4, 4), "positions"),
    ],
)
def test_sends_that_cannot_be_meant_are_refused(benches, send, why):
    one, _, _, road = benches
    one.learn(1, PROMPT)
    one.prefill(1, N, WHOLE)
    with pytest.raises(StepRefused, match=why):
        one.step(WHOLE, (), sends=(send,))
    assert not road.sent


def test_imports_that_cannot_be_meant_are_refused(benches):
    _, two, _, road = benches
    for parcel in (Parcel(1, Span(0, 0), 0, 4), Parcel(1, Span(2, 2), 0, 5)):
        two.learn(1, PROMPT)
        hidden = two.instance.engine.forward(
            [two.instance._row(Row(1, 0, 4, False))], Span(0, 2), None
        )
        data = two.instance.engine.export_hidden(hidden)
        road.arrived["e", 1] = [(parcel, data)]
        with pytest.raises(StepRefused, match="hidden states at layer"):
            two.step(WHOLE, (), imports=(Import("e", 1, 1),))
        assert 1 not in two.instance.sequences
    two.step(WHOLE, (), new=(NewSequence(1, PROMPT, N, 0, GREEDY),), imports=(Import("e", 1, 1),))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_way_through_the_layers_gives_the_same_tokens(data):
    """Chunks and layers in any order that respects both, over several handoffs."""
    road = Road()
    benches = [Bench(paced_engine(), road) for _ in range(2)]
    tokens = expected(Bench(paced_engine(), road), SEEDED)
    chunk = data.draw(st.integers(5, N))
    at, layer = 0, 0
    benches[0].learn(1, PROMPT, SEEDED)
    while layer < LAYERS:
        stop = data.draw(st.integers(layer + 1, LAYERS))
        bench = benches[at]
        got = bench.prefill(1, N, Span(layer, stop), chunk, data.draw(st.booleans()))
        layer = stop
        if layer < LAYERS and data.draw(st.booleans()):
            send = Send("e", layer, 1, Span(0, layer), 0, N, hidden=True)
            bench.step(WHOLE, (), sends=(send,))
            road.carry()
            bench.step(WHOLE, (), drop=(1,))
            at = 1 - at
            benches[at].learn(1, PROMPT, SEEDED)
            benches[at].step(WHOLE, (), imports=(Import("e", layer, 1),))
    assert got + benches[at].decode(1, 3) == tokens
