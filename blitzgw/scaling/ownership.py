"""Who decides for a model: the first by rendezvous hashing among those that can.

Every node computes it from its own view. Views differ for moments, so two nodes may both take
themselves for the owner: claims, which one node alone grants, keep that harmless.
"""

from __future__ import annotations

import hashlib

from blitzgw.core.view import ClusterView, NodeView


def owner_of(model: str, view: ClusterView) -> str:
    """Return the boot id of a model's owner.

    While all nodes drain, one of them is; where none lives, it is the local one.
    """
    living = [node for node in view.living() if not draining(node)] or list(view.living())
    if not living:
        return view.local
    return max(living, key=lambda node: (unit_hash(model, node.boot), node.boot)).boot


def draining(node: NodeView) -> bool:
    """Whether a node is about to go, or not yet known well enough to be relied upon."""
    return node.facts is None or node.facts.draining


def unit_hash(key: str, boot: str) -> float:
    """Return a number within (0, 1), the same everywhere for a key and a node, evenly spread."""
    data = b"%d:%s%s" % (len(key.encode()), key.encode(), boot.encode())
    number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return ((number >> 12) + 0.5) / (1 << 52)
