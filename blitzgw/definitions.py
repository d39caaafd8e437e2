"""The models that this node answers for: its own, and those that only other nodes define.

    own checkpoint ── card, tokenizer ──► entry ◄── card, tokenizer, by digest ── another node

A node can tokenise, template and detokenise for any model of the cluster; where its instances are
is another matter. Of a name that two nodes define differently one definition holds everywhere
(gossip/catalogue.py), and instances of the other are not served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.services import unix_time
from blitzgw.api.text import TextModel
from blitzgw.core.card import ModelCard
from blitzgw.core.clock import Clock
from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import TextSpec
from blitzgw.core.view import ClusterView, ModelFacts
from blitzgw.errors import BlitzError, ProtocolError
from blitzgw.gossip.catalogue import Definition, settle
from blitzgw.placement import LoadedModel
from blitzgw.weights.base import check_shape
from blitzgw.weights.card import content_digest, model_card, read_tokenizer
from blitzgw.weights.content import content_path, keep_content
from blitzgw.wire import decode_card, encode_card

log = logging.getLogger(__name__)

CARD_BYTES = 1 << 20
"""Largest card: shapes, ids and a chat template, whose longest known is 20 KB."""

TOKENIZER_BYTES = 64 << 20
"""Largest tokenizer.json; the largest known have 35 MB."""

RETRY_S = 1.0
"""Between two attempts to fetch a card from nodes that did not give it."""

Fetch = Callable[[str, str, int], Awaitable[bytes]]
"""(boot id, what, most bytes) → content of another node. Raises BlitzError."""


@dataclass(frozen=True, slots=True)
class Known:
    """A definition that this node can answer for. `own` where the checkpoint is here."""

    digest: str
    card: ModelCard
    spec: ModelSpec
    text: TextModel
    tokenizer_path: str
    created: int
    own: bool


class Definitions:
    """Keeps the API's table of models in step with what the cluster defines.

    Until `open` it holds this node's own models. Raises CheckpointError for a tokenizer that cannot
    be used.
    """

    def __init__(self, models: Sequence[LoadedModel], clock: Clock, fetch: Fetch) -> None:
        self._models = {model.spec.name: model for model in models}
        self._texts = {
            name: TextModel(model.text, model.spec.shape.vocab)
            for name, model in self._models.items()
        }
        created = unix_time()
        self.table = ModelTable(
            ModelEntry(name, model.config.aliases, model.spec, self._texts[name], created)
            for name, model in self._models.items()
        )
        self.settled: Mapping[str, Definition] = {
            name: Definition(name, "", model.spec.shape.n_layers, created, (), ())
            for name, model in self._models.items()
        }
        self._clock, self._fetch = clock, fetch
        self._known: dict[str, Known] = {}
        self._own: dict[str, Known] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, Definition] = {}
        self._on_known: Callable[[], None] = lambda: None

    def open(self, on_known: Callable[[], None]) -> None:
        """Make the cards of this node's own models; raises CheckpointError.

        `on_known` is called whenever one more definition can be answered for.
        """
        self._on_known = on_known
        for name, model in self._models.items():
            card = model_card(model.spec, model.text)
            path, digest = model.text.tokenizer_path, content_digest(encode_card(card))
            known = Known(digest, card, model.spec, self._texts[name], path, unix_time(), own=True)
            self._own[name] = self._known[digest] = known

    def facts(self) -> list[ModelFacts]:
        """Return what this node publishes of its own models."""
        return [
            ModelFacts(
                name=name,
                digest=known.digest,
                layers=known.spec.shape.n_layers,
                since_s=known.created,
                aliases=self._models[name].config.aliases,
            )
            for name, known in self._own.items()
        ]

    def digest_of(self, name: str) -> str:
        """Return the digest of this node's own definition of a name; empty where it has none."""
        known = self._own.get(name)
        return known.digest if known is not None else ""

    def holds(self, name: str, digest: str) -> bool:
        """Tell whether a definition of a name is the one that the cluster serves."""
        definition = self.settled.get(name)
        return definition is not None and definition.digest == digest

    def settle(self, view: ClusterView) -> None:
        """Follow what the cluster defines now; begin to fetch what is unknown here."""
        self.settled = settle(view)
        for definition in self.settled.values():
            self._tell_rivals(definition, view)
            if definition.digest not in self._known and definition.digest not in self._fetching:
                task = asyncio.get_running_loop().create_task(self._learn(definition))
                self._fetching[definition.digest] = task
        self._rebuild()

    def content(self, what: str) -> bytes | None:
        """Return a card or a tokenizer for another node: `card/DIGEST`, `blob/DIGEST`."""
        kind, _, digest = what.partition("/")
        if kind == "card":
            known = self._known.get(digest)
            return None if known is None else encode_card(known.card)
        for known in self._known.values():
            if kind == "blob" and known.card.tokenizer == digest:
                return read_tokenizer(TextSpec(known.tokenizer_path, None, "", ""))
        return None

    async def close(self) -> None:
        """Stop fetching."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # at once: they have been cancelled

    async def _learn(self, definition: Definition) -> None:
        """Fetch card and tokenizer from any node that has them, until that has worked."""
        digest = definition.digest
        try:
            while (current := self.settled.get(definition.name)) is not None:
                if current.digest != digest:
                    return
                for boot in current.sources:
                    try:
                        self._known[digest] = await self._fetch_known(boot, definition)
                    except BlitzError as error:
                        log.warning(
                            "model_not_fetched name=%s boot=%s error=%s",
                            definition.name, boot, error,
                        )  # fmt: skip
                        continue
                    log.info("model_known name=%s digest=%.12s", definition.name, digest)
                    self._rebuild()
                    self._on_known()
                    return
                await self._clock.sleep(RETRY_S)
        finally:
            del self._fetching[digest]

    async def _fetch_known(self, boot: str, definition: Definition) -> Known:
        digest = definition.digest
        card = decode_card(await self._fetch(boot, f"card/{digest}", CARD_BYTES))
        check_shape(f"card {digest:.12}", card.shape)
        if card.name != definition.name:
            raise ProtocolError(f"card {digest:.12} is of another model")
        path = content_path(card.tokenizer)
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(None, Path.is_file, path):
            data = await self._fetch(boot, f"blob/{card.tokenizer}", TOKENIZER_BYTES)
            await loop.run_in_executor(None, keep_content, card.tokenizer, data)
        text = TextSpec(str(path), card.chat_template, card.bos_token, card.eos_token)
        model = await loop.run_in_executor(None, TextModel, text, card.shape.vocab)
        spec = ModelSpec(card.name, "", card.shape, card.dtype, card.max_model_len, card.eos_ids)
        return Known(digest, card, spec, model, str(path), unix_time(), own=False)

    def _rebuild(self) -> None:
        entries, coming = [], []
        for definition in self.settled.values():
            known = self._known.get(definition.digest)
            if known is None:
                coming.append(definition.name)
                continue
            entries.append(
                ModelEntry(
                    definition.name, definition.aliases, known.spec, known.text, known.created
                )
            )
        order = {name: position for position, name in enumerate(self._models)}
        entries.sort(key=lambda entry: (order.get(entry.name, len(order)), entry.name))
        self.table.replace(entries, coming)

    def _tell_rivals(self, definition: Definition, view: ClusterView) -> None:
        before = self._told.get(definition.name)
        if before is not None and before.rivals == definition.rivals:
            return
        self._told[definition.name] = definition
        for boot in definition.rivals:
            node = view.nodes[boot]
            log.warning(
                "model_conflict name=%s node=%s served_digest=%.12s refused_digest=%.12s",
                definition.name, node.name, definition.digest,
                node.models[definition.name].digest,
            )  # fmt: skip
