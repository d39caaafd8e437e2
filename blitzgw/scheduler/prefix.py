"""Which slots hold the KV of which prefixes.

A full block is named by a hash chained from the sequence's beginning: blake2b of the parent's name
and the block's token ids, with the tenant as the first parent (nobody can find out by timing what
another tenant has asked). So a name stands for everything before it as well, block i of a chain can
only lie at index i of a slot, and a slot that holds a name holds all names before it in the chain.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from blitzgw.core.step import BLOCK_TOKENS

NAME_BYTES = 16
"""128 bits: that two blocks of one cache ever share a name by accident can be ruled out."""


def root(salt: str) -> bytes:
    """Return the parent of a tenant's first blocks."""
    return blake2b(salt.encode(), digest_size=NAME_BYTES, person=b"kv-prefix-root").digest()


def block_name(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the name of a full block of tokens behind `parent`. Token ids fit 32 bits."""
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=NAME_BYTES).digest()


class PrefixIndex:
    """Block names → slots that hold them, in the order in which they came to hold them."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, name: bytes, slot: int) -> None:
        """Note that a slot holds a block."""
        self._holders.setdefault(name, {})[slot] = None

    def remove(self, names: Iterable[bytes], slot: int) -> None:
        """Note that a slot does not hold these blocks any more."""
        for name in names:
            holders = self._holders[name]
            del holders[slot]
            if not holders:
                del self._holders[name]

    def holders(self, name: bytes) -> Iterable[int]:
        """Return the slots that hold a block."""
        return self._holders.get(name, ())

    def holds_first(self, tokens: Sequence[int], parent: bytes) -> bool:
        """Tell whether `match` would return anything."""
        if not self._holders or len(tokens) <= BLOCK_TOKENS:
            return False
        return block_name(parent, tokens[:BLOCK_TOKENS]) in self._holders

    def match(self, tokens: Sequence[int], parent: bytes) -> list[bytes]:
        """Return the names of the longest held chain that leaves at least the last token out."""
        names: list[bytes] = []
        for start in range(0, len(tokens) - BLOCK_TOKENS, BLOCK_TOKENS):
            parent = block_name(parent, tokens[start : start + BLOCK_TOKENS])
            if parent not in self._holders:
                break
            names.append(parent)
        return names
