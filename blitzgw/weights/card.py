"""A model's card: its definition as the whole cluster knows it."""

from __future__ import annotations

from pathlib import Path

from blitzgw.core.card import ModelCard, content_digest
from blitzgw.core.instance import ModelSpec
from blitzgw.core.manifest import Manifest
from blitzgw.core.model import TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import SIZE_LIMIT, check_shape
from blitzgw.weights.manifest import check_manifest

MAX_VOCAB = 1 << 20
"""Largest vocabulary of a card: a token table has 24 bytes for each, used or not."""

MAX_EOS_IDS = 64
"""Most ids that end a sequence; models have up to about ten."""

MAX_TEMPLATE_CHARS = 1 << 20
"""Longest chat template; the longest known has 20,000 characters."""


def model_card(spec: ModelSpec, text: TextSpec, manifest: Manifest) -> ModelCard:
    """Return the card of a model that is on this machine. Raises CheckpointError."""
    return ModelCard(
        name=spec.name,
        shape=spec.shape,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        eos_ids=spec.eos_ids,
        weights=manifest.root(),
        tokenizer=content_digest(read_tokenizer(text)),
        chat_template=text.chat_template,
        bos_token=text.bos_token,
        eos_token=text.eos_token,
        blobs=manifest.blobs,
    )


def check_card(card: ModelCard) -> None:
    """Refuse a card that no model has, before anything is made from it. Raises CheckpointError."""
    where = f"the card of {card.name:.100}"
    check_shape(where, card.shape)
    if card.shape.vocab > MAX_VOCAB:
        raise CheckpointError(f"{where}: {card.shape.vocab} token ids; at most {MAX_VOCAB}")
    if not 0 < card.max_model_len <= card.shape.max_positions:
        raise CheckpointError(
            f"{where}: max_model_len is {card.max_model_len} of {card.shape.max_positions}"
        )
    if len(card.eos_ids) > MAX_EOS_IDS:
        raise CheckpointError(f"{where}: {len(card.eos_ids)} eos ids; at most {MAX_EOS_IDS}")
    if not all(0 <= token < SIZE_LIMIT for token in card.eos_ids):
        raise CheckpointError(f"{where}: an eos id that is no token id")
    if len(card.chat_template or "") > MAX_TEMPLATE_CHARS:
        raise CheckpointError(f"{where}: its chat template is too long")
    _check_weights(where, card.manifest(), card.weights)


def _check_weights(where: str, manifest: Manifest, root: str) -> None:
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise CheckpointError(f"{where}: its weights are not those of its shape: {error}") from None
    if manifest.root() != root:
        raise CheckpointError(f"{where}: its weights {root:.80} are not those of its blobs")


def read_tokenizer(text: TextSpec) -> bytes:
    """Return a model's tokenizer.json. Raises CheckpointError."""
    try:
        return Path(text.tokenizer_path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{text.tokenizer_path}: cannot be read: {error.strerror}") from error
