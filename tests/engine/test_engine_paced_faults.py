"""Whatever goes wrong with weights, KV or layers shows in the paced device's tokens."""

import pytest

from blitzgw.core.span import Span
from blitzgw.core.step import SequenceKv
from blitzgw.engine.base import RowInput
from tests.engine.paced_kit import (
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


def prefilled():
    made, state = engine(), sequence()
    step(made, [row(state, 0)])
    return made, state


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blob", range(LAYERS + 2))
def test_one_bit_of_weight_changes_the_tokens(blob, tied):
    expected = generate(engine(model(tied)), sequence())
    made = engine(model(tied))
    made.blob_buffer(blob)[-1] ^= 1
    made.blob_arrived(blob)
    assert generate(made, sequence()) != expected


def test_a_tied_head_reads_the_embedding_a_second_time():
    # The bytes of embedding and head are the same; only the tie differs.
    assert generate(engine(model(True)), sequence()) != generate(engine(model(False)), sequence())


def test_swapped_layers_change_the_tokens(truth):
    made = engine()
    first, second = made.blob_buffer(2), made.blob_buffer(3)
    first[:], second[:] = bytes(second), bytes(first)
    made.blob_arrived(2)
    made.blob_arrived(3)
    assert generate(made, sequence()) != truth


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([Span(0, 2), Span(3, LAYERS)], id="skipped"),
        pytest.param([Span(0, 3), Span(2, LAYERS)], id="repeated"),
        pytest.param([Span(0, 2), Span(3, LAYERS), Span(2, 3)], id="out of order"),
        pytest.param([Span(0, LAYERS - 1)], id="last one missing"),
    ],
)
def test_a_wrong_walk_over_the_layers_changes_the_token(spans, truth):
    assert step(engine(), [row(sequence(), 0)], spans) != truth[:1]


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("position", [0, 1, 15, 16, len(PROMPT) - 1])
def test_one_bit_of_one_kv_entry_changes_the_token(layer, position, truth):
    made, state = prefilled()
    span = Span(layer, layer + 1)
    data = bytearray(made.export_kv(state.table, 0, len(PROMPT), span).data)
    data[8 * position + 3] ^= 16
    made.import_kv(state.table, SequenceKv(span, 0, len(PROMPT), bytes(data)))
    assert step(made, [row(state)]) != truth[1:2]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param([1, 0, 2, 3], id="swapped"),
        pytest.param([0, 0, 2, 3], id="repeated"),
        pytest.param([0, 1, 9, 3], id="someone else's"),
    ],
)
def test_a_wrong_block_table_changes_the_token(table, truth):
    made, state = prefilled()
    state.table[:4] = table
    assert step(made, [row(state)]) != truth[1:2]


def test_released_blocks_are_empty(truth):
    made, state = prefilled()
    made.release([(1, 1)])
    assert step(made, [row(state)]) != truth[1:2]


def test_a_stale_position_changes_the_token(truth):
    made, state = prefilled()
    last = len(PROMPT)
    state.tokens[last] ^= 1
    made.forward([row(state)], WHOLE, None)  # writes the KV of a token that was not sampled
    state.tokens[last] ^= 1
    state.tokens.append(truth[1])
    assert step(made, [row(state)]) != truth[2:3]


def test_a_position_that_was_never_computed_changes_the_token(truth):
    made, state = engine(), sequence()
    made.forward([RowInput(state, 0, 10, False)], WHOLE, None)
    assert step(made, [RowInput(state, 11, len(PROMPT) - 11, True)]) != truth[:1]


@pytest.mark.parametrize("blob", range(LAYERS + 2))
def test_a_blob_that_has_not_arrived_is_refused(blob):
    made = engine(skip=[blob])
    with pytest.raises(ValueError, match=f"blob {blob} is not resident"):
        step(made, [row(sequence(), 0)])


def test_layers_before_the_gap_run():
    made = engine(skip=[4, 5, 6])
    assert made.forward([row(sequence(), 0)], Span(0, 3), None).shape == (len(PROMPT),)


@pytest.mark.parametrize(
    ("start", "count", "table", "message"),
    [
        (0, 46, range(8), "tokens"),
        (46, 1, range(8), "tokens"),
        (0, 45, range(2), "block table"),
        (0, 45, [0, 1, 64], "outside"),
        (0, 45, [0, -1, 2], "outside"),
        (0, 0, range(8), "without a position"),
        (-1, 1, range(8), "without a position"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(start, count, table, message):
    state = sequence(table=table)
    with pytest.raises(ValueError, match=message):
        engine().forward([RowInput(state, start, count, True)], WHOLE, None)


def test_foreign_state_that_does_not_fit_is_refused():
    made, state = prefilled()
    kv = made.export_kv(state.table, 0, len(PROMPT), WHOLE)
    with pytest.raises(ValueError, match="hidden states"):
        made.forward([row(state)], Span(2, 3), made.import_hidden(bytes(16)))
    with pytest.raises(ValueError, match="hidden states"):
        made.forward([row(state)], Span(2, 3), None)
    with pytest.raises(ValueError, match="need 3 blocks"):
        made.import_kv([0, 1], kv)
    with pytest.raises(ValueError, match="reshape"):
        made.import_kv(state.table, SequenceKv(WHOLE, 0, len(PROMPT), kv.data[:-8]))
    with pytest.raises(ValueError, match="KV of layers"):
        made.import_kv(state.table, SequenceKv(Span(4, 6), 0, len(PROMPT), kv.data[: 8 * 90]))
    with pytest.raises(ValueError, match="outside"):
        made.copy_blocks([(0, 64)])
    with pytest.raises(ValueError, match="outside"):
        made.release([(60, 8)])
