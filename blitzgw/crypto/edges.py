"""How the two ends of an edge make sure of each other: both prove that they know its one-time key.

    receiver → sender   magic 2 · name 16 · nonce 32 · MAC 32
    sender → receiver   nonce 32 · MAC 32
    from here on        records (records.py)

The name is a hash of the edge's id, so that the sender finds the key; it is no secret. The first
MAC is under the key alone: a stranger is dropped before anything is answered. The second one and
the keys of the records are of the edge's key and both nonces, so the receiver proves itself afresh
with its first record, and each connection of an edge has keys of its own. A hello that has been
seen before gets no answer: edges live for one transfer, so all their hellos are remembered.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from blitzgw.crypto.keys import KEY_BYTES
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError

EDGE_MAGIC: Final = b"\xb1\xe1"
"""The first bytes of a hello: a mark, and the version of what follows."""

NAME_BYTES = 16
NONCE_BYTES = 32
_MAC_BYTES = 32

_HELLO: Final = struct.Struct(f"<2s{NAME_BYTES}s{NONCE_BYTES}s")

EDGE_HELLO_BYTES = _HELLO.size + _MAC_BYTES
EDGE_ANSWER_BYTES = NONCE_BYTES + _MAC_BYTES

MAX_HELLOS = 256
"""Connections of one edge, ever: far above what its receiver's retries come to, and a bound on the
nonces that are remembered."""


def edge_name(edge: str) -> bytes:
    """Return the name that an edge has in hellos."""
    return hashlib.blake2b(edge.encode(), digest_size=NAME_BYTES, person=b"blitzgw edge").digest()


def name_in(hello: bytes) -> bytes:
    """Return the name of the edge that a hello is for; nothing in it is authentic yet.

    Raises ProtocolError for a size or a mark that no hello has.
    """
    if len(hello) != EDGE_HELLO_BYTES or not hello.startswith(EDGE_MAGIC):
        raise ProtocolError("not the hello of an edge")
    return hello[len(EDGE_MAGIC) : len(EDGE_MAGIC) + NAME_BYTES]


class EdgeDialler:
    """The receiver's side of one connection: send `hello`, then `finish` with the answer."""

    def __init__(self, edge: str, key: bytes) -> None:
        self._key = _checked(key)
        body = _HELLO.pack(EDGE_MAGIC, edge_name(edge), secrets.token_bytes(NONCE_BYTES))
        self.hello = body + _hello_mac(key, body)

    def finish(self, answer: bytes) -> Session:
        """Return the session; raises ProtocolError unless the answer is to this very hello."""
        if len(answer) != EDGE_ANSWER_BYTES:
            raise ProtocolError(f"an answer of {len(answer)} bytes")
        mac_key, dialler_seals, acceptor_seals = _mix(self._key, self.hello, answer[:NONCE_BYTES])
        if not hmac.compare_digest(_mac(mac_key, self.hello + answer[:NONCE_BYTES]), answer[32:]):
            raise ProtocolError("an answer that is not authentic")
        return Session(dialler_seals, acceptor_seals, "")


class EdgeGate:
    """The sender's side of an edge: answers each hello once. Not thread-safe."""

    def __init__(self, edge: str, key: bytes) -> None:
        self.name = edge_name(edge)
        self._key = _checked(key)
        self._seen: set[bytes] = set()

    def answer(self, hello: bytes) -> tuple[bytes, Session]:
        """Return what to answer, and the session of the connection.

        Raises ProtocolError for the hello of a stranger or of another edge, for one that has come
        before, and above MAX_HELLOS. The caller then closes without an answer.
        """
        if name_in(hello) != self.name:
            raise ProtocolError("the hello of another edge")
        if not hmac.compare_digest(_hello_mac(self._key, hello[: _HELLO.size]), hello[-32:]):
            raise ProtocolError("a hello that is not authentic")
        if hello in self._seen or len(self._seen) >= MAX_HELLOS:
            raise ProtocolError("a hello that is replayed, or one too many")
        self._seen.add(hello)
        nonce = secrets.token_bytes(NONCE_BYTES)
        mac_key, dialler_seals, acceptor_seals = _mix(self._key, hello, nonce)
        return nonce + _mac(mac_key, hello + nonce), Session(acceptor_seals, dialler_seals, "")


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ProtocolError(f"an edge's key of {len(key)} bytes")
    return key


def _hello_mac(key: bytes, body: bytes) -> bytes:
    return _mac(HKDFExpand(SHA256(), KEY_BYTES, b"edge hello\0").derive(key), body)


def _mac(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")


def _mix(key: bytes, hello: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the keys of the answer's MAC, of what the receiver seals and of what the sender does.

    HKDF (RFC 5869) of the edge's key; the salt is both ends' nonces with all that was said.
    """
    salt = hashlib.sha256(hello + nonce).digest()
    derived = HKDF(SHA256(), 3 * KEY_BYTES, salt, b"edge session\0").derive(key)
    return derived[:32], derived[32:64], derived[64:]
