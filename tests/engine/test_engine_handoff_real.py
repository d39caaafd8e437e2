"""SmolLM2 cut at every layer: what a helper began, its home ends as if it had begun it itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from blitzgw.core.model import Dtype
from blitzgw.core.span import Span
from blitzgw.core.step import Send
from blitzgw.transport.parcel import Outgoing
from tests.engine.handoff_real_kit import (
    NEW_TOKENS,
    UP,
    Case,
    Count,
    Outcome,
    Pair,
    cases_of,
    in_transformers,
    margin,
)

LONG = os.environ.get("BLITZGW_LONG") == "1"
CUTS = (*range(31),) if LONG else (0, 1, 2, 7, 10, 15, 20, 29, 30)
"""Layers at which requests are cut: every one in the long run."""

HOME_LAYERS = 3
GROUPS = (1, 7)
EVERY = 10
"""Of the cuts: after those, requests in chunks and with prefixes are decoded too. All have the same
bits to go on with anyway."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps are small, and threads that wait for each other on a busy machine cost more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases(smollm2: Path) -> tuple[Case, ...]:
    tokenizers = pytest.importorskip("tokenizers")
    from blitzgw.weights.info import resolve_model

    path = resolve_model("m", smollm2, None, None).text.tokenizer_path
    text = Path("LICENSE").read_text()
    return cases_of(tokenizers.Tokenizer.from_file(path).encode(text).ids)


@dataclass
class Truth:
    """What one engine gives alone."""

    prefilled: Outcome
    tokens: list[list[int]]
    margins: list[list[float]]
    logits: list[torch.Tensor]
    """Of the decode steps, of all cases together."""


def truth_of(pair: Pair) -> Truth:
    """Run all cases on the home alone."""
    outcome, seqs = pair.whole()
    firsts = first_lines(pair, outcome)
    margins = [
        [margin(line, case.sampling, case.length)]
        for line, case in zip(firsts, pair.cases, strict=True)
    ]
    logits = []
    for step in range(1, NEW_TOKENS):
        logits.append(pair.decode(seqs))
        for line, case, found in zip(logits[-1], pair.cases, margins, strict=True):
            found.append(margin(line, case.sampling, case.length + step))
    return Truth(outcome, [pair.generated(seq) for seq in seqs], margins, logits)


def first_lines(pair: Pair, outcome: Outcome) -> list[torch.Tensor]:
    """Return the logits of each case's first token: they are by step, in the order of its rows."""
    lines: dict[int, torch.Tensor] = {}
    steps = iter(outcome.logits)
    turn = 0
    while len(lines) < len(pair.cases):
        rows = [case.row(i, turn) for i, case in enumerate(pair.cases)]
        sampling = [row for row in rows if row is not None and row.sample]
        if sampling:
            found = next(steps)
            lines |= {row.seq: line for row, line in zip(sampling, found, strict=True)}
        turn += 1
    return [lines[i] for i in range(len(pair.cases))]


@pytest.fixture(scope="module")
def exact(smollm2: Path, cases: tuple[Case, ...]) -> Pair:
    """Two engines in fp32."""
    return Pair(smollm2, Dtype.FLOAT32, cases, rounds=len(CUTS) + len(GROUPS) + 2)


@pytest.fixture(scope="module")
def truth(exact: Pair) -> Truth:
    return truth_of(exact)


def test_one_engine_alone_gives_the_tokens_of_transformers(
    smollm2: Path, exact: Pair, truth: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    model = in_transformers(smollm2)
    count = Count()
    for case, tokens, margins in zip(exact.cases, truth.tokens, truth.margins, strict=True):
        if case.sampling.temperature:
            continue
        prompt = torch.tensor([case.prompt])
        limits = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **limits
        )
        count.add(found[0, case.length :].tolist(), tokens, margins)
    with capsys.disabled():
        print(f"\none engine against transformers' generate: {count}")
    assert count.compared >= 3 * NEW_TOKENS - 1
    count.check()


def test_fp32_cut_at_every_layer(
    exact: Pair, truth: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bits as without a cut, a decode step included; then the same tokens.

    What has been handed over decodes all together, in a batch larger than the truth's.
    """
    seqs = []
    for k in CUTS:
        outcome, mine = exact.split(k, HOME_LAYERS if k % 2 else 0)
        assert not outcome.differs(truth.prefilled), f"k = {k}: {outcome.differs(truth.prefilled)}"
        logits = exact.decode_split(mine, k)
        assert torch.equal(logits, truth.logits[0]), f"k = {k}"
        seqs.append(mine)
    together = [
        (seq, case)
        for k, mine in zip(CUTS, seqs, strict=True)
        for case, seq in enumerate(mine)
        if k % EVERY == 0 or not exact.cases[case].chunk
    ]
    for _ in range(2, NEW_TOKENS):
        exact.decode([seq for seq, _ in together])
    count = Count()
    for seq, case in together:
        count.add(exact.generated(seq), truth.tokens[case], truth.margins[case])
    with capsys.disabled():
        print(f"\ncut at {len(seqs)} layers, fp32: {count}")
    count.check()


@pytest.mark.parametrize("group", GROUPS)
def test_a_prefix_that_is_there_stays(exact: Pair, truth: Truth, group: int) -> None:
    """Its request is not lent: the home sweeps through its own layers, few at a time."""
    outcome, seqs = exact.whole(group)
    assert not outcome.differs(truth.prefilled)
    for expected in truth.logits[:2]:
        assert torch.equal(exact.decode(seqs), expected)


def test_a_layer_that_is_lost_would_be_noticed(
    exact: Pair, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers above need none of the KV below, so that the first token is right all the same."""
    lost, send = Span(2, 3), exact.road.send

    def lossy(order: Send, outgoing: Sequence[Outgoing]) -> None:
        send(order, [one for one in outgoing if order.edge != UP or one.parcel.span != lost])

    monkeypatch.setattr(exact.road, "send", lossy)
    outcome, seqs = exact.split(15)
    assert outcome.tokens == truth.prefilled.tokens
    assert "KV" in outcome.differs(truth.prefilled)
    assert not torch.equal(exact.decode(seqs), truth.logits[0])


def test_bf16_cut_at_every_layer_is_bit_identical_with_the_same_batch(
    smollm2: Path, cases: tuple[Case, ...]
) -> None:
    pair = Pair(smollm2, Dtype.BFLOAT16, cases, rounds=len(CUTS) + 1)
    truth = truth_of(pair)
    for k in CUTS:
        outcome, seqs = pair.split(k, HOME_LAYERS if k % 2 else 0)
        assert not outcome.differs(truth.prefilled), f"k = {k}: {outcome.differs(truth.prefilled)}"
        assert torch.equal(pair.decode_split(seqs, k), truth.logits[0]), f"k = {k}"
        for expected in truth.logits[1 : NEW_TOKENS if k % 10 == 0 else 2]:
            assert torch.equal(pair.decode(seqs), expected), f"k = {k}"
        if k % 10 == 0:
            assert [pair.generated(seq) for seq in seqs] == truth.tokens
