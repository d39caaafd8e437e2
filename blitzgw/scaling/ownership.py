"""Who decides for a model: the first by rendezvous hashing among those that can.

Every node computes it from its own view. Views differ for moments, so two nodes may both take
themselves for the owner: claims, which one node alone grants, keep that harmless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from heapq import nlargest

from blitzgw.core.view import ClusterView, NodeView

MAX_HASHES = 1 << 16
"""Remembered: of 64 models at 1,000 nodes; each takes a microsecond to compute again."""


def owner_of(model: str, view: ClusterView) -> str:
    """Return the boot id of a model's owner.

    While all nodes drain, one of them is; where none lives, it is the local one.
    """
    return heirs(model, view, 1)[0]


def heirs(model: str, view: ClusterView, n: int) -> list[str]:
    """Return the boot ids of a model's owner and of those that would own it next, `n` at most."""
    return first_of(model, eligible(view), n) or [view.local]


def eligible(view: ClusterView) -> tuple[str, ...]:
    """Return the boot ids of the nodes that can own models."""
    living = list(view.living())
    return tuple(node.boot for node in living if not draining(node)) or tuple(
        node.boot for node in living
    )


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
