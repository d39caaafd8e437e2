"""Masks: what a grammar allows, the same whoever asks and when; and what becomes of bad ones."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, grammar_from

from blitzgw.api.grammars import json_schema_grammar
from blitzgw.api.text import TextModel
from blitzgw.core.request import SamplingParams
from blitzgw.core.step import NO_TOKEN, NewSequence, Row, Step
from blitzgw.engine import grammar as grammar_module
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.grammar import MAX_COMPILED, Constraint, Grammars, deeply
from blitzgw.engine.sampling import adjust, sample
from blitzgw.weights.info import resolve_model
from blitzgw.weights.tokens import read_tokens
from blitzgw.worker.execution import Executor
from blitzgw.worker.executor import InstanceExecutor, StepRefused
from tests.engine import paced_kit

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", "naïve 😀"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(smollm2):
    return resolve_model("m", smollm2, None, None)


@pytest.fixture(scope="module")
def text(model):
    return TextModel(model.text, model.spec.shape.vocab)


@pytest.fixture(scope="module")
def grammars(model):
    return of(model)


def of(model, path=None):
    vocab = model.spec.shape.vocab
    tokens = partial(read_tokens, str(path or model.spec.tokenizer), vocab)
    return Grammars(tokens, vocab, model.spec.eos_ids)


def ids(mask):
    return np.flatnonzero(mask).tolist()


def walk(constraint, ends, seed, most=200):
    """Follow a grammar at random until it ends; return the tokens."""
    rng, tokens = np.random.default_rng(seed), []
    while len(tokens) < most:
        tokens.append(int(rng.choice(ids(constraint.allowed(tokens, 0, len(tokens))))))
        if tokens[-1] in ends:
            break
    return tokens


def test_tokens_are_the_bytes_that_clients_see(grammars, text):
    """What masks are made of is what the detokenizer has; only a text's own tokens are allowed."""
    tokenizer = grammars._tokenizer
    assert [tokenizer.decode_bytes([i]) for i in range(len(text.table.raw))] == text.table.raw
    assert all(tokenizer.is_special_token(i) for i in text.special)
    for wanted in ("hello, world", "naïve", "😀", " \n\tx", "<|im_start|>", 'a "b" \\'):
        constraint = grammars.constrain(grammar_from("choice", [wanted]))
        tokens = walk(constraint, text.special, seed=1)
        assert b"".join(text.table.raw[i] for i in tokens[:-1]) == wanted.encode()


