"""The sending end of an edge: streams what the receiver lacks, as soon as it is resident here."""

from __future__ import annotations

import logging
import queue
import time
from contextlib import suppress
from typing import Final

from blitzgw.core.transfer import BlobStore, OpenSend, StoreClosed
from blitzgw.crypto.edges import EdgeGate
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    ALIVE_S,
    LARGE_PIECE_BYTES,
    STALL_S,
    Bypass,
    Bypasses,
    Channel,
    ChannelLost,
    Piece,
    Record,
    RecordKind,
    Wire,
    decode_have,
)
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.digests import PieceDigests, piece_stop
from blitzgw.transport.ends import MAX_LOSSES, EdgeFailed, FindStore, StoreEnd, Tell
from blitzgw.transport.governor import Cap, Lane
from blitzgw.transport.nccl_device import DeviceStore

log = logging.getLogger(__name__)

FIRST_WAIT_S = 8.0
"""Patience for the receiver's first connection: it may wait for its store and then dial for
receiver.FIRST_DIAL_S, and be told later than we are."""

RESUME_WAIT_S = 0.8
"""Patience for the connection after one that was lost: the receiver dials again at once, or it is
dead, and then the plan is to be made anew soon."""

_POLL_S: Final = 0.1
"""How long to wait for the store before looking whether the receiver is still there."""

_Offer = tuple[Wire, Session, Lane]


