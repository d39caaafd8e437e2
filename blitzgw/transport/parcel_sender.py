"""The sending end of a road: what it is given goes when its turn comes, over one connection.

Two threads: the edge's own reads payloads and writes; another hears what the receiver says, and
says that we live while nothing is written. Either one's end is that of the road.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

from blitzgw.core.transfer import PIECE_BYTES, OpenSend
from blitzgw.crypto.edges import EdgeGate
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    LARGE_PIECE_BYTES,
    STALL_S,
    Channel,
    ChannelLost,
    Piece,
    Record,
    RecordKind,
    Wire,
    piece_digest,
)
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.ends import EdgeEnd, EdgeFailed, Tell
from blitzgw.transport.governor import Lane
from blitzgw.transport.parcel import (
    ROAD_ALIVE_S,
    ROAD_PATH_S,
    WINDOW_BYTES,
    Outgoing,
    Sent,
    decode_taken,
    encode_parcel,
    window_cost,
)
from blitzgw.transport.parcel_queue import Call, ParcelQueue
from blitzgw.transport.receiver import MAX_REASON_BYTES
from blitzgw.transport.sender import FIRST_WAIT_S

log = logging.getLogger(__name__)

LAST_WORD_S = 0.2
"""Patience, where writing has failed, for the receiver's last word, which is to be read yet."""

_POLL_S: Final = 0.1
"""How often to look whether a road without a connection is closed."""

_IDLE_S: Final = 1.0
"""The longest wait for something to send; whatever ends the road ends the wait at once."""

_Offer = tuple[Wire, Session, Lane]


