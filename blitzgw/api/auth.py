"""API keys: compared in constant time on their hashes, never kept in clear, never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from blitzgw.errors import Unauthorized

TENANT_DIGITS = 16
"""Hexadecimal digits of a tenant's name: 64 bits of the key's hash."""

SCHEME = "bearer "


class Keyring:
    """The keys that may use this node. Without any, everybody may (a node on loopback)."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, authorization: str | None) -> str:
        """Return who is asking, from the Authorization header; raises Unauthorized."""
        if not self._digests:
            return ""
        if authorization is None or authorization[: len(SCHEME)].lower() != SCHEME:
            raise Unauthorized("an API key is needed: Authorization: Bearer <key>")
        key = authorization[len(SCHEME) :].strip()
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("this API key is not known here")
        return digest.hex()[:TENANT_DIGITS]
