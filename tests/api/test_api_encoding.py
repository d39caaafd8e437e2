"""Tokenising: the faster tokenizer gives what the other one gives, or is not used."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from blitzgw.api import encoding
from blitzgw.api.encoding import FAST_INLINE_CHARS, INLINE_CHARS, PROBES, Encoder
from blitzgw.weights.cache import add_model
from blitzgw.weights.info import resolve_model

MODEL = "smollm2-135m"
SPACES = ("", " ", "  ", "\n", "\t", "'s ", "\u00a0")
needs_fastokens = pytest.mark.skipif(encoding.FastTokenizer is None, reason="no fastokens here")


@pytest.fixture(scope="module")
def path():
    return resolve_model(MODEL, add_model(MODEL).path, None, None).text.tokenizer_path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.from_buffer(Path(path).read_bytes())


class Fake:
    """What `fastokens.Tokenizer` looks like: spoils texts that hold a letter, or fails at them."""

    def __init__(self, tokenizer, spoils="", fails=""):
        self.tokenizer, self.spoils, self.fails = tokenizer, spoils, fails
        self.texts = []

    def from_file(self, path):
        return self

    def no_truncation(self):
        pass

    def no_padding(self):
        pass

    def encode(self, text, add_special_tokens):
        self.texts.append(text)
        if self.fails and self.fails in text:
            raise BaseException("a panic")  # noqa: TRY002  as pyo3's is
        if self.spoils and self.spoils in text:
            text = text.replace(self.spoils, "")
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def piece(rng):
    kind = rng.random()
    if kind < 0.4:
        words = "".join(PROBES).split(" ")
        return "".join(rng.choice(words) + rng.choice(SPACES) for _ in range(rng.randrange(40)))
    low, high = rng.choice([(0, 0x80), (0x20, 0x250), (0x250, 0xD800), (0xE000, 0x30000)])
    return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(80)))


@needs_fastokens
def test_both_give_the_same_tokens(path, tokenizer):
    rng = random.Random(11)
    encoder = Encoder(tokenizer, path)
    encoder.hasten()
    assert encoder.inline_chars == FAST_INLINE_CHARS, "it is equal, so it is used"
    slow = Encoder(tokenizer, "")
    slow._begun = True
    for special in (False, True):
        texts = [piece(rng) for _ in range(400)]
        texts.append("".join(texts))
        assert encoder.encode(texts, special) == slow.encode(texts, special)
        assert slow.inline_chars == INLINE_CHARS


@pytest.mark.parametrize("flaw", [{"spoils": "Ж"}, {"spoils": "П"}, {"fails": "\u4f60"}])
def test_one_that_differs_is_not_used(monkeypatch, path, tokenizer, flaw):
    fake = Fake(tokenizer, **flaw)
    monkeypatch.setattr(encoding, "FastTokenizer", fake)
    encoder = Encoder(tokenizer, path)
    encoder.hasten()
    used = encoder.inline_chars == FAST_INLINE_CHARS
    assert used == (flaw == {"spoils": "Ж"}), "no probe holds that letter"


def test_a_text_that_it_cannot_take_is_tokenised_all_the_same(monkeypatch, path, tokenizer):
    fake = Fake(tokenizer, fails="Ж")
    monkeypatch.setattr(encoding, "FastTokenizer", fake)
    encoder = Encoder(tokenizer, path)
    encoder.hasten()
    fake.texts.clear()
    assert encoder.encode(["fine", "Жаль"], False) == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in ("fine", "Жаль")
    ]
    assert fake.texts == ["fine", "Жаль"]


def test_what_cannot_be_built_leaves_the_other(tokenizer):
    encoder = Encoder(tokenizer, "/nowhere")
    encoder.hasten() if encoding.FastTokenizer else None
    assert encoder.encode(["still here"], False) == [
        tokenizer.encode("still here", add_special_tokens=False).ids
    ]