class Sender(StoreEnd):
    """The sending end of one edge. The listener asks `gate` and brings connections by `offer`."""

    def __init__(
        self,
        message: OpenSend,
        stores: FindStore,
        digests: PieceDigests,
        tell: Tell,
        bypasses: Bypasses | None = None,
    ) -> None:
        super().__init__(message.edge, stores, digests, tell)
        self._bypasses = None if message.edge.encrypt else bypasses
        self._bypass: Bypass | None = None
        self._device: DeviceStore | None = None
        """The store, where it is on a GPU."""
        self.gate = EdgeGate(message.edge.id, message.edge.key)
        self._offers: queue.SimpleQueue[_Offer] = queue.SimpleQueue()
        self._lane: Lane | None = None
        self._connections = self._losses = 0
        self._spoke_at = 0.0
        self._asked_at: float | None = None
        """When the first question was sent that the receiver has not answered."""
        self._over = False
        self._pace = Cap(message.edge.rate_bytes_per_s)

    def offer(self, wire: Wire, session: Session, lane: Lane) -> None:
        """Bring a connection whose hello has been answered: it takes the place of any before it.

        From the listener's thread. The connection belongs to the edge from here on.
        """
        with self._lock:
            if self._over:
                _drop(wire, lane)
                return
            self._offers.put((wire, session, lane))
        self._end_channel()

    def _work(self) -> None:
        try:
            store = self._store()
            self._device = store if isinstance(store, DeviceStore) else None
            while not self._one_connection(store):
                pass
        finally:
            self._drop_offers()

    def _one_connection(self, store: BlobStore) -> bool:
        """Stream over the next connection; return whether the receiver has everything."""
        channel = self._next_channel(store)
        lane = self._lane
        try:
            self._stream(channel, store)
        except StoreClosed:
            self._refuse(channel, "the store is given up")
            raise
        except (ChannelLost, ProtocolError) as e:
            self._note_loss(e)
            return False
        else:
            return True
        finally:
            if lane is not None:
                self._yielded_s += lane.yielded_s
                self._delayed_s += lane.delayed_s
            self._let_go()

    def _next_channel(self, store: BlobStore) -> Channel:
        """Wait for a connection; raises EdgeFailed where none comes."""
        deadline = time.monotonic() + (RESUME_WAIT_S if self._connections else FIRST_WAIT_S)
        while not self._closed.is_set():
            try:
                wire, session, lane = self._offers.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    again = "again" if self._connections else "at all"
                    raise EdgeFailed(f"the receiver has not connected {again}") from None
                continue
            self._connections += 1
            self._lane = lane
            if self._bypasses is not None:
                self._bypass = self._bypasses.open(store, self.terms.lane, wire.lost, sends=True)
            channel = SealedChannel(
                wire,
                session,
                lane,
                self.terms.seed,
                encrypt=self.terms.encrypt,
                bypass=self._bypass,
            )
            self._hold(channel)
            return channel
        raise EdgeFailed("closed")

    def _stream(self, channel: Channel, store: BlobStore) -> None:
        """Send what the receiver says it lacks, and wait until it has it."""
        sizes = [store.size_bytes(blob) for blob in self.terms.blobs]
        hello = channel.receive()
        if not isinstance(hello, Record) or hello.kind is not RecordKind.HAVE:
            raise ProtocolError("a receiver that does not say what it has")
        have = decode_have(hello.body, sizes)
        self._spoke_at, self._asked_at = time.monotonic(), None
        for blob, there, size in zip(self.terms.blobs, have, sizes, strict=True):
            self._send_blob(channel, store, blob, there, size)
        while not self._listen(channel, _POLL_S):
            pass
        if self._bypass is not None:
            self._bypass.finish()

    def _send_blob(
        self, channel: Channel, store: BlobStore, blob: int, offset: int, size: int
    ) -> None:
        resident = store.resident_bytes(blob)
        while offset < size:
            stop = piece_stop(offset, size)
            while resident < stop:
                resident = store.wait(blob, stop - 1, _POLL_S)
                if resident < stop and self._listen(channel, 0.0):
                    raise ProtocolError("a receiver that is done too early")
            large = piece_stop(offset, size, LARGE_PIECE_BYTES)
            if resident >= large and self._lane is not None and self._lane.is_fast:
                stop = large
            self._wait_for_pace(channel, stop - offset)
            self._send_piece(channel, store, blob, offset, stop)
            self._count(stop - offset)
            self._spoke_at = time.monotonic()
            self._losses = 0
            offset = stop

    def _wait_for_pace(self, channel: Channel, size: int) -> None:
        """Keep to the edge's own rate, a piece at a time and before any of it is urgent."""
        while wait_s := self._pace.take(size):
            if self._listen(channel, min(wait_s, _POLL_S)):
                raise ProtocolError("a receiver that is done too early")

    def _send_piece(
        self, channel: Channel, store: BlobStore, blob: int, offset: int, stop: int
    ) -> None:
        """Send resident bytes, by the bypass where it takes them."""
        if self._bypass is not None:
            if channel.poll(0.0) and self._listen(channel, 0.0):
                raise ProtocolError("a receiver that is done too early")
            bypassed = self._bypass.piece(blob, offset, stop)
            if bypassed is not None and not (self._lane is not None and self._lane.is_capped):
                channel.send_bypassed(bypassed)
                return
            # A cap is kept chunk by chunk: a whole piece at once would be a burst, or too late.
        with self._on_host(store, blob, offset, stop) as payload:
            piece = self._digests.piece(blob, offset, payload, afresh=self._connections > 1)
            channel.send_piece(piece, payload)

    def _on_host(self, store: BlobStore, blob: int, offset: int, stop: int) -> memoryview:
        """Return resident bytes; from a GPU, whether or not there is a bypass, they are brought."""
        if self._device is not None:
            return self._device.stage(blob, offset, stop)
        return store.view(blob)[offset:stop]

    def _listen(self, channel: Channel, timeout_s: float) -> bool:
        """Hear what the receiver says, and keep it patient; return whether it has everything.

        Raises ChannelLost where it is gone, or has not answered for STALL_S.
        """
        while channel.poll(timeout_s):
            heard = channel.receive()
            self._asked_at = None
            if isinstance(heard, Record) and heard.kind is RecordKind.DONE:
                return True
            self._heed(channel, heard)
            timeout_s = 0.0
        self._stay_alive(channel)
        return False

    def _heed(self, channel: Channel, heard: Record | Piece) -> None:
        if isinstance(heard, Record) and heard.kind is RecordKind.BYPASS:
            if self._bypass is not None:  # without one here the receiver stays unanswered: inline
                self._bypass.hear(heard.body)
                for word in self._bypass.words():
                    channel.send(Record(RecordKind.BYPASS, word))
        elif not isinstance(heard, Record) or heard.kind is not RecordKind.ALIVE:
            raise ProtocolError("a receiver that says what only senders do")

    def _stay_alive(self, channel: Channel) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > STALL_S:
            raise ChannelLost(f"the receiver has not answered for {STALL_S:g} s")
        if now - self._spoke_at >= ALIVE_S:
            channel.send(Record(RecordKind.ALIVE))
            self._spoke_at = now
            if self._asked_at is None:
                self._asked_at = now

    def _note_loss(self, error: Exception) -> None:
        """Count a lost connection; raises EdgeFailed when there was no piece in between."""
        if not self._offers.empty():
            return
        self._losses += 1
        if self._closed.is_set() or self._losses > MAX_LOSSES:
            raise EdgeFailed(str(error)) from error
        log.info("edge_lost edge=%s error=%r n=%d", self.terms.id, str(error), self._losses)

    def _refuse(self, channel: Channel, reason: str) -> None:
        with suppress(ChannelLost):
            channel.send(Record(RecordKind.REFUSED, reason.encode()))

    def _drop_offers(self) -> None:
        """Close connections that nobody has taken."""
        with self._lock:
            self._over = True
        with suppress(queue.Empty):
            while True:
                wire, _, lane = self._offers.get_nowait()
                _drop(wire, lane)


def _drop(wire: Wire, lane: Lane) -> None:
    lane.close()
    wire.close()
