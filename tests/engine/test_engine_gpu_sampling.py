"""Sampling on the device gives the tokens of sampling on the host, for equal logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.request import SamplingParams
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.gpu import sampling
from blitzgw.engine.gpu.sampling import sample_on_device
from blitzgw.engine.noise import gumbel, mix, noise_key
from blitzgw.engine.sampling import is_unadjusted, sample

BASE = SamplingParams(max_tokens=16, temperature=1.0)
VOCAB = 700


def row(position=3, choice=0, **params) -> RowInput:
    sequence = SequenceState([5] * position, 1, choice, replace(BASE, **params))
    return RowInput(sequence, position - 1, 1, True)


def on_host(rows, logits):
    return [one.token for one in sample(rows, logits, ())]


FILTERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 30},
    {"top_k": 10 * VOCAB},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 0.999999},
    {"top_k": 30, "top_p": 0.8},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.1},
    {"top_p": 0.95, "min_p": 0.05},
    {"temperature": 1e-4, "top_p": 0.9},
    {"temperature": 9.0},
]


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "equals"])
def test_tokens_are_those_of_the_host_for_every_mixture_of_wishes(spread, rounded):
    generator = torch.Generator().manual_seed(int(spread * 10) + rounded)
    rows = [
        row(position=2 + seed % 7, choice=seed % 3, seed=seed * 7919, **filters)
        for seed in range(4)
        for filters in FILTERS
    ]
    for _ in range(3):
        logits = torch.randn(len(rows), VOCAB, generator=generator) * spread
        if rounded:
            logits = logits.round()
        assert sample_on_device(rows, logits).tolist() == on_host(rows, logits)


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(1, 40),
    temperature=st.floats(0.05, 4.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    data=st.data(),
)
def test_any_wish_on_any_logits(seed, position, temperature, top_k, top_p, min_p, data):
    values = data.draw(st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 2.0]), min_size=2))
    one = row(position, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor([values])
    assert sample_on_device([one], logits).tolist() == on_host([one], logits)


def test_chunks_change_nothing(monkeypatch):
    rows = [row(seed=i, top_p=0.9 if i % 2 else 1.0) for i in range(7)]
    logits = torch.randn(7, VOCAB, generator=torch.Generator().manual_seed(4)) * 4
    whole = sample_on_device(rows, logits).tolist()
    monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", 2 * VOCAB)
    assert sample_on_device(rows, logits).tolist() == whole == on_host(rows, logits)


def test_greedy_takes_the_lower_id_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [4.0, 0.0, 0.0, 4.0]])
    assert sample_on_device([row(temperature=0.0)] * 2, logits).tolist() == [1, 0]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_numbers_fail_nobody(filters, odd):
    """Which token they get is as good as any other: but the same, and the row beside is drawn."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    rows = [row(seed=3), row(seed=4, **filters)]
    logits[1, 7:9] = odd
    expected = on_host(rows, logits)
    assert sample_on_device(rows, logits).tolist() == expected
    assert expected[0] == on_host(rows[:1], logits[:1])[0]
    logits[1] = odd
    assert sample_on_device(rows, logits).tolist() == on_host(rows, logits)


def test_top_k_takes_the_lower_ids_of_equals():
    logits = torch.zeros(1, 50)
    drawn = {int(sample_on_device([row(seed=s, top_k=3)], logits)) for s in range(60)}
    assert drawn == {0, 1, 2}


@given(st.integers(0, 2**64 - 1))
def test_the_hash_is_the_same_in_torch(value):
    mixed = sampling._mix(torch.tensor([sampling._signed(value)]))
    assert int(mixed) % (1 << 64) == mix(value)


def test_the_noise_is_the_same_in_torch():
    for seed in range(20):
        key = noise_key(seed, 1, 30)
        ids = np.arange(2000)
        noise = sampling._gumbel(torch.tensor([[sampling._signed(key)]]), torch.from_numpy(ids))
        np.testing.assert_allclose(noise[0].numpy(), gumbel(key, ids), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "wish",
    [
        {"logprobs": 0},
        {"logit_bias": ((3, 1.0),)},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"min_tokens": 9},
    ],
    ids=str,
)
def test_who_wants_more_than_a_token_of_the_raw_logits_is_left_to_the_host(wish):
    assert is_unadjusted(row())
    assert not is_unadjusted(row(**wish))
