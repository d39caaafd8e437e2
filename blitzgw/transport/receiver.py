"""The receiving end of an edge: dials, checks each piece, and makes it forwardable.

A damaged piece costs its connection: the next one goes on at the end of what was right. So does a
lost connection; a peer that is gone is not waited for.

Only blobs that nobody else fills are asked for. The others are waited for when those have come;
what is let go of before it is whole is taken over, by a new connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

from blitzgw.core.transfer import BlobStore, EdgeProgress, OpenReceive
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    Bypass,
    Bypasses,
    Channel,
    ChannelLost,
    Piece,
    PieceDamaged,
    Record,
    RecordKind,
    encode_have,
)
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.digests import PieceDigests
from blitzgw.transport.ends import MAX_LOSSES, EdgeFailed, FindStore, StoreEnd, Tell
from blitzgw.transport.governor import Governor
from blitzgw.transport.tcp import TcpWire, dial

log = logging.getLogger(__name__)

FIRST_DIAL_S = 3.0
"""Patience for a sender that does not know the edge yet: its node tells it at about the same time
as ours does us."""

REDIAL_S = 2.0
"""Patience for the connection after one that was lost: longer than the sender's for us."""

MIN_CONNECT_S = 0.2
"""Patience for the last attempt to connect within these. Every attempt has all that is left: the
kernel sends a lost SYN again by itself, and on a slow link the answer stands in a long queue."""

MAX_DAMAGED = 8
"""Damaged pieces after which an edge is given up: its path or its source is broken."""

PROGRESS_S = 0.25
"""How often the node is told how far the edge is."""

MAX_REASON_BYTES = 500
"""How much of a sender's reason is passed on."""

REPLACED_S = 0.05
"""Patience for an edge that this one takes the place of: it is closed at the same time, and lets go
within milliseconds. What it still fills would come last, after all else."""

_POLL_S: Final = 0.1
"""How often to look how far others are with what they fill."""

_BACKOFF_S: Final = (0.01, 0.02, 0.04, 0.08, 0.15)


