"""Tokenizers made from GGUF vocabularies."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from blitzgw.errors import CheckpointError
from blitzgw.weights.files import DataFile
from blitzgw.weights.gguf import GgufHeader
from blitzgw.weights.gguf_tokenizer import build_tokenizer
from blitzgw.weights.info import open_checkpoint
from tests.support.checkpoints import tiny_checkpoint
from tests.support.ggufs import tiny_gguf

SNIPPETS = [
    "Hello, world!",
    "In 1984 there were 1,234,567 reasons; 3.14159 of them in Ⅷ and ½.",
    "  leading,   inner and trailing   \n\n\tspaces \r\n",
    "don't we'll I'm THEY'RE",
    "naïve café, 東京都 and 🦙👩‍👩‍👧 emoji",
    "def f(x):\n    return x**2  # squared\n",
    "",
]


@pytest.fixture(scope="module")
def smol(smollm2) -> Tokenizer:
    file = open_checkpoint(smollm2)
    found = Tokenizer.from_file(file.text().tokenizer_path)
    file.close()
    return found


@pytest.fixture(autouse=True)
def _own(own_cache):
    return own_cache


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_round_trip(smol, snippet):
    assert smol.decode(smol.encode(snippet).ids, skip_special_tokens=False) == snippet


@pytest.fixture(scope="module")
def known_bytes(smol) -> frozenset[str]:
    """All bytes but 21 that SmolLM2's own vocabulary lacks, as byte-level BPE spells them."""
    vocab = smol.get_vocab()
    return frozenset(c for c in pre_tokenizers.ByteLevel.alphabet() if c in vocab)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_round_trips(smol, known_bytes, snippet):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = {c: byte_level.pre_tokenize_str(c)[0][0] for c in snippet}
    snippet = "".join(c for c in snippet if known_bytes.issuperset(spelled[c]))
    assert smol.decode(smol.encode(snippet).ids, skip_special_tokens=False) == snippet


def test_digits_stand_alone(smol):
    tokens = smol.encode("a 2024 b 00 x7y").tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("2024007")
    single = [smol.token_to_id(c) for c in "2024"]
    assert smol.encode("2024").ids == single


def test_special_tokens_are_one_token_and_leave_on_request(smol):
    encoded = smol.encode("<|im_start|>user\nHi<|im_end|>\n")
    assert encoded.ids[0] == 1
    assert 2 in encoded.ids
    assert smol.decode(encoded.ids) == "user\nHi\n"
    assert smol.get_vocab_size() == 49152


def test_no_begin_token_unless_the_file_asks(smol):
    assert smol.encode("Hi").ids == smol.encode("Hi", add_special_tokens=False).ids


def test_matches_transformers_where_there_are_no_digits(smol, smollm2):
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for snippet in SNIPPETS:
        if not any(c.isnumeric() for c in snippet):
            assert smol.encode(snippet).ids == reference.encode(snippet)


@pytest.fixture
def tiny(tmp_path):
    folder = tiny_checkpoint("smollm", tmp_path / "m")

    def make(**keys) -> Path:
        return tiny_gguf("smollm", folder, tmp_path / "m.gguf", keys=keys)

    make.folder = folder
    return make


def tokenizer_of(path: Path) -> Tokenizer:
    file = open_checkpoint(path)
    try:
        return Tokenizer.from_file(file.text().tokenizer_path)
    finally:
        file.close()


def test_the_tiny_vocabulary_comes_back(tiny):
    made, original = tokenizer_of(tiny()), Tokenizer.from_file(str(tiny.folder / "tokenizer.json"))
    for snippet in SNIPPETS:
        assert made.encode(snippet).ids == original.encode(snippet).ids


