"""What the paced device computes does not depend on how the work is cut and placed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import PacedCost
from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span
from blitzgw.engine.base import RowInput
from blitzgw.engine.noise import mix, noise_key
from tests.engine.paced_kit import (
    EOS,
    GREEDY,
    LAYERS,
    PROMPT,
    WHOLE,
    engine,
    generate,
    model,
    row,
    sequence,
    step,
)


@pytest.fixture(scope="module")
def truth():
    return generate(engine(), sequence())


def test_tokens_vary_and_are_the_same_again(truth):
    assert len(set(truth)) > 3
    assert generate(engine(), sequence()) == truth


def test_tokens_follow_the_documented_formula():
    import xxhash

    made, spec = engine(), model()
    digests = [xxhash.xxh3_64_intdigest(made.blob_buffer(i)) for i in range(LAYERS + 2)]
    mask = (1 << 64) - 1
    hidden = [
        mix(mix(token ^ digests[0]) + p * 0x9E3779B97F4A7C15) for p, token in enumerate(PROMPT)
    ]
    for layer in range(LAYERS):
        keyed = [h ^ digests[1 + layer] for h in hidden]
        fold, after = 0, []
        for p, x in enumerate(keyed):
            fold = (fold + mix(x) * (2 * p + 1)) & mask
            after.append(mix(fold + x))
        hidden = after
    fold = mix(hidden[-1] ^ digests[-1] ^ mix(digests[0]))
    token = mix(fold) % (spec.shape.vocab - len(EOS))
    expected = [t for t in range(spec.shape.vocab) if t not in EOS][token]
    assert step(made, [row(sequence(), 0)]) == [expected]


@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_split_at_any_layer_over_two_engines(k, truth):
    front, back = Span(0, LAYERS).split(k)
    one, two = engine(), engine()
    state, other = sequence(slot=2), sequence(slot=5)
    tokens = []
    for start in (0, *[None] * 5):
        rows = [row(state, start)]
        handed = one.export_hidden(one.forward(rows, front, None))
        moved = [RowInput(other, rows[0].start, rows[0].count, True)]
        tokens += step_from(two, moved, back, two.import_hidden(handed))
        state.tokens.append(tokens[-1])
    assert tokens == truth


@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_handoff_at_any_layer_with_the_kv_before_it(k, truth):
    front, back = Span(0, LAYERS).split(k)
    one, two = engine(), engine()
    state, other = sequence(slot=2), sequence(slot=5)
    rows = [row(state, 0)]
    hidden = one.export_hidden(one.forward(rows, front, None))
    two.import_kv(other.table, one.export_kv(state.table, 0, len(PROMPT), front))
    tokens = step_from(two, [row(other, 0)], back, two.import_hidden(hidden))
    while len(tokens) < len(truth):
        tokens += step(two, [row(other)])
    assert tokens == truth


def step_from(made, rows, span, hidden):
    hidden = made.forward(rows, span, hidden)
    sampled = made.sample(rows, made.logits(rows, hidden))
    rows[0].sequence.tokens.append(sampled[0].token)
    return [sampled[0].token]


@settings(max_examples=40, deadline=None)
@given(cuts=st.sets(st.integers(1, len(PROMPT) - 1), max_size=6))
def test_chunks_do_not_matter(cuts):
    made, state = engine(), sequence()
    bounds = [0, *sorted(cuts), len(PROMPT)]
    for start, stop in pairwise(bounds[:-1]):
        made.forward([RowInput(state, start, stop - start, False)], WHOLE, None)
    assert generate(made, state, start=bounds[-2]) == generate(engine(), sequence())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_batch_and_placement_do_not_matter(data):
    made = engine()
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    blocks = data.draw(st.permutations(range(64)))
    rng = np.random.default_rng(3)
    prompts = [rng.integers(1, 300, n).tolist() for n in lengths]
    states = [
        sequence(p, table=blocks[10 * i : 10 * i + 10], sampling=GREEDY)
        for i, p in enumerate(prompts)
    ]
    together = [step(made, [row(s, 0) for s in states])]
    together += [step(made, [row(s) for s in states]) for _ in range(3)]
    alone = [generate(engine(), sequence(p), 4) for p in prompts]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_prefill_and_decode_mix_and_some_do_not_sample(truth):
    made = engine()
    first, second, third = sequence(slot=0), sequence(slot=1), sequence(slot=2)
    step(made, [row(first, 0)])
    mixed = [
        RowInput(second, 0, 20, False),
        row(first),
        RowInput(third, 0, len(PROMPT), True),
    ]
    assert step(made, mixed) == [truth[1], truth[0]]
    assert step(made, [row(third), RowInput(second, 20, len(PROMPT) - 20, True)]) == [
        truth[1],
        truth[0],
    ]


def test_a_row_reads_what_another_row_of_the_batch_writes(truth):
    made, state = engine(), sequence()
    rows = [RowInput(state, 0, 20, False), RowInput(state, 20, len(PROMPT) - 20, True)]
    assert step(made, rows) == truth[:1]


def test_copied_blocks_serve_as_the_originals(truth):
    made, state = engine(), sequence(slot=0)
    step(made, [row(state, 0)])
    moved = sequence(table=range(40, 48))
    moved.tokens.append(truth[0])
    made.copy_blocks([(i, 40 + i) for i in range(8)])
    made.release([(0, 8)])
    assert step(made, [row(moved)]) == truth[1:2]


def test_kv_travels_between_engines(truth):
    one, two = engine(), engine()
    state = sequence(slot=1)
    step(one, [row(state, 0)])
    kv = one.export_kv(state.table, 0, len(PROMPT), WHOLE)
    assert len(kv.data) == 8 * LAYERS * len(PROMPT)
    other = sequence(state.tokens, slot=6)
    two.import_kv(other.table, kv)
    assert step(two, [row(other)]) == truth[1:2]


def test_empty_spans_and_batches():
    made = engine()
    rows = [row(sequence(), 0)]
    embedded = made.forward(rows, Span(0, 0), None)
    again = made.forward(rows, WHOLE, embedded)
    assert np.array_equal(again, made.forward(rows, WHOLE, None))
    assert np.array_equal(made.forward(rows, Span(3, 3), again), again)
    assert made.forward([], WHOLE, None).shape == (0,)
    assert made.sample([], made.logits([], made.forward([], WHOLE, None))) == []


def test_seed_choice_and_position_steer_sampling():
    def sampled(**changes):
        params = SamplingParams(max_tokens=8, temperature=0.7, seed=changes.get("seed", 3))
        return generate(engine(), sequence(sampling=params, choice=changes.get("choice", 0)))

    assert sampled() == sampled()
    assert len({tuple(sampled()), tuple(sampled(seed=4)), tuple(sampled(choice=1))}) == 3


def test_noise_belongs_to_the_position_of_the_new_token():
    made, state = engine(), sequence(sampling=SamplingParams(8, temperature=1.0, seed=9))
    rows = [row(state, 0)]
    fold = made.logits(rows, made.forward(rows, WHOLE, None))
    index = mix(int(fold[0]) ^ noise_key(9, 0, len(PROMPT))) % (301 - len(EOS))
    expected = [t for t in range(301) if t not in EOS][index]
    assert made.sample(rows, fold)[0].token == expected


def test_it_never_ends_a_sequence():
    made = engine(model(vocab=4, eos=(0, 2)))
    tokens = generate(made, sequence([1, 1, 3]), 60)
    assert set(tokens) == {1, 3}
    with pytest.raises(ValueError, match="vocabulary"):
        engine(model(vocab=2, eos=(0, 1)))


@pytest.mark.parametrize(("asked", "alternatives"), [(None, None), (0, 0), (1, 1), (5, 1)])
def test_logprobs_are_certain(asked, alternatives):
    made, state = engine(), sequence(sampling=SamplingParams(8, temperature=0.0, logprobs=asked))
    rows = [row(state, 0)]
    (one,) = made.sample(rows, made.logits(rows, made.forward(rows, WHOLE, None)))
    if asked is None:
        assert one.logprobs is None
    else:
        assert one.logprobs.chosen == 0.0
        assert one.logprobs.top == ((one.token, 0.0),) * alternatives


def test_a_sequence_ends_at_the_position_that_its_seed_names():
    made = engine(cost=PacedCost(seed_ends=True))
    length = len(PROMPT) + 3
    asked = replace(GREEDY, seed=length)
    plain = generate(engine(), sequence(), 4)
    tokens = generate(made, sequence(sampling=asked), 4)
    assert tokens == [*plain[:3], EOS[0]]
    assert not set(plain) & set(EOS)


def test_scores_are_certain():
    made = engine()
    state = sequence(sampling=SamplingParams(8, prompt_logprobs=1))
    rows = [RowInput(state, p, 1, sample=True) for p in range(2)]
    assert made.score(rows, made.logits(rows, made.forward(rows, Span(0, 0), None))) == [
        Logprobs(0.0, ((token, 0.0),)) for token in state.tokens[1:3]
    ]
