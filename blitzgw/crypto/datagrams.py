"""Sealed datagrams: who sent one, that it is meant for this process, and that it is not a replay.

    datagram := magic 2 · key id 4 · sender's boot 8 · receiver's boot 8 · counter 8 · AES-256-GCM

The header is authenticated with the payload. The key is derived from the cluster key and both boot
ids: a datagram to another process, or to an earlier life of this one, opens nowhere; and since a
boot id is new at every start and the counter is the nonce, no nonce is ever used twice. AES-GCM
rather than ChaCha20-Poly1305: every server's processor computes it (0.9 µs for 1200 bytes, against
2.2 µs, where measured).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blitzgw.crypto.keys import BOOT_BYTES, MAGIC, ClusterKey, Keyring, boot_bytes
from blitzgw.crypto.records import TAG_BYTES
from blitzgw.crypto.replay import ReplayWindow
from blitzgw.errors import ProtocolError

_HEADER: Final = struct.Struct(f"<2s4s{BOOT_BYTES}s{BOOT_BYTES}sQ")
_NONCE: Final = struct.Struct("<IQ")

OVERHEAD_BYTES = _HEADER.size + TAG_BYTES
"""How much longer a datagram is than its payload."""

MAX_PEERS = 4096
"""Peers remembered in each direction, 1 KiB each: more than a cluster has members, with room for
restarts. One that is crowded out opens again, but what it sent before could then be replayed:
gossip repeated late says nothing that is believed (its incarnations and versions are old)."""


class Rejection(StrEnum):
    """Why a datagram was dropped."""

    SHORT = "short"
    """Shorter than a header and a tag."""
    MAGIC = "magic"
    """Not one of ours, or of another version."""
    KEY = "key"
    """Of a cluster whose key is not held here."""
    ADDRESSEE = "addressee"
    """For another process: an earlier life of this one, mostly."""
    REPLAY = "replay"
    """Seen already, or so old that this cannot be told."""
    FORGED = "forged"
    """Not made with the key that it names."""
    MALFORMED = "malformed"
    """Authentic, but not a message."""


class _Inbound:
    """What is known of a peer that has proved itself: its key here, and what has come of it."""

    __slots__ = ("aead", "window")

    def __init__(self, aead: AESGCM) -> None:
        self.aead = aead
        self.window = ReplayWindow()


class _Outbound:
    """The way to a peer: its key, and the last counter used."""

    __slots__ = ("aead", "counter")

    def __init__(self, aead: AESGCM, counter: int) -> None:
        self.aead, self.counter = aead, counter


class Datagrams:
    """Seals and opens the datagrams of one process. Not thread-safe."""

    def __init__(self, keyring: Keyring, local_boot: str) -> None:
        self._keyring, self._boot = keyring, boot_bytes(local_boot)
        self._inbound: OrderedDict[bytes, _Inbound] = OrderedDict()
        self._outbound: OrderedDict[str, _Outbound] = OrderedDict()
        self._floor = 0
        self.rejected: dict[Rejection, int] = dict.fromkeys(Rejection, 0)

    def seal(self, boot: str, payload: bytes) -> bytes:
        """Return a datagram for the process with that boot id.

        Raises ProtocolError where that is no boot id.
        """
        peer = self._outbound.get(boot)
        if peer is None:
            peer = self._remember_outbound(boot)
        self._outbound.move_to_end(boot)
        peer.counter += 1
        key = self._keyring.first
        header = _HEADER.pack(MAGIC, key.id, self._boot, bytes.fromhex(boot), peer.counter)
        return header + peer.aead.encrypt(_NONCE.pack(0, peer.counter), payload, header)

    def open(self, data: bytes) -> tuple[str, bytes]:
        """Return (sender's boot id, payload) of a datagram.

        Raises ProtocolError for any that is not authentic, new and meant for this process: it is
        counted in `rejected`, and nothing else has changed.
        """
        if len(data) < OVERHEAD_BYTES:
            raise self.reject(Rejection.SHORT)
        magic, key_id, sender, receiver, counter = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise self.reject(Rejection.MAGIC)
        key = self._keyring.get(key_id)
        if key is None:
            raise self.reject(Rejection.KEY)
        if receiver != self._boot:
            raise self.reject(Rejection.ADDRESSEE)
        name = key_id + sender
        known = self._inbound.get(name)
        if known is not None and not known.window.is_new(counter):
            raise self.reject(Rejection.REPLAY)
        peer = known or _Inbound(_aead(key, sender, receiver))
        header, sealed = data[: _HEADER.size], data[_HEADER.size :]
        try:
            payload = peer.aead.decrypt(_NONCE.pack(0, counter), sealed, header)
        except InvalidTag as e:
            raise self.reject(Rejection.FORGED) from e
        peer.window.add(counter)
        self._remember_inbound(name, peer)
        return sender.hex(), payload

    def reject(self, reason: Rejection) -> ProtocolError:
        """Count a datagram as dropped, and return the error that says so."""
        self.rejected[reason] += 1
        return ProtocolError(f"a datagram dropped: {reason}")

    def _remember_inbound(self, name: bytes, peer: _Inbound) -> None:
        self._inbound[name] = peer
        self._inbound.move_to_end(name)
        if len(self._inbound) > MAX_PEERS:
            self._inbound.popitem(last=False)

    def _remember_outbound(self, boot: str) -> _Outbound:
        """Make a way to a peer. Its counter begins where no forgotten one has come to.

        Whether this peer was forgotten before is not known, so it must not begin at 0 again.
        """
        receiver = boot_bytes(boot)
        while len(self._outbound) >= MAX_PEERS:
            forgotten = self._outbound.popitem(last=False)[1]
            self._floor = max(self._floor, forgotten.counter)
        peer = _Outbound(_aead(self._keyring.first, self._boot, receiver), self._floor)
        self._outbound[boot] = peer
        return peer


def _aead(key: ClusterKey, sender: bytes, receiver: bytes) -> AESGCM:
    return AESGCM(key.derive(b"datagram", sender + receiver))
