"""What a body asks for is read once for all that ask alike, and never taken for another's."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from blitzgw.api.bodies import ChatBody, CompletionBody
from blitzgw.api.decode import decode
from blitzgw.api.wishes import _FIELDS, MAX_KNOWN, _known, _read, read_wishes
from blitzgw.core.request import SamplingParams
from blitzgw.errors import InvalidRequest

VOCAB = 100
OTHER = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.25,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"5": 1.0},
    "ignore_eos": True,
    "stop_token_ids": [7],
    "stop": "end",
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "n": 2,
    "priority": 4,
    "stream": True,
    "return_token_ids": True,
}


def chat(**more):
    body = {"messages": [{"role": "user", "content": "a"}], **more}
    return decode(json.dumps(body).encode(), ChatBody)


def text(**more):
    return decode(json.dumps({"prompt": "a", **more}).encode(), CompletionBody)


def test_alike_is_read_once():
    first = read_wishes(chat(temperature=0.25, seed=1, max_tokens=3), VOCAB)
    assert read_wishes(chat(temperature=0.25, seed=2, user="b"), VOCAB) is first
    assert read_wishes(chat(temperature=0.25), VOCAB + 1) is not first
    assert read_wishes(text(temperature=0.25), VOCAB) is not first


@pytest.mark.parametrize("make", [chat, text])
@pytest.mark.parametrize("name", OTHER)
def test_every_field_counts(make, name):
    plain, other = make(), make(**{name: OTHER[name]})
    assert read_wishes(plain, VOCAB) == _read(plain, VOCAB)
    assert read_wishes(other, VOCAB) == _read(other, VOCAB) != _read(plain, VOCAB)


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (chat, {"logprobs": True}),
        (chat, {"logprobs": True, "top_logprobs": 2}),
        (text, {"logprobs": 2}),
        (text, {"echo": True}),
        (chat, {"stream": True, "stream_options": {"include_usage": True}}),
        (chat, {"stream": True, "stream_options": {"continuous_usage_stats": True}}),
    ],
)
def test_so_do_those_that_need_others(make, more):
    body = make(**more)
    assert read_wishes(make(stream=True), VOCAB) != read_wishes(body, VOCAB) == _read(body, VOCAB)


def test_no_field_is_left_out():
    assert {*OTHER, "logprobs", "top_logprobs", "stream_options", "echo"} == {*_FIELDS}


def test_what_is_wrong_is_wrong_again():
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="temperature"):
            read_wishes(chat(temperature=-1.0), VOCAB)


def test_few_are_remembered():
    for top_k in range(2 * MAX_KNOWN):
        read_wishes(chat(top_k=top_k), VOCAB)
    assert len(_known) <= MAX_KNOWN


def test_parameters_begin_with_all_they_have():
    marks = {field.name: f"mark {i}" for i, field in enumerate(fields(SamplingParams))}
    params = SamplingParams(**marks)
    begun = params.begin(5, 6, 7, "g")
    assert begun == replace(params, max_tokens=5, min_tokens=6, seed=7, grammar="g")
