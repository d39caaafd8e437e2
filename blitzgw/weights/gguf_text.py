"""The text side of a GGUF file. Building a tokenizer takes a second, so it is kept.

The cache key is what the tokenizer depends on: the header's bytes, and for a quick and certain
mismatch the file's size and time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from blitzgw.core.model import TextSpec
from blitzgw.weights.disk import cache_folder, locked, remove_partial, write_whole
from blitzgw.weights.fields import Fields
from blitzgw.weights.files import DataFile
from blitzgw.weights.gguf import GgufHeader

BUILD_VERSION = 1
"""Part of the cache key: the next number for whatever changes a built tokenizer."""


def text_from_gguf(header: GgufHeader, file: DataFile, vocab: int) -> TextSpec:
    """Return the tokenizer.json of a file's vocabulary, building it when it is not in the cache."""
    digest = hashlib.blake2b(header.data, digest_size=16)
    digest.update(f"{BUILD_VERSION} {file.size_bytes} {file.mtime_ns}".encode())
    path = cache_folder() / "tokenizers" / f"{digest.hexdigest()}.json"
    if not path.is_file():
        from blitzgw.weights.gguf_tokenizer import build_tokenizer  # noqa: PLC0415

        content = build_tokenizer(header, vocab).to_str().encode("utf-8")
        _keep(path, content)
    fields = Fields(header.keys, header.where)
    template = fields.string("tokenizer.chat_template", "")
    return TextSpec(
        tokenizer_path=str(path),
        chat_template=template or None,
        bos_token=_token(header, fields, "bos"),
        eos_token=_token(header, fields, "eos"),
    )


def _keep(path: Path, content: bytes) -> None:
    def write(out: BinaryIO) -> None:
        out.write(content)

    with locked(path.parent):
        remove_partial(path.parent)
        write_whole(path, write)


def _token(header: GgufHeader, fields: Fields, what: str) -> str:
    key = f"tokenizer.ggml.{what}_token_id"
    if not fields.has(key):
        return ""
    return header.string_at("tokenizer.ggml.tokens", fields.integer(key))
