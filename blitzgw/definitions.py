"""The models that this node answers for: its own, and those that only other nodes define.

    own checkpoint ── card, tokenizer ──► entry ◄── card, tokenizer, by digest ── another node

A node can tokenise, template and detokenise for any model of the cluster; where its instances are
is another matter. Of a name that two nodes define differently one definition holds everywhere, and
instances of the other are not served; of one that nobody defines any more the last is kept for a
while, and its requests are held (gossip/catalogue.py). A node whose configuration pins a name to
weights other than those of the definition that holds answers nothing for that name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.services import unix_time
from blitzgw.attempts import Attempts
from blitzgw.config import ModelConfig
from blitzgw.core.card import content_digest
from blitzgw.core.clock import Clock
from blitzgw.core.view import ClusterView, ModelFacts, ScaleTerms
from blitzgw.errors import BlitzError
from blitzgw.gossip.catalogue import KEPT_S, Catalogue, Definition, first_since
from blitzgw.placement import LoadedModel
from blitzgw.textshelf import Fetch, Known, TextShelf
from blitzgw.weights.card import model_card
from blitzgw.wire import encode_card

log = logging.getLogger(__name__)

TIDY_S = 1.0
"""Least time between two looks for what is to be dropped."""


MAX_BATCH = 1 << 20
"""Tokens of a step that another node's word is taken for: more than any device computes at once."""