class Receiver(StoreEnd):
    """The receiving end of one edge."""

    def __init__(
        self,
        message: OpenReceive,
        stores: FindStore,
        digests: PieceDigests,
        tell: Tell,
        governor: Governor,
        bypasses: Bypasses | None = None,
    ) -> None:
        super().__init__(message.edge, stores, digests, tell)
        self._bypasses = None if message.edge.encrypt else bypasses
        self._bypass: Bypass | None = None
        self._address, self._governor = (message.host, message.port), governor
        self._connections = self._damaged = self._losses = 0
        self._told_at = 0.0
        self._mine: set[int] = set()
        """The blobs that this edge fills: all that its store has let it begin and lacks still."""

    def _work(self) -> None:
        store = self._store()
        try:
            while not self._one_connection(store):
                pass
        finally:
            for blob in self._mine:
                store.end(blob, self.terms.id)

    def _one_connection(self, store: BlobStore) -> bool:
        """Take what lacks over one connection; return whether all is there."""
        try:
            channel = self._connect(store)
            self._hold(channel)
            return self._fill(channel, store)
        except PieceDamaged as e:
            self._note_damage(str(e))
        except (ChannelLost, ProtocolError) as e:
            self._note_loss(e)
        finally:
            self._let_go()
        return False

    def _connect(self, store: BlobStore) -> Channel:
        """Dial until the sender knows the edge; raises EdgeFailed where it is gone."""
        patience_s = REDIAL_S if self._connections else FIRST_DIAL_S
        deadline, attempt = time.monotonic() + patience_s, 0
        while True:
            try:
                left_s = max(MIN_CONNECT_S, deadline - time.monotonic())
                sock, session = dial(self._address, self.terms.id, self.terms.key, left_s)
            except ConnectionRefusedError as e:
                raise EdgeFailed("the sender is gone: connection refused") from e
            except (ChannelLost, ProtocolError) as e:
                pause_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                if time.monotonic() + pause_s > deadline or self._closed.wait(pause_s):
                    raise EdgeFailed(f"no connection to the sender: {e}") from e
                attempt += 1
                continue
            self._connections += 1
            lane = self._governor.lane(self.terms.lane)
            wire = TcpWire(sock)
            if self._bypasses is not None:
                self._bypass = self._bypasses.open(store, self.terms.lane, wire.lost, sends=False)
            return SealedChannel(wire, session, lane, self.terms.seed, bypass=self._bypass)

    def _fill(self, channel: Channel, store: BlobStore) -> bool:
        """Take what lacks over one connection, and say when it is all there.

        What others fill is declared as had. Returns False where some of it is to be taken over.
        """
        blobs = self.terms.blobs
        self._begin(store, blobs)
        if self._connections == 1 and not self._mine.issuperset(self._lacking(store)):
            self._closed.wait(REPLACED_S)
            self._begin(store, blobs)
        have = {
            blob: store.resident_bytes(blob) if blob in self._mine else store.size_bytes(blob)
            for blob in blobs
        }
        channel.send(Record(RecordKind.HAVE, encode_have([have[blob] for blob in blobs])))
        asked = frozenset(self._mine)
        while self._mine:
            self._tell_bypass(channel)
            heard = channel.receive()
            if isinstance(heard, Piece):
                self._take_piece(channel, store, heard, have)
            else:
                self._heed(channel, store, heard)
        if not self._await_others(channel, store, asked):
            return False
        channel.send(Record(RecordKind.DONE))
        self._progress(at_once=True)
        return True

    def _lacking(self, store: BlobStore) -> list[int]:
        """Return the edge's blobs that are not all there."""
        blobs = self.terms.blobs
        return [blob for blob in blobs if store.resident_bytes(blob) < store.size_bytes(blob)]

    def _begin(self, store: BlobStore, blobs: Iterable[int]) -> None:
        """Become the filler of those that nobody fills."""
        for blob in blobs:
            if blob not in self._mine and store.begin(blob, self.terms.id):
                self._mine.add(blob)

    def _await_others(self, channel: Channel, store: BlobStore, asked: frozenset[int]) -> bool:
        """Wait for what others fill; return False where this edge fills some of it from now on.

        Bounded by them: every filler ends, and lets go. Raises PieceDamaged where something that
        came by this connection was not what the manifest says.
        """
        while True:
            lacking = self._lacking(store)
            if not lacking:
                return True
            emptied = sorted(asked.intersection(lacking))
            if emptied:
                raise PieceDamaged(f"blobs {emptied} were not what the manifest says")
            self._begin(store, lacking)
            if self._mine:
                log.info("edge_takes_over edge=%s n_blobs=%d", self.terms.id, len(self._mine))
                return False
            if channel.poll(_POLL_S):
                heard = channel.receive()
                if isinstance(heard, Piece):
                    raise ProtocolError(f"a piece of blob {heard.blob}, not asked for")
                self._heed(channel, store, heard)

    def _take_piece(
        self, channel: Channel, store: BlobStore, piece: Piece, have: dict[int, int]
    ) -> None:
        """Receive a piece into its place and make it resident."""
        if have.get(piece.blob) != piece.offset or piece.stop > store.size_bytes(piece.blob):
            raise ProtocolError(f"a piece at {piece.offset} of blob {piece.blob}, not expected")
        with store.view(piece.blob)[piece.offset : piece.stop] as into:
            channel.receive_payload(piece, into)
        if self._bypass is None:  # digests of pieces that came by it are of another kind
            self._digests.keep(piece)
        try:
            store.advance(piece.blob, piece.offset, piece.stop, self.terms.id)
        except ValueError as e:
            self._mine.discard(piece.blob)
            raise PieceDamaged(f"blob {piece.blob} is not ours to fill any more") from e
        have[piece.blob] = piece.stop
        if piece.stop == store.size_bytes(piece.blob):
            self._mine.discard(piece.blob)
        self._losses = 0
        first = self._first_at is None
        self._count(piece.size_bytes)
        self._progress(at_once=first)

    def _tell_bypass(self, channel: Channel) -> None:
        """Tell the sender what is new about the bypass."""
        if self._bypass is not None:
            for word in self._bypass.words():
                channel.send(Record(RecordKind.BYPASS, word))

    def _heed(self, channel: Channel, store: BlobStore, record: Record) -> None:
        if record.kind is RecordKind.ALIVE:
            channel.send(record)
            store.wait(self.terms.blobs[0], 0, 0.0)  # raises where the store is given up
            self._progress()
        elif record.kind is RecordKind.BYPASS and self._bypass is not None:
            self._bypass.hear(record.body)
        elif record.kind is RecordKind.REFUSED:
            raise EdgeFailed(
                f"the sender: {record.body[:MAX_REASON_BYTES].decode(errors='replace')}"
            )
        else:
            raise ProtocolError(f"a record of kind {record.kind.name} from a sender")

    def _note_damage(self, what: str) -> None:
        """Count a damaged piece; raises EdgeFailed when it has been too many."""
        self._damaged += 1
        log.warning("piece_damaged edge=%s what=%r n=%d", self.terms.id, what, self._damaged)
        if self._damaged > MAX_DAMAGED:
            raise EdgeFailed(f"{self._damaged} pieces were damaged; the last one: {what}")
        self._progress(at_once=True)

    def _note_loss(self, error: Exception) -> None:
        """Count a lost connection; raises EdgeFailed when there was no progress in between."""
        self._losses += 1
        if self._closed.is_set() or self._losses > MAX_LOSSES:
            raise EdgeFailed(str(error)) from error
        log.info("edge_lost edge=%s error=%r n=%d", self.terms.id, str(error), self._losses)

    def _progress(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._told_at >= PROGRESS_S:
            self._told_at = now
            resumed = max(0, self._connections - 1)
            self._say(EdgeProgress(self.terms.id, self._payload_bytes, resumed, self._damaged))
