"""The real model on two engines with a road between them, and requests cut at a layer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
import transformers

from blitzgw.core.model import Dtype
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, Import, Row, Send
from blitzgw.engine.noise import gumbel, noise_key
from blitzgw.weights.info import open_checkpoint, resolve_model
from tests.support.engines import NEAR_TIE, Rig
from tests.worker.handoff_kit import Bench, Road

NEW_TOKENS = 12
CONTEXT = 64
PREFIX = 2 * BLOCK_TOKENS
GREEDY = SamplingParams(max_tokens=64, temperature=0.0)
SEEDED = SamplingParams(max_tokens=64, temperature=0.9, seed=1234567)

DOWN, UP = "down", "up"
"""Roads from the home to the helper and back. The tests of the worker have them one at a time."""


@dataclass(frozen=True)
class Case:
    """A request: `chunk` 0 is its prompt at once; of `cached` tokens the home has the KV."""

    name: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    chunk: int = 0
    cached: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt)

    def row(self, seq: int, turn: int) -> Row | None:
        """Its chunk of a turn, where it has as many. The last one samples."""
        chunk = self.chunk or self.length
        start = self.cached + turn * chunk
        stop = min(start + chunk, self.length)
        return Row(seq, start, stop - start, stop == self.length) if start < stop else None


def cases_of(text: Sequence[int]) -> tuple[Case, ...]:
    """Every way to prefill, greedy and seeded, with prompts of text that differ in length."""
    draw = random.Random(8)
    made = []
    for name, length, chunk, cached in (
        ("whole", 12, 0, 0),
        ("chunks", 14, 5, 0),
        ("prefix", PREFIX + 6, 3, PREFIX),
    ):
        for how, sampling in (("greedy", GREEDY), ("seeded", SEEDED)):
            length -= how == "seeded"
            start = 0 if cached else draw.randrange(100, len(text) - length)
            prompt = text[start : start + length]
            if cached:  # the same prefix, and then something else for each
                after = draw.randrange(100, len(text) - length)
                prompt = (*text[:cached], *text[after : after + length - cached])
            made.append(Case(f"{name} {how}", tuple(prompt), sampling, chunk, cached))
    return tuple(made)


@dataclass
class Outcome:
    """What became of the cases: their tokens, and what was seen on the way there."""

    tokens: list[list[int]]
    hidden: list[torch.Tensor]
    """Before the final norm, of the positions of every step that sampled."""
    logits: list[torch.Tensor]
    kv: list[bytes]
    """Of all layers and positions that have been computed, by case."""

    def differs(self, other: Outcome) -> str:
        """Say where two outcomes differ in any bit; empty where they do not."""
        if self.tokens != other.tokens:
            return "tokens"
        if self.kv != other.kv:
            return f"KV of cases {[a == b for a, b in zip(self.kv, other.kv, strict=True)]}"
        for what, mine, others in (
            ("hidden states", self.hidden, other.hidden),
            ("logits", self.logits, other.logits),
        ):
            if len(mine) != len(others) or not all(map(torch.equal, mine, others)):
                return what
        return ""


class Pair:
    """A helper and a home with the real model; a case's sequence is in a slot of its own each time.

    The helper's slots are used again and again: their memory is given back in between, so that KV
    that was not computed or sent this time is no KV.
    """

    def __init__(self, path: Path, dtype: Dtype, cases: Sequence[Case], rounds: int) -> None:
        self.cases, self.road = cases, Road()
        n = len(cases)
        rigs = [Rig(path, dtype, slots, CONTEXT) for slots in (n, n * rounds + 1)]
        self.layers = rigs[0].spec.shape.n_layers
        self.helper, self.home = (Bench(rig.engine, self.road, self.layers, rig.kv) for rig in rigs)
        self._whole = Span(0, self.layers)
        self._donor = n * rounds
        self._round = -1
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._watch()
        prefix = next(case.prompt[: case.cached] for case in cases if case.cached)
        self.home.learn(self._donor, prefix)
        self.home.prefill(self._donor, PREFIX, self._whole)

    def _watch(self) -> None:
        """Keep what the home's engine makes tokens of."""
        engine = self.home.instance.engine
        real = engine.logits

        def logits(rows, hidden):
            found = real(rows, hidden)
            ends = accumulate(row.count for row in rows)
            lines = [end - 1 for end, row in zip(ends, rows, strict=True) if row.sample]
            self._seen.append((hidden[lines], found.clone()))
            return found

        engine.logits = logits

    def _begin(self) -> list[int]:
        """Let the home know all cases anew, with the prefixes that it has; return their names."""
        self._round += 1
        first = self._round * len(self.cases)
        seqs = list(range(first, first + len(self.cases)))
        for seq, case in zip(seqs, self.cases, strict=True):
            self.home.learn(seq, case.prompt, case.sampling)
            blocks = case.cached // BLOCK_TOKENS
            source, target = self.home.blocks(self._donor), self.home.blocks(seq)
            copies = tuple(zip(source[:blocks], target[:blocks], strict=True))
            self.home.step(self._whole, (), copies=copies)
        self._seen.clear()
        return seqs

    def _prefill(
        self, bench: Bench, seqs: Sequence[int], span: Span, group: int
    ) -> dict[int, list[int]]:
        """Run a span, `group` layers after `group` layers, in each chunk after chunk."""
        tokens: dict[int, list[int]] = {seq: [] for seq in seqs}
        starts = range(span.start, span.stop, group) if len(span) else (span.start,)
        for start in starts:
            part = Span(start, min(start + group, span.stop))
            for rows in self._turns(seqs):
                if part.stop < self.layers or bench is self.helper:
                    bench.step(part, [row._replace(sample=False) for row in rows])
                    continue
                got = bench.step(part, rows)
                for row, token in zip([r for r in rows if r.sample], got, strict=True):
                    tokens[row.seq].append(token)
        return tokens

    def _turns(self, seqs: Sequence[int]) -> Iterable[list[Row]]:
        """The rows of each step: requests at the same boundary share it."""
        turn = 0
        while rows := [
            row
            for seq, case in zip(seqs, self.cases, strict=True)
            if (row := case.row(seq, turn)) is not None
        ]:
            yield rows
            turn += 1

    def whole(self, group: int = 0) -> tuple[Outcome, list[int]]:
        """Run all cases on the home alone, in the same batches: the cached ones stay there."""
        seqs = self._begin()
        tokens = self._prefill(self.home, seqs, self._whole, group or self.layers)
        return self._outcome(seqs, tokens), seqs

    def split(self, k: int, group: int = 0) -> tuple[Outcome, list[int]]:
        """Run `[0, k)` layer by layer at the helper and the rest at the home."""
        seqs = self._begin()
        if k:
            self._help(seqs, k)
        rest = self._prefill(self.home, seqs, Span(k, self.layers), group or self.layers)
        return self._outcome(seqs, rest), seqs

    def _help(self, seqs: Sequence[int], k: int) -> None:
        """Let the helper run `[0, k)`, prefixes having travelled there, and hand it all over."""
        helper, slots = self.helper, range(len(self.cases))
        blocks = helper.kv.blocks_per_slot
        known = tuple(helper.instance.sequences)
        helper.step(self._whole, (), drop=known, release=((0, blocks * len(slots)),))
        for slot, case in zip(slots, self.cases, strict=True):
            helper.learn(slot, case.prompt, case.sampling)
            if case.cached:
                send = Send(DOWN, slot, self._donor, Span(0, k), 0, case.cached)
                self.home.step(self._whole, (), sends=(send,))
        self.road.carry()
        orders = [
            Import(DOWN, slot, slot) for slot, c in zip(slots, self.cases, strict=True) if c.cached
        ]
        helper.step(self._whole, (), imports=tuple(orders))
        self._prefill(helper, slots, Span(0, k), 1)
        self.hand_over(slots, seqs, k, [(case.cached, case.length) for case in self.cases])

    def hand_over(
        self,
        slots: Iterable[int],
        seqs: Sequence[int],
        k: int,
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        """Send what is at layer `k`, and the KV below it, to the home."""
        sends = [
            Send(UP, seq, slot, Span(0, k), start, stop, hidden=True)
            for slot, seq, (start, stop) in zip(slots, seqs, ranges, strict=True)
        ]
        self.helper.step(self._whole, (), sends=tuple(sends))
        self.road.carry()
        orders = tuple(Import(UP, seq, seq) for seq in seqs)
        self.home.step(self._whole, (), imports=orders)

    def decode(self, seqs: Sequence[int]) -> torch.Tensor:
        """Compute the newest token of each sequence at the home; return the logits."""
        self.home.step(self._whole, self._newest(seqs))
        return self._seen[-1][1]

    def decode_split(self, seqs: Sequence[int], k: int) -> torch.Tensor:
        """The same with `[0, k)` at the helper, as stages do; it has the KV of the prompts."""
        slots = range(len(self.cases))
        rows = self._newest(seqs)
        if k:
            known = [
                (slot, self.state(seq).tokens[-1]) for slot, seq in zip(slots, seqs, strict=True)
            ]
            low = [
                row._replace(seq=slot, sample=False) for slot, row in zip(slots, rows, strict=True)
            ]
            self.helper.step(Span(0, 1), low, known=tuple(known))
            if k > 1:  # a step of the whole model has not been cut, and leaves nothing
                self.helper.step(Span(1, k), low)
            ranges = [(row.start, row.start + 1) for row in rows]
            self.hand_over(slots, seqs, k, ranges)
        self.home.step(Span(k, self.layers), rows)
        return self._seen[-1][1]

    def state(self, seq: int):
        return self.home.instance.sequences[seq]

    def _newest(self, seqs: Sequence[int]) -> list[Row]:
        return [Row(seq, len(self.state(seq).tokens) - 1, 1, True) for seq in seqs]

    def generated(self, seq: int) -> list[int]:
        state = self.state(seq)
        return state.tokens[state.prompt_length :]

    def kv(self, seq: int) -> bytes:
        """All that has been computed for a sequence."""
        state = self.state(seq)
        engine = self.home.instance.engine
        return bytes(engine.export_kv(state.table, 0, len(state.tokens) - 1, self._whole).data)

    def _outcome(self, seqs: Sequence[int], tokens: dict[int, list[int]]) -> Outcome:
        return Outcome(
            [tokens[seq] for seq in seqs],
            [hidden for hidden, _ in self._seen],
            [logits for _, logits in self._seen],
            [self.kv(seq) for seq in seqs],
        )


PARTS = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Canonical names, and those of transformers."""


def in_transformers(path: Path) -> transformers.LlamaForCausalLM:
    """Return the model as transformers computes it, in fp32.

    Our reader's weights: that they are those of transformers' own, which takes half a minute, is
    for test_engine_reference.py to show.
    """
    spec = resolve_model("tested", path, Dtype.FLOAT32, None).spec
    shape = spec.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_eps,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope.theta},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert (shape.tied_head, shape.rope.kind) == (True, "default")
    model = transformers.LlamaForCausalLM(config).float().eval()
    weights = model.state_dict()
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names():
        target = weights[name_in_transformers(name)]
        checkpoint.read(name, Dtype.FLOAT32, memoryview(target.numpy()).cast("B"))
    checkpoint.close()
    return model


def name_in_transformers(name: str) -> str:
    if name == "embedding":
        return "model.embed_tokens.weight"
    if name == "norm":
        return "model.norm.weight"
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.weight"


def margin(line: torch.Tensor, sampling: SamplingParams, position: int) -> float:
    """How much better the best token is than the second, noise included: the tolerance's measure.

    For sampling without filters: ENGINE.md's near-ties are of logits, here over temperature.
    """
    scores = line.double()
    if sampling.temperature:
        ids = torch.arange(len(line)).numpy()
        noise = gumbel(noise_key(sampling.seed, 0, position), ids)
        scores = scores / sampling.temperature + torch.from_numpy(noise)
    best = scores.topk(2).values
    return float(best[0] - best[1])


@dataclass
class Count:
    """Tokens compared with the truth's; a difference is right only where the truth is a near-tie,
    and ends the comparison of its sequence."""

    compared: int = 0
    near_ties: int = 0
    wrong: int = 0

    def add(self, got: Sequence[int], truth: Sequence[int], margins: Sequence[float]) -> Count:
        """Count one sequence in."""
        assert len(got) == len(truth) == len(margins)
        for mine, other, gap in zip(got, truth, margins, strict=True):
            self.compared += 1
            if mine != other:
                self.near_ties += gap < NEAR_TIE
                self.wrong += gap >= NEAR_TIE
                break
        return self

    def check(self) -> None:
        """At most one near-tie in 1,000 tokens, and nothing wrong."""
        assert self.wrong == 0, replace(self)
        assert self.near_ties <= max(1, self.compared / 1000), replace(self)