def test_begin_and_end_tokens(tiny):
    path = tiny(**{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    made = tokenizer_of(path)
    plain = made.encode("the fox", add_special_tokens=False).ids
    assert made.encode("the fox").ids == [1, *plain, 2]


def test_the_same_begin_and_end_token(tiny):
    keys = {f"tokenizer.ggml.{k}": v for k, v in {"add_bos_token": True, "add_eos_token": True,
            "eos_token_id": 1}.items()}  # fmt: skip
    made = tokenizer_of(tiny(**keys))
    assert made.encode("a").ids == [1, *made.encode("a", add_special_tokens=False).ids, 1]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "ab 12345 it's", ["ab", " 12345", " it", "'s"]),
        ("smollm", "ab 12", ["ab", " ", "1", "2"]),
        ("llama-bpe", "ab 12345 IT'S\n\n x", ["ab", " ", "123", "45", " IT", "'S", "\n\n", " x"]),
        ("qwen2", "ab 123 IT'S (x)", ["ab", " ", "1", "2", "3", " IT", "'S", " (", "x", ")"]),
    ],
)
def test_cutting(tiny, pre, text, pieces):
    made = tokenizer_of(tiny(**{"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}))
    spans = [span for _, span in made.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == pieces


def test_llama3_begins_with_a_begin_token_by_default(tiny):
    assert tokenizer_of(tiny(**{"tokenizer.ggml.pre": "llama-bpe"})).encode("a").ids[0] == 1


def test_user_defined_tokens_are_whole_but_not_special(tiny):
    types = [3, 3, 4] + [1] * 297
    made = tokenizer_of(tiny(**{"tokenizer.ggml.token_type": types}))
    ids = made.encode("a<|im_end|>b").ids
    assert 2 in ids
    assert "<|im_end|>" in made.decode(ids)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tekken.*known are.*smollm.*Hugging Face folder"),
        ({"tokenizer.ggml.model": "t5"}, "'t5'.*gpt2, llama"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens for an embedding of 300"),
        ({"tokenizer.ggml.tokens": ["a"] * 300}, "duplicates"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "not two tokens"),
        ({"tokenizer.ggml.merges": ["nope never"]}, "makes no tokenizer"),
        ({"tokenizer.ggml.tokens": 5}, "missing or not an array of strings"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 999}, "token id"),
    ],
)
def test_vocabularies_that_cannot_be_used(tiny, keys, message):
    with pytest.raises(CheckpointError, match=message):
        tokenizer_of(tiny(**keys))


def test_built_once(tiny, own_cache, monkeypatch):
    path = tiny()
    tokenizer_of(path)
    assert len(list((own_cache / "tokenizers").glob("*.json"))) == 1
    monkeypatch.setattr("blitzgw.weights.gguf_tokenizer.build_tokenizer", None)
    tokenizer_of(path)


PIECES = ["a", "b", "ab", "ba", "aba", "bb", "abab", "▁", "▁a", "▁ab", "▁b", "▁▁", "bab"]


def sentence_piece_header(tmp_path, scores) -> GgufHeader:
    import gguf

    byte_pieces = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_pieces, *PIECES]
    writer = gguf.GGUFWriter(str(tmp_path / "spm.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + list(scores))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(PIECES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = DataFile(tmp_path / "spm.gguf")
    try:
        return GgufHeader(file)
    finally:
        file.close()


def reference_pieces(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE: join the best-scored neighbours, leftmost first, until none join."""
    symbols = list(text)
    while True:
        joins = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in scores
        ]
        if not joins:
            return symbols
        _, i = min(joins)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(PIECES))), st.lists(st.text("ab ", max_size=12), min_size=5))
def test_sentence_piece_joins_the_best_scored(tmp_path, order, texts):
    scores = dict(zip(PIECES, map(float, order), strict=True))
    made = build_tokenizer(sentence_piece_header(tmp_path, scores.values()), 259 + len(PIECES))
    for text in texts:
        expected = reference_pieces("▁" + text.replace(" ", "▁"), scores) if text else []
        assert made.encode(text, add_special_tokens=False).tokens == expected


def test_sentence_piece_falls_back_to_bytes(tmp_path):
    made = build_tokenizer(
        sentence_piece_header(tmp_path, map(float, range(len(PIECES)))), 259 + len(PIECES)
    )
    encoded = made.encode("ab é")
    assert encoded.ids[0] == 1
    assert encoded.tokens[-2:] == ["<0xC3>", "<0xA9>"]
    assert made.decode(encoded.ids) == "ab é"