def test_tokens_of_a_sentencepiece_model_too(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁he", "he", "llo", "▁", "é"]
    tokenizer = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    made = Grammars(partial(read_tokens, str(path), 320), 320, (1,))  # more logits than tokens
    constraint = made.constrain(grammar_from("choice", [" helloé"]))
    assert pieces.index("▁he") in ids(constraint.allowed([], 0, 0))
    tokens = [pieces.index(p) for p in ("▁he", "llo", "<0xC3>", "<0xA9>")]
    assert ids(constraint.allowed(tokens, 0, 4)) == [1]
    assert len(constraint.allowed(tokens, 0, 4)) == 320


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_depends_on_grammar_and_output_alone(grammars, text, model, seed):
    """Kept step by step, built anew at any point, or asked for an earlier point: the same."""
    grammar, ends = json_schema_grammar(SCHEMA), model.spec.eos_ids
    kept, prompt = grammars.constrain(grammar), [7, 8, 9]
    output = walk(grammars.constrain(grammar), ends, seed)
    tokens = prompt + output
    masks = [kept.allowed(tokens, 3, 3 + n) for n in range(len(output) + 1)]
    for n in (len(output), 0, len(output) // 2):
        anew = grammars.constrain(grammar)
        assert np.array_equal(anew.allowed(tokens, 3, 3 + n), masks[n])
        assert np.array_equal(kept.allowed(tokens, 3, 3 + n), masks[n])
    if output[-1] in ends:
        assert ids(masks[-1]) == sorted(ends)
        assert ids(kept.allowed([*tokens, ends[0]], 3, len(tokens) + 1)) == sorted(ends)


def test_a_complete_text_can_only_end(grammars, text, model):
    grammar = grammar_from("choice", ["yes", "yes please"])
    constraint = grammars.constrain(grammar)
    tokens = text.encode_now("yes", False)
    assert set(model.spec.eos_ids) < set(ids(constraint.allowed(tokens, 0, len(tokens))))
    tokens += text.encode_now(" please", False)
    assert ids(constraint.allowed(tokens, 0, len(tokens))) == sorted(model.spec.eos_ids)


def ends_only(constraint, model, capsys, told):
    assert not constraint.broken
    assert ids(constraint.allowed([], 0, 0)) == sorted(model.spec.eos_ids)
    assert ids(constraint.allowed([5], 0, 1)) == sorted(model.spec.eos_ids)
    assert constraint.broken
    assert f"grammar_failed error={told}" in capsys.readouterr().err


def test_what_cannot_be_followed_ends_the_sequence_and_says_why(grammars, model, capsys, tmp_path):
    eos = model.spec.eos_ids
    bad = LLMatcher.grammar_from_json_schema('{"type": "strin"}')
    ends_only(grammars.constrain(bad), model, capsys, "Invalid type: strin")
    impossible = LLMatcher.grammar_from_json_schema('{"$ref": "#"}')
    assert ids(grammars.constrain(impossible).allowed([], 0, 0)) == sorted(eos)
    good = json_schema_grammar(SCHEMA)
    nowhere = of(model, tmp_path / "none.json")
    ends_only(nowhere.constrain(good), model, capsys, f"{tmp_path}/none.json: not a tokenizer")
    (tmp_path / "bad.json").write_text("{}")
    broken = of(model, tmp_path / "bad.json")
    ends_only(broken.constrain(good), model, capsys, f"{tmp_path}/bad.json: not a tokenizer")
    forbidden = grammars.constrain(good)
    assert ids(forbidden.allowed([5], 0, 1)) == sorted(eos)  # no output of this grammar


def test_steps_go_on_without_a_grammar_that_takes_too_long(grammars, model, capsys, monkeypatch):
    monkeypatch.setattr(grammar_module, "deeply", partial(deeply, limit_s=0.0))
    wide = {"type": "object", "properties": {f"p{i}": {} for i in range(800)}}
    made = of(model)
    made._tokenizer = grammars._tokenizer
    constraint = made.constrain(LLMatcher.grammar_from_json_schema(json.dumps(wide)))
    ends_only(constraint, model, capsys, "compiling it takes more than 0 s")


def test_without_llguidance(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    made = of(model)
    ends_only(made.constrain("{}"), model, capsys, "import of llguidance halted")


def test_a_model_without_an_end_goes_on(capsys):
    made = Grammars(lambda: ([b"a"] * 40, frozenset()), 40, ())
    assert made.constrain("x").allowed([], 0, 0).all()
    assert "grammar_failed" in capsys.readouterr().err


def test_few_grammars_are_kept(grammars, model):
    made = of(model)
    made._tokenizer = grammars._tokenizer
    first = made.constrain(grammar_from("choice", ["a0"]))
    assert first.allowed([], 0, 0).any()
    for i in range(1, MAX_COMPILED + 5):
        assert made.constrain(grammar_from("choice", [f"a{i}"])).allowed([], 0, 0).any()
        made.matcher(grammar_from("choice", ["a0"]))  # used again and again: kept
    assert len(made._compiled) == MAX_COMPILED
    assert grammar_from("choice", ["a0"]) in made._compiled
    assert grammar_from("choice", ["a1"]) not in made._compiled


def test_nothing_is_left_of_a_vocabulary():
    class Tokens(list):
        """A list that can be watched."""

    read = [(Tokens(BYTES), frozenset({0}))]
    watched, made = weakref.ref(read[0][0]), Grammars(read.pop, 301, (0,))
    constraint = made.constrain(grammar_from("choice", ["ab"]))
    assert ids(constraint.allowed([], 0, 0)) == [BYTES.index(b"a")]
    del constraint, made
    gc.collect()
    assert watched() is None


def test_errors_come_out_of_a_deep_stack():
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        deeply(fails)
    assert deeply(lambda: 5) == 5


# Sampling.

EOS = (2,)


class Only(Constraint):
    """Allows these tokens of ten, whatever came before."""

    def __init__(self, *tokens):
        self.tokens, self.broken = tokens, False

    def allowed(self, tokens, start, stop):
        mask = np.zeros(10, np.bool_)
        mask[list(self.tokens)] = True
        return mask


def row(constraint, **params):
    p = replace(SamplingParams(max_tokens=16), **params)
    return RowInput(SequenceState([5, 6, 7], 3, 0, p, constraint=constraint), 2, 1, True)


def test_sampling_takes_what_is_allowed():
    logits = torch.arange(10, dtype=torch.float32)[None]
    assert sample([row(Only(3, 4), temperature=0.0)], logits, EOS)[0].token == 4
    biased = row(Only(3, 4), temperature=0.0, logit_bias=((3, 5.0),))
    assert sample([biased], logits, EOS)[0].token == 3
    for seed in range(50):
        drawn = row(Only(1, 8), temperature=5.0, seed=seed, top_p=0.99)
        assert sample([drawn], logits, EOS)[0].token in (1, 8)
    both = [row(None, temperature=0.0), row(Only(0), temperature=0.0)]
    assert [s.token for s in sample(both, logits.repeat(2, 1), EOS)] == [9, 0]


def test_logprobs_stay_those_of_the_raw_logits():
    logits = torch.arange(10, dtype=torch.float32)[None]
    free, held = (row(c, temperature=0.0, logprobs=2) for c in (None, Only(3)))
    free, held = sample([free], logits, EOS)[0], sample([held], logits, EOS)[0]
    assert held.logprobs.top == free.logprobs.top
    assert held.logprobs.chosen == pytest.approx(free.logprobs.chosen - 6)


def test_the_grammar_has_the_last_word_about_the_end():
    raw = np.arange(10, dtype=np.float32)
    early = row(Only(2, 3), min_tokens=4)
    assert ids(np.isfinite(adjust(raw, early, EOS))) == [3]
    complete = row(Only(2), min_tokens=4)
    assert ids(np.isfinite(adjust(raw, complete, EOS))) == [2]


def test_compiling_leaves_the_stacks_of_others_alone(monkeypatch):
    import threading

    before = threading.stack_size()
    deeply(lambda: None)
    assert threading.stack_size() == before
    assert grammar_module.STACK_BYTES > 7_000 * 16_000


# The paced device.

BYTES = [b"<end>", *(bytes([i]) for i in range(256)), *(b"#%d" % i for i in range(257, 301))]
PACED_EOS = {0, 300}


def bytewise():
    """The bytes of a text as tokens 1 to 256, for the paced model of 301."""
    return Grammars(lambda: (BYTES, frozenset({0, 300})), 301, sorted(PACED_EOS))


def constrained(grammar, tokens=paced_kit.PROMPT, **params):
    state = paced_kit.sequence(tokens, sampling=replace(paced_kit.GREEDY, **params))
    state.prompt_length = len(paced_kit.PROMPT)
    state.constraint = bytewise().constrain(grammar)
    return state


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 4}], ids=["greedy", "seeded"])
def test_a_paced_device_makes_up_what_is_allowed_wherever_it_goes_on(params):
    grammar = json_schema_grammar(SCHEMA)
    made = paced_kit.engine(paced_kit.model(eos=(0, 300)))
    output = paced_kit.generate(made, constrained(grammar, **params), n=60)
    end = next(i for i, token in enumerate(output) if token in PACED_EOS)
    assert set(output[end:]) <= PACED_EOS
    answer = json.loads(b"".join(BYTES[token] for token in output[:end]))
    assert answer["kind"] in SCHEMA["properties"]["kind"]["enum"]
    for cut in (1, end // 2, end):
        so_far = [*paced_kit.PROMPT, *output[:cut]]
        rest = paced_kit.generate(made, constrained(grammar, so_far, **params), n=60 - cut)
        assert output[:cut] + rest == output
    free = paced_kit.sequence(sampling=replace(paced_kit.GREEDY, **params))
    assert not set(paced_kit.generate(made, free, n=20)) & PACED_EOS


def test_an_executor_constrains_sequences_that_have_a_grammar():
    grammar = grammar_from("choice", ["ab"])
    made = paced_kit.engine(paced_kit.model(eos=(0, 300)))
    executor = InstanceExecutor(made, paced_kit.LAYERS, grammars=bytewise())
    params = SamplingParams(max_tokens=4, temperature=0.0, grammar=grammar)
    free = SamplingParams(max_tokens=4, temperature=0.0)
    new = [NewSequence(n, (5, 6), 2, 0, p) for n, p in enumerate((params, free))]
    rows = [Row(n, 0, 2, True, (8 * n,)) for n in range(2)]
    step = Step(1, "i", paced_kit.WHOLE, tuple(rows), new=tuple(new))
    assert executor.execute(step)[0].token == BYTES.index(b"a")
    known = Step(2, "i", paced_kit.WHOLE, (Row(0, 2, 2, True),), known=((0, BYTES.index(b"b")),))
    assert executor.execute(known)[0].token in PACED_EOS  # the "b" came from another worker
    assert executor.sequences[1].constraint is None
    with pytest.raises(StepRefused, match="has a grammar"):
        InstanceExecutor(made, paced_kit.LAYERS).execute(step)


def test_a_text_that_is_given_up_is_told_from_one_that_has_ended():
    """Whatever stops a matcher in the middle of a text; here a token that it does not know."""
    executor = Executor(lambda: 0.0)
    made = paced_kit.engine(paced_kit.model(eos=(0, 300)))
    instance = InstanceExecutor(made, paced_kit.LAYERS, grammars=bytewise())
    executor.instances["i"] = instance
    params = SamplingParams(max_tokens=9, temperature=0.0, grammar=grammar_from("choice", ["ab"]))
    new = [NewSequence(n, (5, 6), 2, 0, params) for n in range(2)]
    rows = [Row(n, 0, 2, True, (8 * n,)) for n in range(2)]
    a, b, z = (BYTES.index(char) for char in (b"a", b"b", b"z"))
    first = executor.execute(Step(1, "i", paced_kit.WHOLE, tuple(rows), new=tuple(new)))
    assert first.tokens == (a, a)
    rows = [Row(n, 2, 2, True) for n in range(2)]
    step = Step(2, "i", paced_kit.WHOLE, tuple(rows), known=((0, b), (1, z)))
    whole, broken = executor.execute(step).tokens
    assert whole in PACED_EOS
    assert broken == NO_TOKEN
    assert instance.sequences[1].tokens[-1] in PACED_EOS  # a step ahead can be computed from it
