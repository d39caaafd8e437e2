"""Tokens to text, one step at a time.

A table maps a token id to its text where the token is valid UTF-8 by itself, and to its bytes where
it is only part of a character; an incremental decoder joins the parts. The same result as
`tokenizers.Tokenizer.decode` on all tokens, at a tenth of the cost of its DecodeStream.

Two families of tokenizers are known: byte-level BPE (GPT-2's alphabet stands for bytes) and
SentencePiece style (`▁` is a space, `<0xAB>` a byte).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from blitzgw.errors import CheckpointError

MAX_TOKENS = 1 << 20
"""Largest number of token ids: four times the largest known vocabulary, and 24 MB of table."""

ERRORS_PER_BYTE = "blitzgw.replace_each_byte"
"""Codec error handler of the byte fallback: one U+FFFD for each byte, as tokenizers has it."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(ERRORS_PER_BYTE, _replace_each_byte)


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """What a tokenizer.json says about turning tokens into text.

    `strip_start`: one space at the very start of a text belongs to the tokenizer, not to the text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_start: bool = False


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The text or bytes of each token id.

    `raw` holds every token's bytes. `shown` and `hidden` hold text, or bytes where a token is not
    valid UTF-8 by itself; in `hidden` special tokens are empty.
    """

    raw: list[bytes]
    shown: list[str | bytes]
    hidden: list[str | bytes]
    errors: str
    strip_start: bool


def read_rules(decoder: Any) -> DecoderRules:
    """Translate the `decoder` of a tokenizer.json; raises CheckpointError on an unknown kind."""
    if not isinstance(decoder, dict):
        raise CheckpointError("the tokenizer has no decoder: its tokens cannot be turned into text")
    parts = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [part.get("type") for part in parts]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return DecoderRules(byte_level=True)
    known = {"Replace", "ByteFallback", "Fuse", "Strip"}
    if not parts or not known.issuperset(kinds):
        raise CheckpointError(f"tokenizer decoder {_names(kinds)} is not supported")
    return _sentencepiece_rules(parts, kinds)


def _sentencepiece_rules(parts: list[dict[str, Any]], kinds: list[Any]) -> DecoderRules:
    replacements: list[tuple[str, str]] = []
    for part in parts:
        if part["type"] == "Replace":
            pattern = part.get("pattern", {}).get("String")
            if pattern is None or "ByteFallback" in kinds[: parts.index(part)]:
                raise CheckpointError("tokenizer decoder: Replace is supported on plain text only")
            replacements.append((pattern, part["content"]))
        elif part["type"] == "Strip":
            plain = (part.get("content"), part.get("start"), part.get("stop")) == (" ", 1, 0)
            if not plain or "Fuse" not in kinds[: parts.index(part)]:
                raise CheckpointError("tokenizer decoder: Strip is supported for one leading space")
    return DecoderRules(
        replacements=tuple(replacements),
        byte_fallback="ByteFallback" in kinds,
        strip_start="Strip" in kinds,
    )


def _names(kinds: list[Any]) -> str:
    return "+".join(str(kind) for kind in kinds) or "(empty)"


def build_table(
    vocabulary: dict[str, int], special: frozenset[int], rules: DecoderRules, size: int
) -> TokenTable:
    """Build the table for token ids `[0, size)`; ids without a token give no text.

    Raises CheckpointError for ids above MAX_TOKENS.
    """
    size = max([size, *(token + 1 for token in vocabulary.values())])
    if size > MAX_TOKENS:
        raise CheckpointError(f"{size} token ids; at most {MAX_TOKENS} are supported")
    raw = [b""] * size
    to_bytes = _byte_level() if rules.byte_level else _sentencepiece(rules)
    for token, index in vocabulary.items():
        raw[index] = to_bytes(token)
    shown = [_text_if_whole(piece) for piece in raw]
    hidden = list(shown)
    for index in special:
        hidden[index] = ""
    errors = ERRORS_PER_BYTE if rules.byte_fallback else "replace"
    return TokenTable(raw, shown, hidden, errors, rules.strip_start)


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


def _byte_level() -> Callable[[str], bytes]:
    byte_of = byte_alphabet().__getitem__

    def to_bytes(token: str) -> bytes:
        try:
            return bytes(map(byte_of, token))
        except KeyError:  # an added token outside the alphabet stands for itself
            return token.encode()

    return to_bytes


def _sentencepiece(rules: DecoderRules) -> Callable[[str], bytes]:
    def to_bytes(token: str) -> bytes:
        if rules.byte_fallback and len(token) == 6 and token[:3] == "<0x" and token[5] == ">":
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        for old, new in rules.replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _text_if_whole(piece: bytes) -> str | bytes:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece


class Detokenizer:
    """The text of one sequence, as it grows.

    `at_start`: the tokens begin a text (a leading space that the tokenizer added is dropped);
    otherwise they go on from a prompt.
    """

    __slots__ = ("_decoder", "_partial", "_strip", "_table")

    def __init__(self, table: TokenTable, skip_special: bool, at_start: bool = False) -> None:
        self._table = table.hidden if skip_special else table.shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=table.errors)
        self._partial = False
        self._strip = at_start and table.strip_start

    def feed(self, tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete; a character's beginning is held back."""
        if len(tokens) == 1 and not self._partial and not self._strip:
            piece = self._table[tokens[0]]
            if piece.__class__ is str:
                return piece
        return self._without_space("".join(map(self._next, tokens)))

    def flush(self) -> str:
        """Return what was held back, as U+FFFD; the text ends here."""
        if not self._partial:
            return ""
        self._partial = False
        return self._without_space(self._decoder.decode(b"", final=True))

    def _next(self, token: int) -> str:
        piece = self._table[token]
        if isinstance(piece, str):
            if not self._partial or not piece:
                return piece
            piece = piece.encode()
        text = self._decoder.decode(piece)
        self._partial = bool(self._decoder.getstate()[0])
        return text

    def _without_space(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
