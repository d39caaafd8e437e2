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


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as clients see it. `created` is in seconds of the Unix epoch."""

    name: str
    aliases: tuple[str, ...]
    spec: ModelSpec
    text: TextModel
    created: int


class ModelTable:
    """Finds models by name or alias; a name never becomes a path.

    `coming` are names that the cluster serves and this node cannot tokenise for yet.
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
        self._by_name: dict[str, ModelEntry] = {}
        for entry in self.entries:
            for name in (entry.name, *entry.aliases):
                self._by_name.setdefault(name, entry)
        self._any = self._by_name.pop(ANY, None)

    @property
    def coming(self) -> frozenset[str]:
        """The names that this node cannot tokenise for yet."""
        return self._coming

    async def find(self, name: str | None) -> ModelEntry:
        """Return a model, after a while if it is on its way; raises as `lookup` does."""
        if name in self._coming:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMING_S):
                    while name in self._coming:
                        await self._changed.wait()
        return self.lookup(name)

    def lookup(self, name: str | None) -> ModelEntry:
        """Return a model; raises UnknownModel, Unavailable for one that is on its way.

        InvalidRequest where a name is needed.
        """
        if name is None:
            return self._default()
        entry = self._by_name.get(name)
        if entry is None and name in self._coming:
            raise Unavailable(f"the model `{name}` is being fetched", retry_after_s=RETRY_AFTER_S)
        entry = entry or self._any
        if entry is None:
            known = ", ".join(sorted(entry.name for entry in self.entries)) or "none"
            raise UnknownModel(
                f"the model `{name[:ECHOED_CHARS]}` does not exist; known models: {known}",
                param="model",
            )
        return entry

    def names(self) -> list[tuple[str, ModelEntry]]:
        """Return all names and aliases with what they stand for; configured order."""
        return list(self._by_name.items())

    def _default(self) -> ModelEntry:
        if self._any is not None:
            return self._any
        if len(self.entries) != 1:
            raise InvalidRequest("model is required: several are served here", param="model")
        return self.entries[0]
