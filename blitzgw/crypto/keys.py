"""Cluster keys, what is derived from them, and the binary form of boot ids.

A cluster key is text that an operator has made at random. It is extracted once and never used by
itself: everything else is derived from it under a label of its own (HKDF, RFC 5869).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from blitzgw.errors import ProtocolError

MAGIC: Final = b"\xb1\x01"
"""The first bytes of every datagram and hello: a mark, and the version of all formats here."""

MIN_KEY_CHARACTERS = 32
"""Shorter keys could be guessed from a recorded packet: nothing here slows a guess down."""

MAX_KEYS = 2
"""Two suffice for a rotation; more would only keep old ones alive."""

KEY_ID_BYTES = 4
"""Long enough that a stranger's packet is told by it; it need not be unique in the world."""

KEY_BYTES = 32
"""The size of every secret key: AES-256."""

BOOT_BYTES = 8
"""The size of a boot id, which is random: 2⁻³² is the chance that 2¹⁶ starts share one."""

_BOOT = re.compile(r"[0-9a-f]{16}", re.ASCII)


class ClusterKey:
    """One cluster key. `id` is public and travels in headers; the secret stays in here."""

    def __init__(self, text: str) -> None:
        self._secret = HKDF(SHA256(), KEY_BYTES, b"blitzgw/1", b"cluster key").derive(text.encode())
        self.id = self.derive(b"key id", size_bytes=KEY_ID_BYTES)

    def derive(self, label: bytes, context: bytes = b"", size_bytes: int = KEY_BYTES) -> bytes:
        """Return bytes for one use. The label ends with a zero byte, so no two uses coincide."""
        return HKDFExpand(SHA256(), size_bytes, label + b"\0" + context).derive(self._secret)

    def __repr__(self) -> str:
        return f"ClusterKey({self.id.hex()})"


class Keyring:
    """The keys of a cluster: the first one seals, any of them opens.

    To rotate without an interruption, restart the nodes one by one with (old, new), then with
    (new, old), then with (new). Raises ValueError for no key, more than MAX_KEYS, one that is too
    short, holds what cannot be printed, or is there twice.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ValueError(f"one or two cluster keys are needed, not {len(keys)}")
        for number, key in enumerate(keys, start=1):
            if len(key) < MIN_KEY_CHARACTERS or not key.isprintable():
                raise ValueError(
                    f"cluster key {number} is not at least {MIN_KEY_CHARACTERS} printable"
                    " characters long"
                )
        self._keys = {key.id: key for key in map(ClusterKey, keys)}
        if len(self._keys) < len(keys):
            raise ValueError("the two cluster keys are the same, or share a key id: make a new one")
        self.first = next(iter(self._keys.values()))

    def get(self, key_id: bytes) -> ClusterKey | None:
        """Return the key with that id; None where it is another cluster's."""
        return self._keys.get(key_id)


def boot_bytes(boot: str) -> bytes:
    """Return a boot id in its 8 bytes; raises ProtocolError unless it is 16 hex characters."""
    if _BOOT.fullmatch(boot) is None:
        raise ProtocolError(f"{boot[:40]!r} is not a boot id")
    return bytes.fromhex(boot)