class RoadSender(EdgeEnd):
    """The sending end of one road. The listener asks `gate` and brings connections by `offer`.

    `send` and `drop` may come from any thread and wait for nothing.
    """

    path_s = ROAD_PATH_S

    def __init__(self, message: OpenSend, tell: Tell) -> None:
        super().__init__(message.edge, tell)
        self.gate = EdgeGate(message.edge.id, message.edge.key)
        self._offers: queue.SimpleQueue[_Offer] = queue.SimpleQueue()
        self._settled = False
        """No connection is accepted any more: there is one, or the road has ended."""
        self._changed = threading.Condition()
        self._queue = ParcelQueue()
        self._over = ""
        """Why nothing is sent any more; both are of the condition."""
        self._untaken_bytes = 0
        self._writing = threading.Lock()
        """Of whoever writes to the channel."""
        self._spoke_at = self._heard_at = 0.0

    def offer(self, wire: Wire, session: Session, lane: Lane) -> None:
        """Bring a connection whose hello has been answered; it belongs to the road from here on.

        Until a receiver has proved itself by its first record the newest counts: it may have had to
        dial again. After that there is no other.
        """
        with self._lock:
            if not self._settled:
                self._offers.put((wire, session, lane))
                if self._channel is not None:
                    self._channel.end()
                return
        lane.close()
        wire.close()

    def send(self, outgoing: Sequence[Outgoing], sent: Sent) -> None:
        """Queue parcels; `sent` is told once they have been written, or of the reason (Edges)."""
        with self._changed:
            reason = self._over or self._queue.add(outgoing, sent)
            self._changed.notify_all()
        if reason or not outgoing:
            sent(0, 0.0, reason)

    def drop(self, tickets: Collection[int]) -> None:
        """Forget what is queued by these tickets."""
        with self._changed:
            self._queue.drop(tickets)

    def close(self) -> None:
        """End the road; its thread tells so within a moment."""
        super().close()
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            channel, lane = self._connected()
            try:
                self._use(channel, lane)
            finally:
                self._yielded_s, self._delayed_s = lane.yielded_s, lane.delayed_s
        finally:
            self._settle()

    def _finish(self, reason: str) -> None:
        """Tell whoever has parcels here that they do not go."""
        with self._changed:
            self._over = reason or "the road has ended"
            calls = self._queue.clear()
        for call in calls:
            call.tell(self._over)

    def _connected(self) -> tuple[Channel, Lane]:
        """Wait for a connection of a receiver that proves itself; raises EdgeFailed."""
        deadline = time.monotonic() + FIRST_WAIT_S
        while True:
            wire, session, lane = self._next_offer(deadline)
            channel = SealedChannel(
                wire, session, lane, self.terms.seed, encrypt=self.terms.encrypt
            )
            self._hold(channel)
            try:
                self._hear_hello(channel)
            except ChannelLost as e:
                log.info("road_not_joined edge=%s error=%r", self.terms.id, str(e))
                self._let_go()
                continue
            self._settle()
            return channel, lane

    def _next_offer(self, deadline: float) -> _Offer:
        while not self._closed.is_set():
            try:
                return self._offers.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise EdgeFailed("the receiver has not connected at all") from None
        raise EdgeFailed("closed")

    def _hear_hello(self, channel: Channel) -> None:
        hello = channel.receive()
        if hello != Record(RecordKind.HAVE):
            raise ProtocolError("a receiver of parcels that begins with something else")

    def _settle(self) -> None:
        """Accept no more connections, and close those that nobody has taken."""
        with self._lock:
            self._settled = True
        with suppress(queue.Empty):
            while True:
                wire, _, lane = self._offers.get_nowait()
                lane.close()
                wire.close()

    def _use(self, channel: Channel, lane: Lane) -> None:
        """Send until the road ends; raises why it has."""
        self._spoke_at = self._heard_at = time.monotonic()
        ear = threading.Thread(
            target=self._listen, args=(channel,), name=f"road {self.terms.id}", daemon=True
        )
        ear.start()
        try:
            while True:
                self._send_next(channel, lane)
        except ChannelLost as e:
            ear.join(LAST_WORD_S)
            self._end_by(str(e))
        finally:
            channel.end()  # wakes the other thread, whose every wait this ends
            ear.join()
        raise EdgeFailed(self._over)

    def _send_next(self, channel: Channel, lane: Lane) -> None:
        outgoing = self._await_turn()
        try:
            payload = memoryview(outgoing.read()).cast("B")
            head = encode_parcel(outgoing.parcel, len(payload))
        except Exception as e:  # the engine's matter, whatever it is
            log.warning("parcel_not_read edge=%s error=%r", self.terms.id, e)
            with self._changed:
                call = self._queue.failed()
            self._tell_call(call, f"a parcel could not be read: {e}")
            return
        with self._changed:
            self._untaken_bytes += window_cost(len(payload))
        with lane.message():
            self._write(channel, lane, head, payload)
        with self._changed:
            call = self._queue.written(len(payload))
        self._tell_call(call, "")

    def _await_turn(self) -> Outgoing:
        """Wait for a parcel and for room in the window; raises ChannelLost where the road ends."""
        with self._changed:
            while True:
                if self._over or self._closed.is_set():
                    raise ChannelLost(self._over or "closed")
                item = self._queue.next() if self._untaken_bytes < WINDOW_BYTES else None
                if item is not None:
                    return item.outgoing
                self._changed.wait(_IDLE_S)

    def _write(self, channel: Channel, lane: Lane, head: bytes, payload: memoryview) -> None:
        """Write a parcel; its head goes with the first piece, and so wakes nobody by itself."""
        record: Record | None = Record(RecordKind.PARCEL, head)
        start = 0
        while record is not None or start < len(payload):
            step = LARGE_PIECE_BYTES if lane.is_fast else PIECE_BYTES
            part = payload[start : start + step]
            piece = Piece(0, start, len(part), piece_digest(part, self.terms.seed))
            with self._writing:
                if part:
                    channel.send_piece(piece, part, record)
                elif record is not None:
                    channel.send(record)
                self._spoke_at = time.monotonic()
            self._count(len(part))
            start, record = start + len(part), None

    def _tell_call(self, call: Call | None, reason: str) -> None:
        if call is not None:
            call.tell(reason)

    def _listen(self, channel: Channel) -> None:
        """Hear the receiver, and let it hear us; a thread's whole life."""
        reason = "ended by a fault of its own"
        try:
            while True:
                if channel.poll(ROAD_ALIVE_S):
                    self._heed(channel.receive())
                    self._heard_at = time.monotonic()
                self._stay_alive(channel)
        except (ChannelLost, ProtocolError, EdgeFailed) as e:
            reason = str(e)
        except Exception:
            log.exception("road_failed edge=%s", self.terms.id)
        finally:
            self._end_by(reason)
            channel.end()

    def _end_by(self, reason: str) -> None:
        """Note why the road ends; the first reason counts."""
        with self._changed:
            self._over = self._over or reason
            self._changed.notify_all()

    def _heed(self, heard: Record | Piece) -> None:
        if not isinstance(heard, Record):
            raise ProtocolError("a receiver that sends a piece")
        if heard.kind is RecordKind.TAKEN:
            self._note_taken(decode_taken(heard.body))
        elif heard.kind is RecordKind.REFUSED:
            why = heard.body[:MAX_REASON_BYTES].decode(errors="replace")
            raise EdgeFailed(f"the receiver: {why}")
        elif heard.kind is not RecordKind.ALIVE:
            raise ProtocolError(f"a record of kind {heard.kind.name} from a receiver of parcels")

    def _note_taken(self, cost_bytes: int) -> None:
        with self._changed:
            if cost_bytes > self._untaken_bytes:
                raise ProtocolError("more is taken than was sent")
            self._untaken_bytes -= cost_bytes
            self._changed.notify_all()

    def _stay_alive(self, channel: Channel) -> None:
        now = time.monotonic()
        if now - self._heard_at > STALL_S:
            raise ChannelLost(f"the receiver has been silent for {STALL_S:g} s")
        if now - self._spoke_at < ROAD_ALIVE_S or not self._writing.acquire(blocking=False):
            return  # what is being written says that we live
        try:
            channel.send(Record(RecordKind.ALIVE))
            self._spoke_at = now
        finally:
            self._writing.release()
