"""What models' texts are made of, each tokenizer once: own ones, and those of other nodes.

card ── its digest of a tokenizer ──► in use here? ──► on disk? ──► fetched, kept on disk
                                        └────────────────┴────────────► text model
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from blitzgw.api.services import unix_time
from blitzgw.api.text import TextModel, Vocabulary
from blitzgw.core.card import ModelCard, content_digest
from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import TextSpec
from blitzgw.errors import CheckpointError, ProtocolError
from blitzgw.weights.card import check_card, read_tokenizer
from blitzgw.weights.content import content_path, drop_content, keep_content, read_content
from blitzgw.wire import decode_card

CARD_BYTES = 2 << 20
"""Largest card: a template of 1 MiB, whose longest known has 20 KB, and a manifest of 4,098 blobs,
with some 80 bytes for each."""

TOKENIZER_BYTES = 64 << 20
"""Largest tokenizer.json; the largest known have 35 MB."""

Fetch = Callable[[str, str, int], Awaitable[bytes]]
"""(boot id, what, most bytes) → content of another node. Raises BlitzError."""


@dataclass(frozen=True, slots=True)
class Known:
    """A definition that this node can answer for. `own` where the checkpoint is here."""

    digest: str
    card: ModelCard
    spec: ModelSpec
    text: TextModel
    created: int
    own: bool

    def tokenizer(self) -> bytes:
        """Return the tokenizer.json; raises CheckpointError."""
        return read_tokenizer(TextSpec(self.text.vocabulary.path, None, "", ""))


class TextShelf:
    """Makes text models. A tokenizer is built once for all those in use that have it.

    What is built for a definition from elsewhere is built in the event loop's own executor.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._vocabularies: WeakValueDictionary[tuple[str, int], Vocabulary] = WeakValueDictionary()
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def own(self, text: TextSpec, vocab: int) -> TextModel:
        """Return the text model of a checkpoint that is here; raises CheckpointError."""
        source = read_tokenizer(text)
        key = content_digest(source), vocab
        vocabulary = self._vocabularies.get(key)
        if vocabulary is None:
            vocabulary = Vocabulary(source, text.tokenizer_path, vocab)
            self._vocabularies[key] = vocabulary
        return TextModel(text, vocab, vocabulary=vocabulary)

    async def learn(self, boot: str, name: str, digest: str) -> Known:
        """Return another node's definition, with what can be had from it.

        Raises BlitzError for what does not come or cannot be used. The time is bounded by that of
        two fetches.
        """
        card = decode_card(await self._fetch(boot, f"card/{digest}", CARD_BYTES))
        check_card(card)
        if card.name != name:
            raise ProtocolError(f"card {digest:.12} is of another model")
        making = self._making.setdefault(card.tokenizer, asyncio.Lock())
        async with making:  # bounded by the fetch of whoever has it; the others need none after it
            vocabulary = await self._vocabulary(boot, card)
        text = TextSpec(vocabulary.path, card.chat_template, card.bos_token, card.eos_token)
        vocab, loop = card.shape.vocab, asyncio.get_running_loop()
        model = await loop.run_in_executor(None, TextModel, text, vocab, None, vocabulary)
        spec = ModelSpec(
            name=card.name,
            path="",
            shape=card.shape,
            dtype=card.dtype,
            max_model_len=card.max_model_len,
            eos_ids=card.eos_ids,
            weights=card.weights,
            tokenizer=vocabulary.path,
        )
        return Known(digest, card, spec, model, unix_time(), own=False)

    async def _vocabulary(self, boot: str, card: ModelCard) -> Vocabulary:
        key = card.tokenizer, card.shape.vocab
        vocabulary = self._vocabularies.get(key)
        if vocabulary is not None:
            return vocabulary
        loop = asyncio.get_running_loop()
        vocabulary = await loop.run_in_executor(None, _from_disk, *key)
        if vocabulary is None:
            data = await self._fetch(boot, f"blob/{card.tokenizer}", TOKENIZER_BYTES)
            vocabulary = await loop.run_in_executor(None, _from_data, *key, data)
        self._vocabularies[key] = vocabulary
        return vocabulary


def _from_disk(digest: str, vocab: int) -> Vocabulary | None:
    data = read_content(digest)
    return None if data is None else _built(digest, vocab, data)


def _from_data(digest: str, vocab: int, data: bytes) -> Vocabulary:
    keep_content(digest, data)
    return _built(digest, vocab, data)


def _built(digest: str, vocab: int, data: bytes) -> Vocabulary:
    try:
        return Vocabulary(data, str(content_path(digest)), vocab)
    except CheckpointError:
        drop_content(digest)
        raise
