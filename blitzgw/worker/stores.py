"""Which stores of weights a worker is to have, by what its node has told it.

    LoadModel 1, HoldCopy 2 ── one store, made for 1 ── unload, DropCopy ── none ── LoadModel 3 …

Commands and news cross on their way: what a worker says of a store that has been given up is no
news of the store of the same weights that comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.transfer import BlobChecked, BlobDamaged, CopyFailed, CopyHeld

StoreNews = BlobChecked | BlobDamaged | CopyHeld | CopyFailed
"""What a worker says of a store; each with the number of what it is about."""


@dataclass(slots=True)
class _Store:
    """`since` is the number of what it was made for; `users` are instances, None the host copy."""

    since: int
    users: dict[str | None, int] = field(default_factory=dict)


class Stores:
    """The stores of one worker, by the root of their weights, as its node knows them."""

    def __init__(self) -> None:
        self._stores: dict[str, _Store] = {}

    def begin(self, weights: str, user: str | None, load: int) -> None:
        """Note that the worker is told of a user, under this number; it has a store from now on."""
        store = self._stores.setdefault(weights, _Store(load))
        store.users[user] = load

    def end(self, weights: str, user: str | None) -> None:
        """Note that a user is no more, if it was one; with the last one the store goes."""
        store = self._stores.get(weights)
        if store is not None:
            store.users.pop(user, None)
            if not store.users:
                del self._stores[weights]

    def clear(self) -> None:
        """Forget all: the worker has died."""
        self._stores.clear()

    def is_present(self, news: StoreNews) -> bool:
        """Whether news are of a store that the worker is to have, or of the latest host copy."""
        store = self._stores.get(news.weights)
        if store is None:
            return False
        if isinstance(news, CopyHeld | CopyFailed):
            return store.users.get(None) == news.load
        return news.load >= store.since
