"""Who decides for a model: the first by rendezvous hashing among those that can.

Every node computes it from its own view. Views differ for moments, so two nodes may both take
themselves for the owner: claims, which one node alone grants, keep that harmless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from heapq import nlargest

from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import MEMBERS, Derived, Picture
from blitzgw.core.view import ClusterView, NodeView

MAX_HASHES = 1 << 16
"""Remembered: of 64 models at 1,000 nodes; each takes a microsecond to compute again."""

MAX_HEIRS = 3
"""That are remembered of a model: its owner and those that pass wishes on (wishes.py)."""

MAX_ASKED = 4096
"""Models of which heirs are remembered: what is asked for need not exist."""


def owner_of(model: str, view: ClusterView) -> str:
    """Return the boot id of a model's owner.

    While all nodes drain, one of them is; where none lives, it is the local one.
    """
    found = view.picture.recall(ELECTORATE).heirs(model)
    return found[0] if found else view.local


def heirs(model: str, view: ClusterView, n: int) -> list[str]:
    """Return the boot ids of a model's owner and of those that would own it next, `n` at most."""
    electorate = view.picture.recall(ELECTORATE)
    if n > MAX_HEIRS:
        return first_of(model, electorate.boots, n) or [view.local]
    return [*electorate.heirs(model)[:n]] or [view.local]


class Electorate:
    """The nodes that can own models, and which of them do: those `able`, if need be all `living`.

    Where few of them come or go only models that had an owner or an heir among those that go are
    asked for anew: of those that come it is enough to compare their hashes.
    """

    __slots__ = ("_heirs", "able", "boots")

    def __init__(self, able: frozenset[str], living: Iterable[str]) -> None:
        self.able = able
        self.boots = able or frozenset(living)
        self._heirs: dict[str, tuple[str, ...]] = {}

    def heirs(self, model: str) -> tuple[str, ...]:
        """Return the first of them for a model, `MAX_HEIRS` at most."""
        found = self._heirs.get(model)
        if found is None:
            if len(self._heirs) >= MAX_ASKED:
                self._heirs.clear()
            found = self._heirs[model] = tuple(first_of(model, self.boots, MAX_HEIRS))
        return found

    def after(self, able: frozenset[str], living: Iterable[str]) -> Electorate:
        """Return the electorate of these nodes."""
        made = Electorate(able, living)
        gone, new = self.boots - made.boots, made.boots - self.boots
        for model, found in self._heirs.items():
            if gone.isdisjoint(found):
                among = (*found, *new)
                made._heirs[model] = tuple(first_of(model, among, MAX_HEIRS)) if new else found
        return made


def _electorate(picture: Picture, former: Electorate | None, stale: frozenset[str]) -> Electorate:
    nodes, living = picture.nodes, picture.recall(MEMBERSHIP).living
    among = stale if former is not None else living
    able = frozenset(boot for boot in among if boot in living and not draining(nodes[boot]))
    if former is None:
        return Electorate(able, living)
    able |= former.able - stale
    return former if able and able == former.able else former.after(able, living)


ELECTORATE = Derived(MEMBERS, _electorate)


def first_of(model: str, boots: Iterable[str], n: int) -> list[str]:
    """Return the first `n` of these nodes for a model."""
    return nlargest(n, boots, key=lambda boot: (unit_hash(model, boot), boot))


def draining(node: NodeView) -> bool:
    """Whether a node is about to go, or not yet known well enough to be relied upon."""
    return node.facts is None or node.facts.draining


@lru_cache(maxsize=MAX_HASHES)
def unit_hash(key: str, boot: str) -> float:
    """Return a number within (0, 1), the same everywhere for a key and a node, evenly spread."""
    data = b"%d:%s%s" % (len(key.encode()), key.encode(), boot.encode())
    number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return ((number >> 12) + 0.5) / (1 << 52)
