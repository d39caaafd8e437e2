"""How two processes that hold a cluster key make sure of each other over TCP.

    client → server   magic 2 · key id 4 · purpose 1 · boot 8 · ephemeral 32 · MAC 32
    server → client   boot 8 · ephemeral 32 · MAC 32
    client → server   MAC 32

An X25519 exchange of ephemeral keys, mixed with the cluster key (as NNpsk0 of the Noise framework
does): a session's keys are lost with the ephemerals, so whoever learns the cluster key later reads
nothing of what was recorded. The first MAC is under the cluster key alone: a stranger is dropped
before anything is computed for it, and gets no answer. The other two are under keys of both
ephemerals and of all that was said: each side proves that it is there now, so a replayed hello
gets one answer that its sender can make nothing of.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blitzgw.crypto.keys import BOOT_BYTES, KEY_BYTES, MAGIC, ClusterKey, Keyring, boot_bytes
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError

_CLIENT_BODY: Final = struct.Struct(f"<2s4sB{BOOT_BYTES}s{KEY_BYTES}s")
_SERVER_BODY: Final = struct.Struct(f"<{BOOT_BYTES}s{KEY_BYTES}s")
_MAC_BYTES = 32

CLIENT_HELLO_BYTES = _CLIENT_BODY.size + _MAC_BYTES
SERVER_HELLO_BYTES = _SERVER_BODY.size + _MAC_BYTES
CONFIRMATION_BYTES = _MAC_BYTES


class Purpose(IntEnum):
    """What a connection is for. Appended to, never reused."""

    SYNC = 1
    """One exchange of anti-entropy (core/rumours.py)."""
    LINK = 2
    """A peer link (core/peer.py)."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """What both ends derive: a key per MAC, and one per direction."""

    server_mac: bytes
    client_mac: bytes
    client_seals: bytes
    server_seals: bytes


class ClientHandshake:
    """The side that has connected: send `hello`, then `finish` with what the server answers."""

    def __init__(self, keyring: Keyring, local_boot: str, purpose: Purpose) -> None:
        self._key, self._boot = keyring.first, boot_bytes(local_boot)
        self._ephemeral = X25519PrivateKey.generate()
        public = self._ephemeral.public_key().public_bytes_raw()
        body = _CLIENT_BODY.pack(MAGIC, self._key.id, purpose, self._boot, public)
        self.hello = body + _hello_mac(self._key, body)

    def finish(self, answer: bytes) -> tuple[Session, bytes]:
        """Return the session, and the confirmation to send before anything else.

        `answer` is SERVER_HELLO_BYTES long. Raises ProtocolError where it is not authentic, or
        where the server is this process itself.
        """
        if len(answer) != SERVER_HELLO_BYTES:
            raise ProtocolError(f"a server's hello of {len(answer)} bytes")
        boot, public = _SERVER_BODY.unpack_from(answer)
        said = self.hello + answer[: _SERVER_BODY.size]
        keys = _mix(self._key, self._ephemeral, public, said)
        _check(keys.server_mac, said, answer[_SERVER_BODY.size :], "server's hello")
        if boot == self._boot:
            raise ProtocolError("connected to this process itself")
        session = Session(keys.client_seals, keys.server_seals, boot.hex())
        return session, _mac(keys.client_mac, said)


class ServerHandshake:
    """The side that has accepted: `answer` the client's hello, `finish` with its confirmation.

    `purpose` and `peer_boot` are what the hello says, authentic once `finish` has returned.
    """

    def __init__(self, keyring: Keyring, local_boot: str) -> None:
        self._keyring, self._boot = keyring, boot_bytes(local_boot)
        self.purpose = Purpose.SYNC
        self.peer_boot = ""
        self._said = b""
        self._keys: _Keys | None = None

    def answer(self, hello: bytes) -> bytes:
        """Return the server's hello; raises ProtocolError for a stranger's, or a malformed one.

        `hello` is CLIENT_HELLO_BYTES long. The caller closes without an answer where this raises.
        """
        key, purpose, boot, public = self._parse(hello)
        ephemeral = X25519PrivateKey.generate()
        body = _SERVER_BODY.pack(self._boot, ephemeral.public_key().public_bytes_raw())
        self._said = hello + body
        self._keys = _mix(key, ephemeral, public, self._said)
        self.purpose, self.peer_boot = purpose, boot.hex()
        return body + _mac(self._keys.server_mac, self._said)

    def finish(self, confirmation: bytes) -> Session:
        """Return the session; raises ProtocolError unless the client has seen our hello."""
        if self._keys is None:
            raise ProtocolError("a confirmation before the hello")
        _check(self._keys.client_mac, self._said, confirmation, "confirmation")
        return Session(self._keys.server_seals, self._keys.client_seals, self.peer_boot)

    def _parse(self, hello: bytes) -> tuple[ClusterKey, Purpose, bytes, bytes]:
        if len(hello) != CLIENT_HELLO_BYTES:
            raise ProtocolError(f"a client's hello of {len(hello)} bytes")
        magic, key_id, purpose, boot, public = _CLIENT_BODY.unpack_from(hello)
        key = self._keyring.get(key_id)
        if magic != MAGIC or key is None:
            raise ProtocolError("a hello of another cluster, or of none")
        if not hmac.compare_digest(_hello_mac(key, hello[:-_MAC_BYTES]), hello[-_MAC_BYTES:]):
            raise ProtocolError("a hello that is not authentic")
        if boot == self._boot:
            raise ProtocolError("a hello of this process itself")
        try:
            return key, Purpose(purpose), boot, public
        except ValueError as e:
            raise ProtocolError(f"a connection for purpose {purpose}, unknown here") from e


def _hello_mac(key: ClusterKey, body: bytes) -> bytes:
    return _mac(key.derive(b"client hello"), body)


def _mac(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")


def _check(key: bytes, said: bytes, mac: bytes, what: str) -> None:
    if not hmac.compare_digest(_mac(key, said), mac):
        raise ProtocolError(f"a {what} that is not authentic")


def _mix(key: ClusterKey, ours: X25519PrivateKey, theirs: bytes, said: bytes) -> _Keys:
    """Return the keys of a session: of the shared secret, the cluster key and both hellos."""
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as e:
        raise ProtocolError("an ephemeral key that is no point to exchange with") from e
    info = b"stream session\0" + hashlib.sha256(said).digest()
    salt = key.derive(b"stream handshake")
    derived = HKDF(SHA256(), 4 * KEY_BYTES, salt, info).derive(shared)
    return _Keys(*(derived[at : at + KEY_BYTES] for at in range(0, 4 * KEY_BYTES, KEY_BYTES)))
