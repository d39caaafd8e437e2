"""The channel of records and pieces over a wire, whichever wire it is."""

from __future__ import annotations

from typing import Final

from blitzgw.crypto.records import LENGTH, OVERHEAD_BYTES, TAG_BYTES, Session, check_length
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    HEAD_BYTES,
    MAX_RECORD_BYTES,
    Bypass,
    Piece,
    PieceDamaged,
    Record,
    RecordKind,
    Way,
    Wire,
    decode_piece,
    decode_record,
    encode_piece,
    encode_record,
    piece_digest,
)
from blitzgw.transport.governor import Lane

_SHORTEST_BYTES: Final = HEAD_BYTES + OVERHEAD_BYTES
"""The shortest record with what seals it: what is read first of each."""

SEALED_BYTES = 64 << 10
"""How much of a sealed payload is one record: its copies stay in the cache, and below the size from
which the allocator fetches fresh pages for each."""


class SealedChannel:
    """A base.Channel over a wire whose ends have shaken hands (crypto/edges.py).

    `seed` is that of the operation's digests. With `encrypt`, payloads that this end sends are
    sealed as well; the receiver follows what their heads say. A `bypass` takes the payloads of
    `send_bypassed`, and it is ended with the channel. Raises ValueError for one with `encrypt`,
    which it could not do.
    """

    def __init__(
        self,
        wire: Wire,
        session: Session,
        lane: Lane,
        seed: int,
        *,
        encrypt: bool = False,
        bypass: Bypass | None = None,
    ) -> None:
        if encrypt and bypass is not None:
            raise ValueError("a bypass does not encrypt")
        self._wire, self._session, self._lane = wire, session, lane
        self._seed, self._encrypt, self._bypass = seed, encrypt, bypass
        self._way = Way.INLINE
        self._head = memoryview(bytearray(_SHORTEST_BYTES))

    def send(self, record: Record) -> None:
        """Send a record."""
        self._wire.write([self._session.seal(encode_record(record))])

    def send_piece(self, piece: Piece, payload: memoryview, before: Record | None = None) -> None:
        """Send a piece, chunk by chunk as its class of traffic may; with it a record before it."""
        way = Way.SEALED if self._encrypt else Way.INLINE
        head = b"" if before is None else self._session.seal(encode_record(before))
        head += self._session.seal(encode_piece(piece, way))
        with self._lane.message():
            if way is Way.SEALED:
                for start in range(0, len(payload), SEALED_BYTES):
                    part = self._session.seal(payload[start : start + SEALED_BYTES])
                    self._write(b"" if start else head, memoryview(part))
            else:
                self._write(head, payload)

    def send_bypassed(self, piece: Piece) -> None:
        """Send the head of a piece, and its payload by the channel's bypass."""
        if self._bypass is None:
            raise ValueError("there is no bypass")
        with self._lane.message():
            waited_for = 0
            while waited_for < piece.size_bytes:  # a cap counts all of it
                waited_for += self._lane.begin(piece.size_bytes - waited_for)
            self._wire.write([self._session.seal(encode_piece(piece, Way.BYPASS))])
            self._bypass.send(piece)
            self._lane.finish(piece.size_bytes)

    def receive(self) -> Record | Piece:
        """Wait for the next record or piece; a piece's payload is to be received next."""
        payload = self._read()
        if payload[0] != RecordKind.PIECE:
            return decode_record(payload)
        piece, self._way = decode_piece(payload)
        if self._way is Way.BYPASS and self._bypass is None:
            raise ProtocolError("a payload by a bypass that is not there")
        return piece

    def receive_payload(self, piece: Piece, into: memoryview) -> None:
        """Receive a piece's payload; raises PieceDamaged, after which the channel is of no use."""
        if len(into) != piece.size_bytes:
            raise ValueError(f"a piece of {piece.size_bytes} bytes into {len(into)}")
        if self._way is Way.SEALED:
            self._read_sealed(into)
        elif self._way is Way.BYPASS and self._bypass is not None:
            self._bypass.receive(piece)  # checks it as well, where its bytes are
            return
        else:
            self._wire.read_into(into)
        if piece_digest(into, self._seed) != piece.digest:
            raise PieceDamaged(f"blob {piece.blob} at {piece.offset}")

    def poll(self, timeout_s: float) -> bool:
        """Wait until there is something to receive, or the end; return whether there is."""
        return self._wire.poll(timeout_s)

    def end(self) -> None:
        """End the connection; what has been written still arrives."""
        self._lane.close()
        if self._bypass is not None:
            self._bypass.abort()
        self._wire.end()

    def close(self) -> None:
        """End the connection and free what it holds."""
        self.end()
        self._wire.close()

    def _write(self, head: bytes, payload: memoryview) -> None:
        start, size = 0, len(payload)
        while start < size:
            stop = start + self._lane.begin(size - start)
            part = payload[start:stop]
            self._wire.write([head, part] if head and not start else [part])
            self._lane.finish(stop - start)
            start = stop

    def _read(self) -> bytes:
        """Read a record and return its payload."""
        self._wire.read_into(self._head)
        length, sealed = self._head[: LENGTH.size], self._head[LENGTH.size :]
        rest = check_length(length, MAX_RECORD_BYTES) - len(sealed)
        if rest < 0:
            raise ProtocolError("a record that is too short")
        if rest == 0:
            return self._session.open(length, sealed)
        whole = memoryview(bytearray(len(sealed) + rest))
        whole[: len(sealed)] = sealed
        self._wire.read_into(whole[len(sealed) :])
        return self._session.open(length, whole)

    def _read_sealed(self, into: memoryview) -> None:
        """Read a payload that travels in records of its own."""
        buffer = memoryview(bytearray(OVERHEAD_BYTES + SEALED_BYTES))
        for start in range(0, len(into), SEALED_BYTES):
            size = min(SEALED_BYTES, len(into) - start)
            whole = buffer[: OVERHEAD_BYTES + size]
            self._wire.read_into(whole)
            length = whole[: LENGTH.size]
            if check_length(length, size) != size + TAG_BYTES:
                raise ProtocolError(f"a sealed part of a payload that is not of {size} bytes")
            into[start : start + size] = self._session.open(length, whole[LENGTH.size :])
