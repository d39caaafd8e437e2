"""What travels between two workers, whatever carries it: pieces one way, small records both ways.

    record := sealed (kind u8 · size u32 · body · zeros up to the size of a piece's head)
    piece  := sealed (kind u8 · flags u8 · blob u32 · offset u64 · size u32 · xxh3-64 u64) · payload
    payload is the bytes themselves, or records of 64 KiB of them, or elsewhere (by a bypass)

Kinds are appended, never reused. No record is shorter than a piece's head, so that one read fetches
nearly every one.
Records and the heads of pieces are sealed (crypto/records.py). A payload goes from and into the
buffers of stores; it is in clear unless the channel seals it too: its digest stands in the sealed
head, under a seed that only the two ends know.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

import xxhash

from blitzgw.core.transfer import PIECE_BYTES, BlobStore, TrafficClass
from blitzgw.errors import ProtocolError

STALL_S = 5.0
"""A connection that moves no byte for so long, while one should move, is lost: its peer is frozen
or out of reach. Well above what a loaded machine keeps a thread waiting, or a packet's resend."""

ALIVE_S = 1.0
"""How often a sender that has nothing to send says so: several fit into STALL_S."""

CHUNK_BYTES = 128 << 10
"""What is written before the governor is asked again, where others have urgent bytes or the link is
slow: an urgent message finds so much before it, 2.6 ms at 400 Mbit/s."""

MAX_CHUNK_BYTES = 1 << 20
"""What is written at a time where the link takes it within CHUNK_S: eight turns and eight system
calls per megabyte cost a tenth of the throughput of a fast one."""

CHUNK_S = 0.0026
"""How long writing a chunk may take, by the rate so far: that of CHUNK_BYTES at 400 Mbit/s."""

MAX_RECORD_BYTES = 64 << 10
"""The longest record: how many bytes of each of 4,098 blobs are there, 8 bytes each."""

MAX_PIECE_BYTES = 8 * PIECE_BYTES
"""The longest piece that is taken; what a damaged one costs."""

LARGE_PIECE_BYTES = 4 * PIECE_BYTES
"""The size of pieces where so much is resident already and the link takes it in 4 × CHUNK_S: what
is paid per piece at both ends, some 90 µs, is then paid once in four megabytes."""

_SEED_MASK: Final = (1 << 64) - 1


class ChannelLost(Exception):
    """The connection has ended, or the peer is silent; what it said is in the message."""


class PieceDamaged(Exception):
    """A piece whose bytes are not those that its digest was made of."""


class RecordKind(IntEnum):
    """What a record says."""

    PIECE = 1
    """The head of a piece; its payload follows."""
    HAVE = 2
    """How many bytes of each blob of the edge the receiver has (u64 each), in the edge's order."""
    ALIVE = 3
    """Nothing to send yet. The receiver answers with the same."""
    DONE = 4
    """The receiver has everything."""
    REFUSED = 5
    """The edge cannot go on; why, in UTF-8."""
    BYPASS = 6
    """What the ends of a bypass say to set it up; the body is the bypass's own."""
    PARCEL = 7
    """The head of a parcel, on a road; its pieces follow (parcel.py)."""
    TAKEN = 8
    """How much of a road's window has been taken (u64) since the last word of it."""


class Way(IntEnum):
    """How a payload travels; the flags of a piece's head."""

    INLINE = 0
    BYPASS = 1
    SEALED = 2


@dataclass(frozen=True, slots=True)
class Record:
    """A small message between the ends of a channel."""

    kind: RecordKind
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes `[offset, offset + size_bytes)` of a blob, and their digest (`piece_digest`)."""

    blob: int
    offset: int
    size_bytes: int
    digest: int

    @property
    def stop(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.size_bytes


class Bypass(Protocol):
    """Another way for payloads than the channel's own connection; heads stay on the channel.

    It belongs to one connection of one edge, and takes payloads from and into the edge's store, on
    whatever device that is; the digests of its pieces are its own. The edge's thread calls it.
    """

    def words(self) -> list[bytes]:
        """Return what is to be told to the other end now, as bodies of BYPASS records."""

    def hear(self, body: bytes) -> None:
        """Take what the other end has told; raises ProtocolError."""

    def piece(self, blob: int, offset: int, stop: int) -> Piece | None:
        """Return the head of a piece that is to go this way, None where it is to go inline.

        Raises ChannelLost where a piece before it has not arrived.
        """

    def send(self, piece: Piece) -> None:
        """Send a payload whose head has been sent; raises ChannelLost, also for one before it."""

    def receive(self, piece: Piece) -> None:
        """Receive the payload whose head has come; raises ChannelLost, PieceDamaged."""

    def finish(self) -> None:
        """Wait for what has been sent, once the receiver has it all; raises ChannelLost."""

    def abort(self) -> None:
        """Make `send` and `receive` return, now and for ever. From any thread."""


class Bypasses(Protocol):
    """Makes bypasses: what a worker has beside TCP."""

    def open(
        self, store: BlobStore, kind: TrafficClass, lost: Callable[[], bool], *, sends: bool
    ) -> Bypass | None:
        """Return the bypass of a new connection, None where the store is out of its reach.

        `lost` says whether the peer has ended the connection (Wire.lost).
        """


class Channel(Protocol):
    """One authenticated connection: pieces one way, records both ways.

    One thread sends and one receives (it may be the same one). `end` may be called from any, and
    ends what they wait for; `close` by their owner, when both have returned. All others raise
    ChannelLost once it has ended, at whichever end, or when the peer has been silent for STALL_S,
    and ProtocolError for what no peer would send.
    """

    def send(self, record: Record) -> None:
        """Send a record."""

    def send_piece(self, piece: Piece, payload: memoryview, before: Record | None = None) -> None:
        """Send a piece, chunk by chunk as its class of traffic may; with it a record before it."""

    def send_bypassed(self, piece: Piece) -> None:
        """Send the head of a piece, and its payload by the channel's bypass."""

    def receive(self) -> Record | Piece:
        """Wait for the next record or piece; a piece's payload is to be received next."""

    def receive_payload(self, piece: Piece, into: memoryview) -> None:
        """Receive a piece's payload; raises PieceDamaged, after which the channel is of no use."""

    def poll(self, timeout_s: float) -> bool:
        """Wait until there is something to receive, or the end; return whether there is."""

    def end(self) -> None:
        """End the connection; what has been written still arrives."""

    def close(self) -> None:
        """End the connection and free what it holds."""


