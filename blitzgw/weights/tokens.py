"""The bytes that each token of a tokenizer.json stands for.

Two families of tokenizers are known: byte-level BPE (GPT-2's alphabet stands for bytes) and
SentencePiece style (`▁` is a space, `<0xAB>` a byte).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from blitzgw.errors import CheckpointError

MAX_TOKENS = 1 << 20
"""Largest number of token ids: four times the largest known vocabulary, and 24 MB of table."""


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """What a tokenizer.json says about turning tokens into text.

    `strip_start`: one space at the very start of a text belongs to the tokenizer, not to the text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_start: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Document(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    decoder: Any = None


def read_tokens(path: str, size: int) -> tuple[list[bytes], frozenset[int]]:
    """Return the bytes of token ids `[0, size)` at least, and which tokens are special.

    Without a tokenizer, of which building takes several times as long. Raises CheckpointError.
    """
    try:
        document = msgspec.json.decode(Path(path).read_bytes(), type=_Document)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}") from error
    vocab = document.model.vocab
    if isinstance(vocab, list):  # Unigram: pieces with their scores
        vocab = {piece: index for index, (piece, _) in enumerate(vocab)}
    added = {token.content: token.id for token in document.added_tokens}
    special = frozenset(token.id for token in document.added_tokens if token.special)
    return token_bytes(vocab | added, read_rules(document.decoder), size), special


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


def token_bytes(vocabulary: dict[str, int], rules: DecoderRules, size: int) -> list[bytes]:
    """Return the bytes of token ids `[0, size)`, and beyond where there are tokens; none: empty.

    Raises CheckpointError for ids above MAX_TOKENS.
    """
    size = max([size, *(token + 1 for token in vocabulary.values())])
    if size > MAX_TOKENS:
        raise CheckpointError(f"{size} token ids; at most {MAX_TOKENS} are supported")
    raw = [b""] * size
    to_bytes = _byte_level() if rules.byte_level else _sentencepiece(rules)
    for token, index in vocabulary.items():
        raw[index] = to_bytes(token)
    return raw


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
