"""A model's card: its definition as the whole cluster knows it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blitzgw.core.card import ModelCard
from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import TextSpec
from blitzgw.errors import CheckpointError


def model_card(spec: ModelSpec, text: TextSpec) -> ModelCard:
    """Return the card of a model that is on this machine. Raises CheckpointError."""
    return ModelCard(
        name=spec.name,
        shape=spec.shape,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        eos_ids=spec.eos_ids,
        weights=spec.weights,
        tokenizer=content_digest(read_tokenizer(text)),
        chat_template=text.chat_template,
        bos_token=text.bos_token,
        eos_token=text.eos_token,
    )


def read_tokenizer(text: TextSpec) -> bytes:
    """Return a model's tokenizer.json. Raises CheckpointError."""
    try:
        return Path(text.tokenizer_path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{text.tokenizer_path}: cannot be read: {error.strerror}") from error


def content_digest(data: bytes) -> str:
    """Return the name of content in the cluster: 256 bits of BLAKE2b in hexadecimal."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()
