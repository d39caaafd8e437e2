"""The records of a secured stream.

    record := length (u32, little endian, of what follows) · AES-256-GCM(payload)

Each direction has a key of its own. The nonce counts the records of a direction, so none can be
left out, repeated or moved; the length is authenticated with the payload. A stream's end is not:
whoever needs to know that all has come says so in a message.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blitzgw.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

LENGTH: Final = struct.Struct("<I")
_NONCE: Final = struct.Struct("<IQ")

TAG_BYTES = 16
"""What authenticates a record."""

OVERHEAD_BYTES = LENGTH.size + TAG_BYTES
"""How much longer a record is than its payload."""

MAX_PAYLOAD_BYTES = (1 << 31) - 1 - TAG_BYTES
"""What AES-GCM takes in one call here; every message is far below."""


def check_length(head: Buffer, max_bytes: int) -> int:
    """Return how many bytes follow a record's head, for a payload of at most `max_bytes`.

    Raises ProtocolError where it says more, or too little to be a record.
    """
    (size,) = LENGTH.unpack(head)
    if not TAG_BYTES <= size <= max_bytes + TAG_BYTES:
        raise ProtocolError(f"a record of {size} bytes; the limit is {max_bytes + TAG_BYTES}")
    return int(size)


class Session:
    """Both directions of a stream whose handshake is done; `peer_boot` is authentic.

    Not thread-safe, but it can be handed to another thread together with its socket.
    """

    def __init__(self, seal_key: bytes, open_key: bytes, peer_boot: str) -> None:
        self.peer_boot = peer_boot
        self._sealer, self._opener = AESGCM(seal_key), AESGCM(open_key)
        self._sealed, self._opened = 0, 0

    def seal(self, payload: Buffer) -> bytes:
        """Return the next record to send. Every record made must be sent, and in order.

        Raises ProtocolError for a payload above MAX_PAYLOAD_BYTES.
        """
        size = len(payload)
        if size > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a payload of {size} bytes; the limit is {MAX_PAYLOAD_BYTES}")
        head = LENGTH.pack(size + TAG_BYTES)
        nonce = _NONCE.pack(0, self._sealed)
        self._sealed += 1
        return head + self._sealer.encrypt(nonce, bytes(payload), head)

    def open(self, head: Buffer, sealed: Buffer) -> bytes:
        """Return the payload of the next record, given its head and the rest.

        Raises ProtocolError where it is not authentic: the stream is then worth nothing more.
        """
        nonce = (self._opened << 32).to_bytes(12, "little")  # as _NONCE packs it, in less code
        self._opened += 1
        try:
            return self._opener.decrypt(nonce, sealed, head)
        except (InvalidTag, ValueError, OverflowError) as e:
            raise ProtocolError("a record that is not authentic") from e


class RecordReader:
    """Cuts a byte stream into payloads: feed what arrived, take what is complete.

    Holds one unfinished record at most. After a ProtocolError it takes nothing more.
    """

    def __init__(self, session: Session, max_record_bytes: int) -> None:
        self._session, self._max = session, max_record_bytes
        self._buffer = bytearray()
        self._broken = False
        self._head, self._size = b"", -1  # of the last record that came alone

    def feed(self, data: Buffer) -> list[bytes]:
        """Return the payloads that `data` completes.

        Raises ProtocolError for a record that is too long or not authentic; the payloads before
        it in the same `data` are lost with the stream.
        """
        if self._broken:
            raise ProtocolError("a stream that is broken already")
        try:
            if not self._buffer:  # mostly one write's, and often as long as the last one
                head = data[:4]
                if (len(data) == self._size and head == self._head) or self._is_record(data):
                    return [self._session.open(head, data[4:])]
            self._buffer += data
            payloads, consumed = self._cut()
        except ProtocolError:
            self._broken = True
            self._buffer.clear()
            raise
        del self._buffer[:consumed]
        return payloads

    def _is_record(self, data: Buffer) -> bool:
        """Tell whether data is one record, and remember its head."""
        size, head = len(data), bytes(data[: LENGTH.size])
        whole = OVERHEAD_BYTES <= size <= self._max + OVERHEAD_BYTES
        if not whole or int.from_bytes(head, "little") != size - LENGTH.size:
            return False
        self._size, self._head = size, head
        return True

    def _cut(self) -> tuple[list[bytes], int]:
        payloads: list[bytes] = []
        start, end = 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while end - start >= LENGTH.size:
                body = start + LENGTH.size
                with view[start:body] as head:
                    stop = body + check_length(head, self._max)
                    if stop > end:
                        break
                    with view[body:stop] as sealed:
                        payloads.append(self._session.open(head, sealed))
                start = stop
        return payloads, start
