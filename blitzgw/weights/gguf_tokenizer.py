"""A GGUF vocabulary → a Hugging Face tokenizer.

`tokenizer.ggml.pre` names how text is cut before merging. The names and what they mean are
llama.cpp's (`llama-vocab.cpp`), written as the Hugging Face tokenizers that they were made from:
`smollm`, `starcoder` and `refact` separate every digit and then cut like GPT-2; `llama-bpe` and
`qwen2` have one expression each, with up to three digits or one to a piece.
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from blitzgw.errors import CheckpointError
from blitzgw.weights.fields import Fields
from blitzgw.weights.gguf import GgufHeader

PIECE_LIMIT = 256
"""Characters of a SentencePiece piece: finding its merges takes time quadratic in its length."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_DIGITS = frozenset({"smollm", "starcoder", "refact"})
_GPT2 = frozenset({"gpt-2", "gpt2"})
_LLAMA3 = frozenset({"llama-bpe", "llama3", "llama-v3"})
_QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen"})

_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(header: GgufHeader, vocab: int) -> Tokenizer:
    """Return the tokenizer; raise CheckpointError where the kind is not known."""
    fields = Fields(header.keys, header.where)
    tokens = header.strings("tokenizer.ggml.tokens")
    if len(tokens) != vocab:
        raise CheckpointError(
            f"{header.where}: {len(tokens)} tokens for an embedding of {vocab} rows"
        )
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise CheckpointError(f"{header.where}: tokenizer.ggml.tokens has duplicates")
    kind = fields.string("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(header, fields, ids)
        elif kind == "llama":
            tokenizer = _sentence_piece(header, fields, tokens, ids)
        else:
            raise _refusal(f"{header.where}: a tokenizer of kind {kind!r:.60}", "gpt2, llama")
        _add_tokens(tokenizer, header, tokens)
        _add_template(tokenizer, fields, tokens, default=kind == "llama" or _is_llama3(fields))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(
            f"{header.where}: its vocabulary makes no tokenizer ({error})"
        ) from error
    return tokenizer


def _byte_level(header: GgufHeader, fields: Fields, ids: dict[str, int]) -> Tokenizer:
    pre = fields.string("tokenizer.ggml.pre", "")
    cut, normalizer = _cutting(pre, header.where)
    merges = [_pair(line, header.where) for line in header.strings("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, fuse_unk=False, ignore_merges=pre in _LLAMA3)
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cutting(pre: str, where: str) -> tuple[Any, Any]:
    """Return pre-tokenizer and normalizer for a `tokenizer.ggml.pre`."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _GPT2:
        return byte_level, None
    if pre in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level]), None
    if pre in _LLAMA3:
        return _expression(_PIECES.replace("DIGITS", "{1,3}")), None
    if pre in _QWEN2:
        return _expression(_PIECES.replace("DIGITS", "")), normalizers.NFC()
    known = ", ".join(sorted(_GPT2 | _DIGITS | _LLAMA3 | _QWEN2))
    raise _refusal(f"{where}: the pre-tokenizer {pre!r:.60}", known)


def _expression(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bare])


def _is_llama3(fields: Fields) -> bool:
    return fields.string("tokenizer.ggml.pre", "") in _LLAMA3


def _pair(line: str, where: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if not left or not right or " " in right:
        raise CheckpointError(f"{where}: the merge {line[:60]!r} is not two tokens")
    return left, right


def _sentence_piece(
    header: GgufHeader, fields: Fields, tokens: list[str], ids: dict[str, int]
) -> Tokenizer:
    """SentencePiece BPE: whatever two pieces join into a better-scored piece, joins first."""
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{header.where}: {len(scores)} scores for {len(tokens)} tokens")
    unknown = fields.integer("tokenizer.ggml.unknown_token_id", 0)
    if not 0 <= unknown < len(tokens):
        raise fields.wrong("tokenizer.ggml.unknown_token_id", "a token id")
    model = models.BPE(
        vocab=ids,
        merges=merges_from_scores(tokens, scores, ids),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = fields.boolean("tokenizer.ggml.add_space_prefix", default=True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_from_scores(
    tokens: list[str], scores: list[float], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """Return all pairs of tokens that join into a token, best score first.

    Pairs that join into the same token follow each other in the order of their ids.
    """
    found: list[tuple[float, int, int, int]] = []
    for index, token in enumerate(tokens):
        if len(token) > PIECE_LIMIT:
            raise CheckpointError(f"a piece of {len(token)} characters; at most {PIECE_LIMIT}")
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in found]


def _add_tokens(tokenizer: Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    """Make control tokens special and user-defined ones whole."""
    if "tokenizer.ggml.token_type" not in header.keys:
        return
    types = header.numbers("tokenizer.ggml.token_type")
    named = list(zip(tokens, types, strict=False))
    special = [token for token, kind in named if kind in (_CONTROL, _UNKNOWN) and token]
    whole = [token for token, kind in named if kind == _USER_DEFINED and token]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in whole])
    if tokenizer.get_vocab_size() != len(tokens):
        raise CheckpointError(f"{header.where}: special tokens lie outside the vocabulary")


def _add_template(
    tokenizer: Tokenizer, fields: Fields, tokens: list[str], *, default: bool
) -> None:
    """Put the begin (and end) token around a text where the file asks for it."""
    pieces, used = ["$A"], []
    if fields.boolean("tokenizer.ggml.add_bos_token", default=default):
        used.append(_special(fields, "bos", tokens))
        pieces.insert(0, used[-1][0])
    if fields.boolean("tokenizer.ggml.add_eos_token", default=False):
        used.append(_special(fields, "eos", tokens))
        pieces.append(used[-1][0])
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=list(dict(used).items())
        )


def _special(fields: Fields, what: str, tokens: list[str]) -> tuple[str, int]:
    key = f"tokenizer.ggml.{what}_token_id"
    index = fields.integer(key)
    if not 0 <= index < len(tokens):
        raise fields.wrong(key, "a token id")
    return tokens[index], index


def _refusal(what: str, known: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is not supported; known are {known}. Use the model's Hugging Face folder, "
        "which brings its own tokenizer.json"
    )