class Definitions:
    """Keeps the API's table of models in step with what the cluster defines.

    Until `open` it holds this node's own models. Raises CheckpointError for a tokenizer that cannot
    be used.
    """

    def __init__(self, models: Sequence[LoadedModel], clock: Clock, fetch: Fetch) -> None:
        self._models = {model.spec.name: model for model in models}
        self._shelf = TextShelf(fetch)
        self._texts = {
            name: self._shelf.own(model.text, model.spec.shape.vocab)
            for name, model in self._models.items()
        }
        self._created = unix_time()
        self.table = ModelTable(
            ModelEntry(name, model.config.aliases, model.spec, self._texts[name], self._created)
            for name, model in self._models.items()
        )
        self.settled: Mapping[str, Definition] = {name: self._offer(name) for name in self._models}
        self._clock = clock
        self._catalogue = Catalogue()
        self._known: dict[str, Known] = {}
        self._own: dict[str, Known] = {}
        self._since_s: dict[str, int] = {}
        self._view = ClusterView("", {})
        self._unsettled_s: dict[str, float] = {}
        self._learning: dict[tuple[str, str], Attempts] = {}
        self._told: dict[str, Definition] = {}
        self._broken_pins: dict[str, str] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._on_change: Callable[[], None] = lambda: None

    def open(self, on_change: Callable[[], None]) -> None:
        """Make the cards of this node's own models; raises CheckpointError.

        `on_change` is called whenever there is a reason to call `settle` that no view tells: one
        more definition can be answered for, or one has been kept for long enough.
        """
        self._on_change = on_change
        for name, model in self._models.items():
            card = model_card(model.spec, model.text, model.manifest)
            digest, text = content_digest(encode_card(card)), self._texts[name]
            known = Known(digest, card, model.spec, text, self._created, own=True)
            self._own[name] = self._known[digest] = known
        self.settled = {name: self._offer(name, self.digest_of(name)) for name in self._own}
        # until they are in the view
        self._catalogue = Catalogue(self.settled.values(), self._clock.now())
        self._rebuild()

    def facts(self) -> list[ModelFacts]:
        """Return what this node publishes of its own models.

        `since_s` is when it started, or since when other nodes have defined the same before it.
        """
        return [
            ModelFacts(
                name=name,
                digest=known.digest,
                layers=known.spec.shape.n_layers,
                since_s=self._since_s.get(name, known.created),
                aliases=self._models[name].config.aliases,
                weights=known.card.weights,
                disk=bool(known.spec.path),
                host_copies=self._models[name].config.host_copies,
                max_num_seqs=self._models[name].config.max_num_seqs,
                max_batched_tokens=self._models[name].config.max_batched_tokens,
                prefix_caching=self._models[name].config.prefix_caching,
                strategy=self._models[name].config.strategy,
                live=self._models[name].config.live,
                scaling=self._models[name].config.scale_terms,
            )
            for name, known in self._own.items()
        ]

    def digest_of(self, name: str) -> str:
        """Return the digest of this node's own definition of a name; empty where it has none."""
        known = self._own.get(name)
        return known.digest if known is not None else ""

    def digests(self) -> dict[str, str]:
        """Return the digests of this node's own definitions, by name."""
        return {name: known.digest for name, known in self._own.items()}

    def known(self, digest: str) -> Known | None:
        """Return a definition that this node can answer for; None where it cannot yet."""
        return self._known.get(digest)

    def config_of(self, name: str, digest: str) -> ModelConfig:
        """Return how a model is served here: as configured if it is this node's own definition.

        Of a definition of other nodes the card is known, and how the oldest of them batches; all
        else is as it is by default.
        """
        own = self._own.get(name)
        if own is not None and own.digest == digest:
            return self._models[name].config
        config, told = ModelConfig(name), self._view.oldest_definition(name, digest)
        if told is None or not 0 < told.max_num_seqs <= told.max_batched_tokens <= MAX_BATCH:
            return config
        return replace(
            config,
            max_num_seqs=told.max_num_seqs,
            max_batched_tokens=told.max_batched_tokens,
            prefix_caching=told.prefix_caching,
        )

    def terms_of(self, name: str, digest: str) -> ScaleTerms:
        """Return how a model is scaled: as the oldest node says that defines it."""
        told = self._view.oldest_definition(name, digest)
        if told is not None:
            return told.scaling
        own = self._own.get(name)
        if own is not None and own.digest == digest:
            return self._models[name].config.scale_terms
        return ScaleTerms()

    def holds(self, name: str, digest: str) -> bool:
        """Tell whether a definition of a name is the one that the cluster serves."""
        definition = self.settled.get(name)
        return definition is not None and definition.digest == digest

    def settle(self, view: ClusterView) -> bool:
        """Follow what the cluster defines now; begin to fetch what is unknown here.

        Returns whether `facts` has changed by it.
        """
        before, now = self.settled, self._clock.now()
        self._view = view
        self.settled = self._catalogue.settle(view, now)
        for name, definition in self.settled.items():
            self._tell_rivals(definition, view)
            learning = self._learning.get((name, definition.digest))
            if learning is None:
                self._begin(definition)
            elif name not in before or before[name].sources != definition.sources:
                learning.news.set()
        self._forget(now)
        self._rebuild()
        return self._adopt(view)

    def content(self, what: str) -> bytes | None:
        """Return a card or a tokenizer for another node: `card/DIGEST`, `blob/DIGEST`."""
        kind, _, digest = what.partition("/")
        if kind == "card":
            known = self._known.get(digest)
            return None if known is None else encode_card(known.card)
        for known in self._known.values():
            if kind == "blob" and known.card.tokenizer == digest:
                return known.tokenizer()
        return None

    async def close(self) -> None:
        """Stop fetching."""
        tasks = [learning.task for learning in self._learning.values()]
        if self._tidying is not None:
            tasks.append(self._tidying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # at once: they have been cancelled

    # What this node defines.

    def _offer(self, name: str, digest: str = "") -> Definition:
        model = self._models[name]
        layers, aliases = model.spec.shape.n_layers, model.config.aliases
        return Definition(name, digest, layers, self._created, aliases, ())

    def _adopt(self, view: ClusterView) -> bool:
        """Define what others define since they do; return whether that has changed."""
        before = dict(self._since_s)
        for name, known in self._own.items():
            since_s = first_since(view, name, known.digest)
            if since_s is not None:
                self._since_s[name] = min(since_s, self._since_s.get(name, known.created))
        return self._since_s != before

    # What others define.

    def _begin(self, definition: Definition) -> None:
        digest = definition.digest
        if digest not in self._known and definition.sources:
            learning = self._learning[definition.name, digest] = Attempts(self._clock)
            learning.start(self._learn(definition.name, digest, learning))

    async def _learn(self, name: str, digest: str, learning: Attempts) -> None:
        """Fetch card and tokenizer from any node that has them, until that has worked."""
        try:
            while True:  # until it has worked, or nobody defines it any more
                current = self.settled.get(name)
                if current is None or current.digest != digest or not current.sources:
                    return
                learning.news.clear()
                for boot in current.sources:
                    known = await self._attempt(boot, name, digest, learning)
                    if known is not None:
                        self._add(known)
                        return
                await learning.pause()
        finally:
            del self._learning[name, digest]

    async def _attempt(self, boot: str, name: str, digest: str, learning: Attempts) -> Known | None:
        try:
            return await self._shelf.learn(boot, name, digest)
        except BlitzError as error:
            if learning.is_new(error):
                log.warning("model_not_fetched name=%s boot=%s error=%s", name, boot, error)
        except Exception as error:  # a card is made by others: whatever it breaks is its own
            if learning.is_new(error):
                log.exception("model_not_usable name=%s boot=%s", name, boot)
        return None

    def _add(self, known: Known) -> None:
        self._known[known.digest] = known
        log.info("model_known name=%s digest=%.12s", known.card.name, known.digest)
        self._rebuild()
        self._on_change()

    def _rebuild(self) -> None:
        entries, coming = [], set[str]()
        for definition in self.settled.values():
            known = self._known.get(definition.digest)
            if known is None or known.card.name != definition.name:
                coming |= {definition.name, *definition.aliases}
                continue
            if self._breaks_pin(definition, known):
                continue
            entries.append(
                ModelEntry(
                    name=definition.name,
                    aliases=definition.aliases,
                    spec=known.spec,
                    text=known.text,
                    created=known.created,
                    digest=definition.digest,
                    since_s=definition.since_s,
                )
            )
        order = {name: position for position, name in enumerate(self._models)}
        entries.sort(key=lambda entry: (order.get(entry.name, len(order)), entry.name))
        self.table.replace(entries, coming)

    def _breaks_pin(self, definition: Definition, known: Known) -> bool:
        """Tell whether this node is configured to answer for a name by other weights only."""
        if not self.pinned_to_others(definition.name, known.card.weights):
            self._broken_pins.pop(definition.name, None)
            return False
        if self._broken_pins.get(definition.name) != known.card.weights:
            self._broken_pins[definition.name] = known.card.weights
            log.error(
                "model_refused name=%s reason=pinned pinned_weights=%.12s cluster_weights=%.12s",
                definition.name, self._models[definition.name].config.digest, known.card.weights,
            )  # fmt: skip
        return True

    def pinned_to_others(self, name: str, weights: str) -> bool:
        """Tell whether this node's configuration pins a name to other weights than these."""
        model = self._models.get(name)
        return model is not None and model.config.digest not in ("", weights)

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

    # What has gone.

    def _forget(self, now: float) -> None:
        """Drop what has not held for KEPT_S, this node's own excepted."""
        held = {definition.digest for definition in self.settled.values()}
        for digest, known in [*self._known.items()]:
            if known.own or digest in held:
                self._unsettled_s.pop(digest, None)
            elif now >= self._unsettled_s.setdefault(digest, now) + KEPT_S:
                del self._known[digest], self._unsettled_s[digest]
        for name in self._told.keys() - self.settled.keys():
            del self._told[name]
        if self._tidying is None and self._due_s() is not None:
            self._tidying = asyncio.get_running_loop().create_task(self._tidy())

    def _due_s(self) -> float | None:
        """Return when the next thing is to be dropped; None where nothing is."""
        due = [since_s + KEPT_S for since_s in self._unsettled_s.values()]
        if self._catalogue.due_s is not None:
            due.append(self._catalogue.due_s)
        return min(due, default=None)

    async def _tidy(self) -> None:
        """Have everything settled anew whenever something is to be dropped."""
        try:
            while (due_s := self._due_s()) is not None:
                await self._clock.sleep(max(TIDY_S, due_s - self._clock.now()))
                try:
                    self._on_change()
                except Exception:  # the next time may do better
                    log.exception("definitions_not_tidied")
        finally:
            self._tidying = None
