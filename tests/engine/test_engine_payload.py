"""Payloads of the paced device weigh what they should and notice what is wrong with them."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import PacedCost
from blitzgw.core.span import Span
from blitzgw.core.step import SequenceKv
from blitzgw.engine.payload import pack, unpack
from tests.engine.paced_kit import PROMPT, WHOLE, engine, generate, row, sequence

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)
HEAVY = PacedCost(kv_bytes=27, hidden_bytes=50)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 70), st.data())
def test_a_payload_comes_back_and_nothing_else_is_one(words, each, data):
    values = np.array(words, np.uint64)
    payload = pack(values, each)
    assert len(payload) == len(words) * max(8, each)
    assert (unpack(payload, each) == values).all()
    if each > 8:
        at = data.draw(st.integers(0, len(payload) - 1))
        damaged = bytearray(payload)
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(ValueError, match="padding"):
            unpack(bytes(damaged), each)
        with pytest.raises(ValueError, match=r"bytes are no|padding"):
            unpack(bytes(payload)[1:] + b"\0", each)
        with pytest.raises(ValueError, match="bytes are no"):
            unpack(payload[:-1], each)


def test_what_travels_weighs_what_the_cost_says():
    made, state = engine(cost=HEAVY), sequence()
    hidden = made.forward([row(state, 0)], Span(0, 2), None)
    assert len(made.export_hidden(hidden)) == 50 * len(PROMPT)
    kv = made.export_kv(state.table, 3, 40, Span(0, 2))
    assert len(kv.data) == 27 * 37 * 2
    assert (kv.start, kv.stop) == (3, 40)


@pytest.mark.parametrize("cut", [1, 16, 17, 44])
def test_kv_of_position_ranges_makes_up_the_whole(cut):
    one, two, other = engine(cost=HEAVY), engine(cost=HEAVY), engine()
    expected = generate(other, sequence(), 3)
    state, moved = sequence(), sequence(slot=3)
    one.forward([row(state, 0)], WHOLE, None)
    for layer in WHOLE.layers():
        for start, stop in ((cut, 45), (0, cut)):
            kv = one.export_kv(state.table, start, stop, Span(layer, layer + 1))
            two.import_kv(moved.table, kv)
    rest = [row(moved, 44)]
    hidden = two.forward(rest, WHOLE, None)
    assert two.sample(rest, two.logits(rest, hidden))[0].token == expected[0]


def test_kv_of_other_positions_is_refused():
    made, state = engine(cost=HEAVY), sequence()
    kv = made.export_kv(state.table, 0, 45, WHOLE)
    with pytest.raises(ValueError, match="reshape"):
        made.import_kv(state.table, SequenceKv(WHOLE, 0, 44, kv.data))
    with pytest.raises(ValueError, match=r"padding|no values"):
        made.import_kv(state.table, SequenceKv(WHOLE, 0, 45, kv.data[:-27]))
    with pytest.raises(ValueError, match="positions"):
        made.export_kv(state.table, 5, 4, WHOLE)


def test_kv_is_exported_while_others_compute():
    """Another thread reads a sequence's KV again and again; it is the same every time."""
    made, state, busy = engine(), sequence(), sequence(slot=1)
    made.forward([row(state, 0)], WHOLE, None)
    expected = bytes(made.export_kv(state.table, 0, 45, WHOLE).data)
    different, over = [], threading.Event()

    def export():
        while not over.is_set():
            data = bytes(made.export_kv(state.table, 0, 45, WHOLE).data)
            if data != expected:
                different.append(data)

    thread = threading.Thread(target=export)
    thread.start()
    for _ in range(30):
        made.forward([row(busy, 0)], WHOLE, None)
    over.set()
    thread.join(10)
    assert not different
