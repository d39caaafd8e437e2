"""Tokens to text, one step at a time.

A table maps a token id to its text where the token is valid UTF-8 by itself, and to its bytes where
it is only part of a character; an incremental decoder joins the parts. The same result as
`tokenizers.Tokenizer.decode` on all tokens, at a tenth of the cost of its DecodeStream.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from orjson import dumps

from blitzgw.weights.tokens import DecoderRules, token_bytes

ERRORS_PER_BYTE = "blitzgw.replace_each_byte"
"""Codec error handler of the byte fallback: one U+FFFD for each byte, as tokenizers has it."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(ERRORS_PER_BYTE, _replace_each_byte)


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
    shown_json: list[bytes | None]
    hidden_json: list[bytes | None]
    """The same text as JSON, which is what most tokens are sent as; None where bytes stand."""


def build_table(
    vocabulary: dict[str, int], special: frozenset[int], rules: DecoderRules, size: int
) -> TokenTable:
    """Build the table for token ids `[0, size)`; ids without a token give no text.

    Raises CheckpointError for ids above MAX_TOKENS.
    """
    raw = token_bytes(vocabulary, rules, size)
    shown = [_text_if_whole(piece) for piece in raw]
    hidden = list(shown)
    for index in special:
        hidden[index] = ""
    errors = ERRORS_PER_BYTE if rules.byte_fallback else "replace"
    shown_json = [_json(piece) if isinstance(piece, str) else None for piece in shown]
    hidden_json = list(shown_json)
    for index in special:
        hidden_json[index] = dumps("")
    return TokenTable(raw, shown, hidden, errors, rules.strip_start, shown_json, hidden_json)


def _json(text: str) -> bytes:
    """Return a text as JSON, in memory of its own size: what orjson returns keeps a kilobyte."""
    return bytes(memoryview(dumps(text)))


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

    __slots__ = ("_decoder", "_errors", "_json", "_partial", "_strip", "_table")

    def __init__(self, table: TokenTable, skip_special: bool, at_start: bool = False) -> None:
        self._table = table.hidden if skip_special else table.shown
        self._json = table.hidden_json if skip_special else table.shown_json
        self._errors = table.errors
        self._decoder: codecs.IncrementalDecoder | None = None  # most texts need none
        self._partial = False
        self._strip = at_start and table.strip_start

    @property
    def pieces(self) -> Sequence[bytes | None] | None:
        """The tokens' texts as JSON, where the next one's is what stands there (if anything is)."""
        return None if self._partial or self._strip else self._json

    def feed(self, tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete; a character's beginning is held back."""
        return self._without_space("".join(map(self._next, tokens)))

    def flush(self) -> str:
        """Return what was held back, as U+FFFD; the text ends here."""
        if not self._partial or self._decoder is None:
            return ""
        self._partial = False
        return self._without_space(self._decoder.decode(b"", final=True))

    def _next(self, token: int) -> str:
        piece = self._table[token]
        if isinstance(piece, str):
            if not self._partial or not piece:
                return piece
            piece = piece.encode()
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")(errors=self._errors)
        text = self._decoder.decode(piece)
        self._partial = bool(self._decoder.getstate()[0])
        return text

    def _without_space(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
