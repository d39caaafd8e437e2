"""Prompts that are made up: exact lengths, shared where the trace says so, alike for a seed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.traces import BLOCK_TOKENS
from scripts.evaluation.prompts import (
    FIRST_ID,
    LETTERS,
    WORDS,
    Alphabet,
    prompt_ids,
    prompt_text,
)


@given(st.integers(1, 3000), st.integers(0, 9), st.integers(0, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_prompts_have_exactly_their_length_and_repeat(tokens, seed, number, data):
    blocks = -(-tokens // BLOCK_TOKENS)
    ids = data.draw(st.lists(st.integers(0, 99), min_size=blocks, max_size=blocks) | st.just([]))
    arrival = Arrival(0.0, tokens, 1, tuple(ids))
    prompt = prompt_ids(seed, number, arrival)
    assert len(prompt) == tokens
    assert FIRST_ID <= min(prompt) <= max(prompt) <= 255
    assert prompt == prompt_ids(seed, number, arrival)
    if tokens > 8:
        assert prompt != prompt_ids(seed + 1, number, arrival)
        assert (prompt == prompt_ids(seed, number + 1, arrival)) == bool(ids)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 4 * BLOCK_TOKENS))
@settings(max_examples=40, deadline=None)
def test_prompts_share_what_their_blocks_share_and_no_more(ids, tokens):
    one = Arrival(0.0, 4 * BLOCK_TOKENS, 1, (0, 1, 2, 3))
    other = Arrival(0.0, tokens, 1, tuple(ids[: -(-tokens // BLOCK_TOKENS)]))
    first, second = prompt_ids(1, 0, one), prompt_ids(1, 1, other)
    same = next(
        (n for n, pair in enumerate(zip(ids, range(4), strict=True)) if len({*pair}) > 1), 4
    )
    shared = min(tokens, same * BLOCK_TOKENS)
    assert first[:shared] == second[:shared]
    assert first[shared : shared + 9] != second[shared : shared + 9] or shared == tokens
    texts = [prompt_text(1, n, a, Alphabet(LETTERS, 7)) for n, a in enumerate((one, other))]
    assert texts[0][: max(0, shared - 7)] == texts[1][: max(0, shared - 7)]


def test_texts_leave_room_for_what_the_endpoint_adds():
    text = prompt_text(1, 0, Arrival(0.0, 40, 1), Alphabet(WORDS, 12))
    assert len(text.split()) == 28
    assert text.count(" ") == 28
    assert prompt_text(1, 0, Arrival(0.0, 5, 1), Alphabet(WORDS, 12)).count(" ") == 1
    assert len(set(WORDS)) == len(WORDS)
