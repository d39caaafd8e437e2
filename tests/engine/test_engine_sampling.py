"""Sampling: filters and penalties against their definitions, noise against its promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.request import SamplingParams
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.noise import MAX_NOISE, MIN_NOISE, gumbel, mix, mix_array, noise_key
from blitzgw.engine.sampling import adjust, draw, logprobs_of, sample, score

BASE = SamplingParams(max_tokens=16, temperature=1.0)
EOS = (2,)


def row(tokens=(5, 6, 7), prompt_length=3, choice=0, **params) -> RowInput:
    sequence = SequenceState(list(tokens), prompt_length, choice, replace(BASE, **params))
    return RowInput(sequence, len(tokens) - 1, 1, True)


def support(logits, **params) -> set[int]:
    """Every token that can come out, over many noise keys."""
    p = replace(BASE, **params)
    return {draw(logits, p, noise_key(seed, 0, 9)) for seed in range(400)}


def test_greedy_takes_the_largest_logit_and_the_lower_id_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [4.0, 0.0, 0.0, 4.0]])
    rows = [row(temperature=0.0), row(temperature=0.0)]
    assert [s.token for s in sample(rows, logits, EOS)] == [1, 0]
    rows = [row(temperature=0.0, logit_bias=((3, 0.0),)) for _ in rows]
    assert [s.token for s in sample(rows, logits, EOS)] == [1, 0]


def test_filters_keep_what_they_say():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
    assert support(logits) == {0, 1, 2, 3, 4}
    assert support(logits, top_k=2) == {0, 1}
    assert support(logits, top_p=0.5) == {0, 1}
    assert support(logits, top_p=0.1) == {0}
    assert support(logits, min_p=0.4) == {0, 1, 2}
    assert support(logits, top_k=3, top_p=0.75) == {0, 1}  # of 0.9: 0.44, 0.33, 0.22
    assert support(logits, temperature=0.01) == {0}


def test_top_k_breaks_ties_by_lower_id():
    assert support(np.array([1, 2, 2, 2, 0], np.float32), top_k=2) == {1, 2}


def test_frequencies_are_those_of_the_softmax():
    """Chi-square with 7 degrees of freedom: 24.3 is exceeded once in 1,000 by chance."""
    logits = np.array([0.0, 1.0, 2.0, -1.0, 0.5, 1.5, -2.0, 0.2], np.float32)
    p = replace(BASE, temperature=0.8)
    n = 20_000
    tokens = [draw(logits, p, noise_key(s, 0, 4)) for s in range(n)]
    counts = np.bincount(tokens, minlength=8)
    weights = np.exp(logits.astype(np.float64) / 0.8)
    expected = n * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


def test_the_pruned_draw_is_the_draw_over_the_whole_vocabulary():
    rng = np.random.default_rng(1)
    for seed in range(50):
        logits = (rng.standard_normal(4000) * 8).astype(np.float32)
        key = noise_key(seed, 1, 77)
        everything = logits.astype(np.float64) + gumbel(key, np.arange(4000))
        assert draw(logits, BASE, key) == int(everything.argmax())


def whole_draw(logits, p, key):
    """The definition: every token sorted and given noise, then filter by filter."""
    scaled = logits.astype(np.float64) / p.temperature
    ids = np.argsort(-scaled, kind="stable")
    if p.top_k > 0:
        ids = ids[: p.top_k]
    weights = np.exp(scaled[ids] - scaled[ids[0]])
    if p.top_p < 1:
        before = np.cumsum(weights) - weights
        ids = ids[: max(1, np.count_nonzero(before < p.top_p * weights.sum()))]
    if p.min_p > 0:
        ids = ids[scaled[ids] >= scaled.max() + math.log(p.min_p)]
    return int(ids[np.argmax(scaled[ids] + gumbel(key, ids))])


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
@pytest.mark.parametrize(
    "filters",
    [{}, {"top_p": 0.9}, {"top_k": 30}, {"top_k": 30, "top_p": 0.8}, {"min_p": 0.02}],
    ids=str,
)
def test_looking_at_few_candidates_changes_no_token(spread, filters):
    rng = np.random.default_rng(2)
    for seed in range(60):
        logits = (rng.standard_normal(3000) * spread).astype(np.float32)
        if seed % 2:
            logits = np.round(logits)  # with many equals
        p = replace(BASE, temperature=0.8, **filters)
        key = noise_key(seed, 0, 5)
        assert draw(logits, p, key) == whole_draw(logits, p, key)


def test_noise_depends_on_each_of_its_arguments_and_stays_in_bounds():
    keys = {noise_key(s, c, p) for s in range(20) for c in range(5) for p in range(20)}
    assert len(keys) == 2000
    values = gumbel(noise_key(1, 2, 3), np.arange(100_000))
    assert values.min() >= MIN_NOISE
    assert values.max() <= MAX_NOISE
    assert abs(values.mean() - 0.5772) < 0.02  # Euler–Mascheroni
    assert len(np.unique(values)) > 99_000


@given(st.integers(0, 2**64 - 1))
def test_mix_is_the_same_in_python_and_numpy(value):
    assert int(mix_array(np.array([value], np.uint64))[0]) == mix(value)


def test_noise_is_pinned():
    """These numbers are part of what users are promised: the same seed, the same text, for ever."""
    assert noise_key(0, 0, 0) == PINNED_KEY
    assert gumbel(noise_key(42, 1, 100), np.array([0, 1, 49151])).round(9).tolist() == PINNED_NOISE


PINNED_KEY = 3746585686858627171
PINNED_NOISE = [-1.262167937, 0.174174487, 2.988489591]


def test_penalties_follow_their_definitions():
    raw = np.array([1.0, -1.0, 2.0, 0.5, 4.0], np.float32)
    r = row(tokens=(0, 1, 3, 3), prompt_length=2, repetition_penalty=2.0)
    assert adjust(raw, r, EOS).tolist() == [0.5, -2.0, 2.0, 0.25, 4.0]
    r = row(tokens=(0, 1, 3, 3), prompt_length=2, frequency_penalty=0.5, presence_penalty=1.0)
    assert adjust(raw, r, EOS).tolist() == [1.0, -1.0, 2.0, -1.5, 4.0]
    r = row(logit_bias=((4, -100.0), (1, 3.0)))
    assert adjust(raw, r, EOS).tolist() == [1.0, 2.0, 2.0, 0.5, -96.0]
    assert raw.tolist() == [1.0, -1.0, 2.0, 0.5, 4.0]


def test_min_tokens_bans_ends_until_they_are_due():
    raw = np.array([0, 0, 9, 8, 1], np.float32)
    early = row(tokens=(5, 6, 7), prompt_length=2, min_tokens=2, stop_token_ids=(3,))
    assert [i for i, x in enumerate(adjust(raw, early, EOS)) if np.isneginf(x)] == [2, 3]
    due = row(tokens=(5, 6, 7, 7), prompt_length=2, min_tokens=2, stop_token_ids=(3,))
    assert adjust(raw, due, EOS).tolist() == raw.tolist()
    greedy = replace(BASE, temperature=0.0, min_tokens=4)
    r = RowInput(SequenceState([5, 6], 2, 0, greedy), 1, 1, True)
    assert sample([r], torch.from_numpy(raw)[None], EOS)[0].token == 3


def test_scores_are_the_log_probabilities_of_the_tokens_that_follow():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(4)) * 6
    tokens = [3, 9, 9, 0, 49, 21, 7, 30]
    state = SequenceState(tokens, 8, 0, SamplingParams(1, prompt_logprobs=3))
    rows = [RowInput(state, p, 1, sample=True) for p in range(7)]
    for p, one in enumerate(score(rows, logits)):
        expected = logprobs_of(logits[p].numpy(), tokens[p + 1], 3)
        assert one.chosen == pytest.approx(expected.chosen, abs=1e-5)
        assert [token for token, _ in one.top] == [token for token, _ in expected.top]
        assert [v for _, v in one.top] == pytest.approx([v for _, v in expected.top], abs=1e-5)


def test_logprobs_are_of_the_raw_logits_and_sorted():
    raw = np.array([0.0, 2.0, 1.0, 2.0], np.float32)
    result = logprobs_of(raw, 2, 3)
    total = math.log(sum(math.exp(x) for x in raw.tolist()))
    assert result.chosen == pytest.approx(1 - total)
    assert [token for token, _ in result.top] == [1, 3, 2]
    assert result.top[0][1] == pytest.approx(2 - total)
    assert logprobs_of(raw, 0, 0).top == ()
    assert len(logprobs_of(raw, 0, 20).top) == 4


@settings(deadline=None, max_examples=60)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
)
def test_a_row_is_sampled_alike_alone_and_in_any_company(seeds, top_p, temperature):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(seeds), 500, generator=generator) * 4
    rows = [row(seed=s, top_p=top_p, temperature=temperature) for s in seeds]
    together = sample(rows, logits, EOS)
    alone = [sample([r], logits[i : i + 1], EOS)[0] for i, r in enumerate(rows)]
    backwards = sample(rows[::-1], logits.flip(0), EOS)[::-1]
    assert together == alone == backwards


def test_choices_of_one_request_differ():
    logits = torch.zeros(8, 1000)
    rows = [row(choice=c, seed=5) for c in range(8)]
    assert len({s.token for s in sample(rows, logits, EOS)}) > 4
