"""Traces: two formats, windows, more and less of them, again and again."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.traces import (
    BLOCK_TOKENS,
    JITTER_S,
    MAX_TOLD,
    in_window,
    load,
    read_trace,
    repeated,
    scaled,
)

TRACES = Path(__file__).parents[2] / "scripts/traces"
CODE = TRACES / "azure2023_code_first_800s.csv"
MOONCAKE = TRACES / "mooncake_conversation.jsonl"
HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AT = "2023-11-16 18:17:0"


def written(folder, text, encoding="utf-8"):
    file = folder / "trace"
    file.write_text(text, encoding=encoding)
    return file


def mooncake(at_ms=0, prompt=600, output=3, ids=(7, 8), **further):
    row = {"timestamp": at_ms, "input_length": prompt, "output_length": output}
    return json.dumps(row | ({} if ids is None else {"hash_ids": [*ids]}) | further) + "\n"


def problems(file, *arguments):
    with pytest.raises(ConfigError) as caught:
        load(file, *arguments)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "rows", "last_s", "first"),
    [
        ("azure2023_code_first_800s.csv", 1966, 675.95, (4808, 10)),
        ("azure2023_conv_first_1200s.csv", 5985, 1199.75, (374, 44)),
        ("mooncake_conversation.jsonl", 12031, 3537.00, (6758, 500)),
    ],
)
def test_the_traces_that_are_here_are_read_whole(name, rows, last_s, first):
    arrivals = read_trace(TRACES / name)
    assert len(arrivals) == rows
    assert arrivals[0].at_s == 0.0
    assert arrivals[-1].at_s == pytest.approx(last_s, abs=0.01)
    assert (arrivals[0].prompt_tokens, arrivals[0].output_tokens) == first
    assert arrivals == sorted(arrivals, key=lambda one: one.at_s)
    for one in arrivals:
        assert not one.blocks or len(one.blocks) == -(-one.prompt_tokens // BLOCK_TOKENS)
    assert bool(arrivals[0].blocks) == (name == MOONCAKE.name)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}{AT}3.9799600,48,10\n{AT}5.0,7,0\n",
        f"{HEAD}{AT}3.9799600,48,10\r\n\r\n{AT}5,7,1".replace("\n", "\r\n"),
        f"\n{HEAD}{AT}5,7,1\n{AT}3.9799600,48,10",
        f"GeneratedTokens,x,ContextTokens,TIMESTAMP\n10,?,48,{AT}3.97996\n1,,7,{AT}5\n",
        f"{HEAD}{AT}3.9799600+00:00,48,10\n2023-11-16 20:17:05+02:00,7,1\n",
    ],
)
def test_an_azure_trace_is_read_whatever_its_order_lines_and_columns(text, tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        first, second = load(written(tmp_path, text, encoding))
        assert first == Arrival(0.0, 48, 10)
        assert (second.prompt_tokens, second.output_tokens) == (7, 1)
        assert second.at_s == pytest.approx(1.02004)


def test_a_mooncake_trace_is_read_with_and_without_blocks(tmp_path):
    text = mooncake(9000.0) + "\n" + mooncake(3000, 512, 0, None, more=1) + mooncake(9000, ids=())
    assert read_trace(written(tmp_path, text)) == [
        Arrival(0.0, 512, 1),
        Arrival(6.0, 600, 3, (7, 8)),
        Arrival(6.0, 600, 3),
    ]


@pytest.mark.parametrize(
    ("text", "line", "right"),
    [
        ("", 1, "JSON lines"),
        ("a,b,c\n1,2,3\n", 1, "ContextTokens"),
        (HEAD, None, "no rows"),
        (f"{HEAD}yesterday,1,1\n", 2, "such as 2023"),
        (f"{HEAD}{AT}5,1\n", 2, "GeneratedTokens"),
        (f"{HEAD}{AT}5,1,1\n{AT}5,-1,1\n", 3, "from 0 to"),
        (f"{HEAD}{AT}5,1.5,1\n", 2, "an integer"),
        (f"{HEAD}{AT}5,{1 << 60},1\n", 2, "from 0 to"),
        (mooncake() + "{oops\n", 2, "a JSON object"),
        (mooncake() + "\n[1]\n", 3, "a JSON object"),
        ('{"timestamp": 1}\n', 1, "input_length"),
        (mooncake("0"), 1, "milliseconds"),
        (mooncake(True), 1, "milliseconds"),
        (mooncake(prompt=2.5), 1, "an integer"),
        (mooncake(prompt=1025), 1, "3 for 1025 tokens, not 2"),
        (mooncake(ids=("a", "b")), 1, "list of integers"),
        (mooncake(ids=(1, -1)), 1, "list of integers"),
        (mooncake(hash_ids="ab"), 1, "list of integers"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_line(text, line, right, tmp_path):
    file = written(tmp_path, text)
    (problem,) = problems(file)
    assert problem.startswith(f"{file}:{line}:" if line else f"{file}:")
    assert right in problem


def test_bad_rows_are_told_together_but_not_without_end(tmp_path):
    file = written(tmp_path, HEAD + "x,1,1\n" * 100)
    told = problems(file)
    assert len(told) == MAX_TOLD + 1
    assert [f"{file}:{line}" in told[line - 2] for line in range(2, 2 + MAX_TOLD)]
    assert "cannot be read" in problems(tmp_path / "nowhere")[0]
    file.write_bytes(b"\xff\xfe\x00\x01")
    assert "cannot be read" in problems(file)[0]


@pytest.mark.parametrize(
    ("window", "why"),
    [((5, 5), "later stop"), ((-1, 5), "from 0 on"), ((700, 800), "676.0 s"),
     ((float("nan"), 5), "from 0 on")],
)  # fmt: skip
def test_a_window_has_to_hold_something(window, why):
    assert why in problems(CODE, window)[0]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_a_factor_has_to_leave_something(factor):
    assert "factor" in problems(CODE, (560, 570), factor)[0]


def test_a_window_counts_from_its_start():
    arrivals = load(CODE, (540, 800))
    assert len(arrivals) == 960
    assert 0 <= arrivals[0].at_s < arrivals[-1].at_s < 260
    assert in_window(read_trace(CODE), 0, 1e9) == read_trace(CODE) == load(CODE)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.floats(0, 100),
        st.integers(1, 2000),
        st.integers(1, 50),
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
    ),
    max_size=60,
).map(lambda found: sorted(found, key=lambda one: one.at_s))


@given(ARRIVALS, st.floats(0.1, 5.0), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_arrivals_are_thinned_or_replicated_alike_for_a_seed(arrivals, factor, seed):
    made = scaled(arrivals, factor, seed, 100.0)
    assert made == scaled(arrivals, factor, seed, 100.0)
    assert made == sorted(made, key=lambda one: one.at_s)
    assert int(factor) * len(arrivals) <= len(made) <= (int(factor) + 1) * len(arrivals)
    assert all(0 <= one.at_s <= 100 for one in made)
    lengths = {(one.prompt_tokens, one.output_tokens) for one in arrivals}
    assert {(one.prompt_tokens, one.output_tokens) for one in made} <= lengths
    if factor >= 1:
        assert all(one in made for one in arrivals)
    times = {}
    for one in arrivals:
        times.setdefault((one.prompt_tokens, one.output_tokens), []).append(one.at_s)
    for one in made:
        near = times[one.prompt_tokens, one.output_tokens]
        assert min(abs(one.at_s - at_s) for at_s in near) <= JITTER_S + 1e-9


def test_factors_hold_on_average_and_seeds_differ():
    base = load(CODE)
    for factor in (0.25, 1.0, 2.5):
        made = scaled(base, factor, 7, 676.0)
        assert len(made) == pytest.approx(factor * len(base), rel=0.05)
        assert factor == 1.0 or made != scaled(base, factor, 8, 676.0)
    assert scaled(base, 1.0, 7, 676.0) == base


def test_replicas_share_prefixes_among_themselves_as_the_originals_do():
    base = [Arrival(n, 1000, 1, (0, 1 + n % 2)) for n in range(10)]
    made = scaled(base, 3.0, 1, 10.0)
    crowds = {}
    for one in made:
        crowds.setdefault(one.blocks[0], []).append(one)
    assert sorted(map(len, crowds.values())) == [10, 10, 10]
    for crowd in crowds.values():
        assert len({one.blocks for one in crowd}) == 2
    assert len({block for one in made for block in one.blocks}) == 9


def test_ticks_are_spread_and_lengths_are_kept(tmp_path):
    file = written(tmp_path, "".join(mooncake(3000 * (n // 9), 600 + n) for n in range(180)))
    told, spread = load(file, None, 1.0, 2), load(file, None, 1.0, 2, 3.0)
    assert len({one.at_s for one in told}) == 20
    assert len({one.at_s for one in spread}) == 180
    lengths = {one.prompt_tokens: one.at_s for one in spread}
    assert all(0 <= lengths[one.prompt_tokens] - one.at_s < 3 for one in told)
    assert spread == sorted(spread, key=lambda one: one.at_s)
    assert spread == load(file, None, 1.0, 2, 3.0) != load(file, None, 1.0, 3, 3.0)
    assert "spread" in problems(file, None, 1.0, 1, -1.0)[0]


def test_a_window_can_go_on_and_on():
    base = [Arrival(0.5, 600, 1, (3, 4)), Arrival(9.0, 10, 2)]
    made = list(repeated(base, 10.0, 25.0))
    assert [one.at_s for one in made] == [0.5, 9.0, 10.5, 19.0, 20.5]
    assert [one.blocks for one in made] == [(3, 4), (), (8, 9), (), (13, 14)]
    assert list(repeated([], 10.0, 25.0)) == list(repeated(base, 10.0, 0.0)) == []
    with pytest.raises(ValueError, match="a window of 0"):
        next(repeated(base, 0, 25.0))
    hour = list(repeated(load(CODE, (0, 680)), 680.0, 3600.0))
    assert hour == sorted(hour, key=lambda one: one.at_s)
    assert 3500 < hour[-1].at_s < 3600
