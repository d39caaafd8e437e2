"""Hidden states by layer and position: what is put together, taken apart, refused."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.worker.frontier import Frontier, Piece

TOP = 9


def join(parts):
    return [each for part in parts for each in part]


def piece(layer, start, stop):
    return Piece(layer, start, stop, [(layer, position) for position in range(start, stop)])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True), st.data())
def test_what_was_put_in_pieces_is_taken_in_others(cuts, data):
    cuts.sort()
    frontier = Frontier(TOP)
    for start, stop in data.draw(st.permutations(list(pairwise(cuts)))):
        frontier.put(piece(3, start, stop))
    at = cuts[0]
    while at < cuts[-1]:
        stop = data.draw(st.integers(at + 1, cuts[-1]))
        assert frontier.take(3, at, stop, join) == [(3, p) for p in range(at, stop)]
        at = stop
    assert frontier.pieces == ()


def test_chunks_may_be_at_different_layers():
    frontier = Frontier(TOP)
    frontier.put(piece(2, 16, 32))
    frontier.put(piece(1, 0, 16))
    with pytest.raises(ValueError, match=r"\[0, 32\) at layer 2"):
        frontier.take(2, 0, 32, join)
    with pytest.raises(ValueError, match="at one layer"):
        frontier.give_away(0, 32)
    assert len(frontier.pieces) == 2
    frontier.take(1, 0, 16, join)
    frontier.put(piece(2, 0, 16))
    assert [part.start for part in frontier.give_away(0, 32)] == [0, 16]
    assert frontier.pieces == ()


def test_a_gap_and_what_is_there_twice_are_refused():
    frontier = Frontier(TOP)
    frontier.put(piece(2, 0, 10))
    frontier.put(piece(2, 12, 20))
    with pytest.raises(ValueError, match=r"no hidden states of \[0, 20\)"):
        frontier.take(2, 0, 20, join)
    with pytest.raises(ValueError, match="at layer 2 already"):
        frontier.put(piece(3, 9, 12))


def test_what_waits_for_the_head_gives_way():
    frontier = Frontier(TOP)
    frontier.put(piece(TOP, 0, 10))
    frontier.put(piece(4, 8, 12))
    assert [(p.layer, p.start, p.stop) for p in frontier.pieces] == [(TOP, 0, 8), (4, 8, 12)]
    frontier.forget_top()
    assert [p.layer for p in frontier.pieces] == [4]