class Wire(Protocol):
    """A connected pair of byte streams: what a channel of records stands on.

    One thread writes and one reads. Raises ChannelLost as a channel does.
    """

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write all of it."""

    def read_into(self, view: memoryview) -> None:
        """Fill a buffer."""

    def poll(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or the end; return whether there is."""

    def lost(self) -> bool:
        """Whether the peer has ended the connection, as far as is known; without waiting."""

    def end(self) -> None:
        """End both streams; from any thread. A peer that writes may notice at `close` only."""

    def close(self) -> None:
        """End both streams and free what they hold, when no thread uses them."""


def piece_digest(payload: memoryview | bytes | bytearray, seed: int) -> int:
    """Return the xxh3-64 of a piece's bytes under an operation's seed."""
    return int(xxhash.xxh3_64_intdigest(payload, seed & _SEED_MASK))


_RECORD: Final = struct.Struct("<BI")
_PIECE: Final = struct.Struct("<BBIQIQ")

HEAD_BYTES = _PIECE.size
"""The size of a piece's head, and of the shortest record."""


def encode_piece(piece: Piece, way: Way) -> bytes:
    """Return the head of a piece as the payload of a record."""
    return _PIECE.pack(
        RecordKind.PIECE, way, piece.blob, piece.offset, piece.size_bytes, piece.digest
    )


def decode_piece(payload: bytes) -> tuple[Piece, Way]:
    """Return what `encode_piece` was given; raises ProtocolError for anything else."""
    if len(payload) != _PIECE.size:
        raise ProtocolError(f"the head of a piece in {len(payload)} bytes")
    _, flags, blob, offset, size, digest = _PIECE.unpack(payload)
    if not 1 <= size <= MAX_PIECE_BYTES:
        raise ProtocolError(f"a piece of {size} bytes; the limit is {MAX_PIECE_BYTES}")
    try:
        return Piece(blob, offset, size, digest), Way(flags)
    except ValueError as e:
        raise ProtocolError(f"a payload that travels in an unknown way ({flags})") from e


def encode_record(record: Record) -> bytes:
    """Return a record as what is sealed of it."""
    return (_RECORD.pack(record.kind, len(record.body)) + record.body).ljust(HEAD_BYTES, b"\0")


def decode_record(payload: bytes) -> Record:
    """Return what `encode_record` was given; raises ProtocolError for anything else."""
    kind, size = _RECORD.unpack_from(payload)
    stop = _RECORD.size + size
    if max(stop, HEAD_BYTES) != len(payload) or any(payload[stop:]):
        raise ProtocolError(f"a record of {size} bytes in {len(payload)}")
    try:
        return Record(RecordKind(kind), payload[_RECORD.size : stop])
    except ValueError as e:
        raise ProtocolError(f"a record of unknown kind {kind}") from e


def encode_have(have: Sequence[int]) -> bytes:
    """Return how many bytes of each blob are there, as the body of a record."""
    return struct.pack(f"<{len(have)}Q", *have)


def decode_have(body: bytes, sizes: Sequence[int]) -> list[int]:
    """Return what `encode_have` was given; raises ProtocolError unless it fits blobs of `sizes`."""
    if len(body) != 8 * len(sizes):
        raise ProtocolError(f"{len(body)} bytes to say what is there of {len(sizes)} blobs")
    have = list(struct.unpack(f"<{len(sizes)}Q", body))
    if any(there > size for there, size in zip(have, sizes, strict=True)):
        raise ProtocolError("more of a blob is there than it has bytes")
    return have
