"""The receiving end of a road: dials once, checks what comes, and hands over what is whole.

Two threads: the edge's own reads whatever comes, and says that we live; another hands parcels over,
and may be kept waiting there. What has not been taken when the road ends is forgotten.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from blitzgw.core.parcels import Parcel
from blitzgw.core.transfer import OpenReceive
from blitzgw.crypto.records import Session
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import (
    STALL_S,
    Channel,
    ChannelLost,
    Piece,
    PieceDamaged,
    Record,
    RecordKind,
    Wire,
)
from blitzgw.transport.channel import SealedChannel
from blitzgw.transport.ends import EdgeEnd, EdgeFailed, Tell
from blitzgw.transport.governor import Governor
from blitzgw.transport.parcel import (
    ROAD_ALIVE_S,
    ROAD_PATH_S,
    TAKEN_STEP_BYTES,
    WINDOW_BYTES,
    RoadEnded,
    TakeParcel,
    decode_parcel,
    encode_taken,
    window_cost,
)
from blitzgw.transport.receiver import FIRST_DIAL_S, MAX_REASON_BYTES, MIN_CONNECT_S
from blitzgw.transport.tcp import TcpWire, dial

log = logging.getLogger(__name__)

HAND_S = 5.0
"""Patience, when a road has ended, for whoever takes a parcel and has been told so."""

_BACKOFF_S: Final = (0.01, 0.02, 0.04, 0.08, 0.15)

Dial = Callable[[float], tuple[Wire, Session]]


class RoadReceiver(EdgeEnd):
    """The receiving end of one road. `dial` (by default TCP) gives a connection that is shaken."""

    def __init__(
        self,
        message: OpenReceive,
        tell: Tell,
        governor: Governor,
        take: TakeParcel,
        road_ended: RoadEnded | None = None,
        dial: Dial | None = None,
    ) -> None:
        super().__init__(message.edge, tell)
        self._address, self._governor = (message.host, message.port), governor
        self._take, self._road_ended = take, road_ended
        self._dial = dial or self._dial_tcp
        self._changed = threading.Condition()
        self._whole: deque[tuple[Parcel, memoryview]] = deque()
        self._over = False
        """Nothing is handed over any more; these are of the condition."""
        self._failure = ""
        """Why a parcel was not taken; written before the channel is ended for it."""
        self._untaken_bytes = 0
        """Of the window, as the sender knows it or better; and what it has not been told of."""
        self._untold_bytes = 0
        self._writing = threading.Lock()
        self._spoke_at = self._heard_at = 0.0
        self._arriving: _Arriving | None = None

    def _work(self) -> None:
        try:
            channel = self._connect()
            self._hold(channel)
            self._use(channel)
        finally:
            self._end_taking()

    def _use(self, channel: Channel) -> None:
        """Receive until the road ends; raises why it has."""
        hand = threading.Thread(
            target=self._hand_over, args=(channel,), name=f"road {self.terms.id}", daemon=True
        )
        hand.start()
        try:
            channel.send(Record(RecordKind.HAVE))
            self._receive(channel)
        except (ProtocolError, PieceDamaged) as e:
            self._refuse(channel, str(e))
            raise EdgeFailed(str(e)) from e
        except ChannelLost as e:
            raise EdgeFailed(self._failure or str(e)) from e
        finally:
            channel.end()
            self._end_taking()
            hand.join(HAND_S)
            if hand.is_alive():
                log.error("parcel_never_taken edge=%s", self.terms.id)

    def _receive(self, channel: Channel) -> None:
        self._spoke_at = self._heard_at = time.monotonic()
        while True:
            if channel.poll(ROAD_ALIVE_S):
                heard = channel.receive()
                if isinstance(heard, Piece):
                    self._fill(channel, heard)
                else:
                    self._heed(heard)
                self._heard_at = time.monotonic()
            self._stay_alive(channel)

    def _heed(self, record: Record) -> None:
        if record.kind is RecordKind.PARCEL:
            self._begin(record.body)
        elif record.kind is RecordKind.REFUSED:
            why = record.body[:MAX_REASON_BYTES].decode(errors="replace")
            raise EdgeFailed(f"the sender: {why}")
        elif record.kind is not RecordKind.ALIVE:
            raise ProtocolError(f"a record of kind {record.kind.name} from a sender of parcels")

    def _begin(self, body: bytes) -> None:
        """Make room for a parcel, the only time that memory is."""
        if self._arriving is not None:
            raise ProtocolError("a parcel within another")
        parcel, size = decode_parcel(body)
        with self._changed:
            if self._untaken_bytes >= WINDOW_BYTES:
                raise ProtocolError("a parcel beyond the window")
            self._untaken_bytes += window_cost(size)
        try:
            self._arriving = _Arriving(parcel, size)
        except MemoryError as e:
            raise EdgeFailed(f"no memory for a parcel of {size} bytes") from e
        self._note_whole()

    def _fill(self, channel: Channel, piece: Piece) -> None:
        """Receive the next piece into its place."""
        arriving = self._arriving
        if arriving is None or piece.blob or piece.offset != arriving.at:
            raise ProtocolError(f"a piece at {piece.offset} of {piece.blob}, not expected")
        if piece.stop > len(arriving.payload):
            raise ProtocolError("a piece beyond its parcel")
        channel.receive_payload(piece, arriving.payload[piece.offset : piece.stop])
        arriving.at = piece.stop
        self._count(piece.size_bytes)
        self._note_whole()

    def _note_whole(self) -> None:
        arriving = self._arriving
        if arriving is None or arriving.at < len(arriving.payload):
            return
        self._arriving = None
        with self._changed:
            self._whole.append((arriving.parcel, arriving.payload))
            self._changed.notify_all()

    def _hand_over(self, channel: Channel) -> None:
        """Hand over what is whole, one by one; a thread's whole life."""
        try:
            while (whole := self._next_whole()) is not None:
                self._take(self.terms.id, *whole)
                self._note_taken(channel, window_cost(len(whole[1])))
        except ChannelLost:
            pass  # the other thread knows it as well
        except Exception as e:
            if self._over:
                log.debug("parcel_not_taken edge=%s error=%r", self.terms.id, e)
                return
            log.exception("parcel_not_taken edge=%s", self.terms.id)
            self._failure = f"a parcel was not taken: {e}"
            self._refuse(channel, self._failure)
            channel.end()

    def _next_whole(self) -> tuple[Parcel, memoryview] | None:
        """Wait for the next one, for as long as the road lives; None when it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._whole)
            return None if self._over else self._whole.popleft()

    def _note_taken(self, channel: Channel, cost_bytes: int) -> None:
        with self._changed:
            self._untold_bytes += cost_bytes
            untold = self._untold_bytes
            if untold < TAKEN_STEP_BYTES:
                return
            self._untaken_bytes -= untold
            self._untold_bytes = 0
        self._say_record(channel, Record(RecordKind.TAKEN, encode_taken(untold)))

    def _end_taking(self) -> None:
        """Forget what nobody has taken, and wake whoever waits for room; once."""
        with self._changed:
            if self._over:
                return
            self._over = True
            self._whole.clear()
            self._changed.notify_all()
        if self._road_ended is not None:
            self._road_ended(self.terms.id)

    def _say_record(self, channel: Channel, record: Record) -> None:
        with self._writing:
            channel.send(record)
            self._spoke_at = time.monotonic()

    def _stay_alive(self, channel: Channel) -> None:
        now = time.monotonic()
        if now - self._heard_at > STALL_S:
            raise ChannelLost(f"the sender has been silent for {STALL_S:g} s")
        if now - self._spoke_at >= ROAD_ALIVE_S:
            self._say_record(channel, Record(RecordKind.ALIVE))

    def _refuse(self, channel: Channel, reason: str) -> None:
        with suppress(ChannelLost):
            self._say_record(channel, Record(RecordKind.REFUSED, reason.encode()))

    def _connect(self) -> Channel:
        """Dial until the sender knows the edge; raises EdgeFailed where it is gone."""
        deadline, attempt = time.monotonic() + FIRST_DIAL_S, 0
        while True:
            try:
                wire, session = self._dial(max(MIN_CONNECT_S, deadline - time.monotonic()))
            except ConnectionRefusedError as e:
                raise EdgeFailed("the sender is gone: connection refused") from e
            except (ChannelLost, ProtocolError) as e:
                pause_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                if time.monotonic() + pause_s > deadline or self._closed.wait(pause_s):
                    raise EdgeFailed(f"no connection to the sender: {e}") from e
                attempt += 1
                continue
            lane = self._governor.lane(self.terms.lane)
            return SealedChannel(wire, session, lane, self.terms.seed)

    def _dial_tcp(self, patience_s: float) -> tuple[Wire, Session]:
        sock, session = dial(self._address, self.terms.id, self.terms.key, patience_s)
        return TcpWire(sock, path_s=ROAD_PATH_S), session


class _Arriving:
    """A parcel of which `at` bytes are there."""

    def __init__(self, parcel: Parcel, size: int) -> None:
        self.parcel, self.at = parcel, 0
        self.payload = memoryview(bytearray(size))
