"""Which models this node answers for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from blitzgw.api.text import TextModel
from blitzgw.core.instance import ModelSpec
from blitzgw.errors import InvalidRequest, Unavailable, UnknownModel

ANY = "*"
"""An alias that stands for every name that no other model has."""

ECHOED_CHARS = 100
"""How much of an unknown name an error repeats."""

COMING_S = 10.0
"""How long a request waits for a model whose tokenizer is on its way: some seconds at most."""

RETRY_AFTER_S = 1.0
"""What a client is told to wait after that."""

NO_ADAPTERS = "LoRA adapters are not supported, serve a checkpoint that one is merged into"
"""Where a field, or a name of the form `model:adapter`, asks for one."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as clients see it. `created` is in seconds of the Unix epoch.

    `digest` names the definition that it is; empty: not known. `since_s` is when the cluster's
    definition began to hold: of two models with the same alias the older one has it.
    """

    name: str
    aliases: tuple[str, ...]
    spec: ModelSpec
    text: TextModel
    created: int
    digest: str = ""
    since_s: int = 0


class ModelTable:
    """Finds models by name or alias; a name never becomes a path.

    A model's own name always means it; an alias that several want is decided alike on all nodes,
    in whatever order they learn of the models. `coming` are names and aliases of models that the
    cluster serves and this node cannot tokenise for yet: of those, only what is another model's own
    name is answered, while ANY stays with whom it is until they have come.
    """

    def __init__(self, entries: Iterable[ModelEntry] = ()) -> None:
        self._changed = asyncio.Event()
        self.replace(entries)

    def replace(self, entries: Iterable[ModelEntry], coming: Iterable[str] = ()) -> None:
        """Answer for these models from now on."""
        self.entries = tuple(entries)
        self._coming = frozenset(coming)
        arrived, self._changed = self._changed, asyncio.Event()
        arrived.set()
        self._by_name = _claimed(self.entries)
        self._any = self._by_name.pop(ANY, None)
        for name in self._coming:
            if name in self._by_name and self._by_name[name].name != name:
                del self._by_name[name]

    @property
    def coming(self) -> frozenset[str]:
        """The names that this node cannot tokenise for yet."""
        return self._coming

    async def find(self, name: str | None) -> ModelEntry:
        """Return a model, after a while if it is on its way; raises as `lookup` does."""
        if self._is_coming(name):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMING_S):
                    while self._is_coming(name):
                        await self._changed.wait()
        return self.lookup(name)

    def lookup(self, name: str | None) -> ModelEntry:
        """Return a model; raises UnknownModel, Unavailable for one that is on its way.

        InvalidRequest where a name is needed.
        """
        if self._is_coming(name):
            asked = ANY if name is None else name[:ECHOED_CHARS]
            raise Unavailable(f"the model `{asked}` is being fetched", retry_after_s=RETRY_AFTER_S)
        if name is None:
            return self._default()
        entry = self._by_name.get(name) or self._any
        if entry is None:
            base, colon, _ = name.partition(":")
            if colon and base in self._by_name:
                raise InvalidRequest(f"model: {NO_ADAPTERS}; `{base}` is served", param="model")
            known = ", ".join(sorted(entry.name for entry in self.entries)) or "none"
            raise UnknownModel(
                f"the model `{name[:ECHOED_CHARS]}` does not exist; known models: {known}",
                param="model",
            )
        return entry

    def names(self) -> list[tuple[str, ModelEntry]]:
        """Return all names and aliases with what they stand for; configured order."""
        return list(self._by_name.items())

    def _is_coming(self, name: str | None) -> bool:
        """Tell whether a name, or none, stands for a model that this node cannot tokenise for."""
        if name in self._by_name:
            return False
        return name in self._coming or (self._any is None and ANY in self._coming)

    def _default(self) -> ModelEntry:
        if self._any is not None:
            return self._any
        if len(self.entries) != 1:
            raise InvalidRequest("model is required: several are served here", param="model")
        return self.entries[0]


def _claimed(entries: Iterable[ModelEntry]) -> dict[str, ModelEntry]:
    """Return what each name and alias stands for; every model's name beside its aliases.

    Names come before aliases; of several models with an alias the oldest definition has it, of
    equally old ones that with the lesser name.
    """
    entries = [*entries]
    owners = {entry.name: entry for entry in reversed(entries)}
    for entry in sorted(entries, key=lambda entry: (entry.since_s, entry.name)):
        for alias in entry.aliases:
            owners.setdefault(alias, entry)
    in_order = (name for entry in entries for name in (entry.name, *entry.aliases))
    return {name: owners[name] for name in in_order}
