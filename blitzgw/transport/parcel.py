"""What a road carries: parcels one after the other, and what both ends say about them.

    road   := HAVE, empty (receiver) · parcels (sender), TAKEN (receiver), ALIVE (both)
    parcel := PARCEL (ticket u64 · layers u16, u16 · positions u32, u32 · size u64) · its pieces

The pieces of a parcel follow its head without gaps, all of blob 0, each with its digest. Nothing of
another parcel comes between them. The receiver reads whatever comes at once, so that a connection
without movement is a dead one; what keeps the sender from sending more than is taken is the window:
it begins a parcel only while less than WINDOW_BYTES of those before it are not known to be TAKEN.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blitzgw.core.parcels import MAX_PARCEL_BYTES, Parcel
from blitzgw.core.span import Span
from blitzgw.errors import ProtocolError

WINDOW_BYTES = 32 << 20
"""What may be on its way without having been taken when another parcel begins: the path of a
100 Gbit/s network for 2.5 ms. A receiver holds so much, and one parcel, beside what it has taken.
"""

PARCEL_COST_BYTES = 4096
"""What a parcel counts in the window beside its payload, so that their number is bounded too."""

TAKEN_STEP_BYTES = WINDOW_BYTES // 4
"""What is taken before the receiver says so: the sender never waits for less to be said."""

MAX_QUEUED_PARCELS = 1 << 14
"""Of one road, at its sender: 128 requests of 128 layers. More is a sender that nobody bounds."""

ROAD_ALIVE_S = 0.3
"""How often each end says that it lives, where it says nothing else."""

ROAD_PATH_S = 1.0
"""How long the network may leave bytes unacknowledged: the peer's machine, or the path, is gone.
A dead process is noticed at once, one that is frozen while its machine lives within STALL_S."""

MAX_TICKET: Final = (1 << 63) - 1

_HEAD: Final = struct.Struct("<QHHIIQ")
_TAKEN: Final = struct.Struct("<Q")

Sent = Callable[[int, float, str], None]
"""Told once of what `send_parcels` was given: bytes of payload, seconds, reason (empty: all sent).
"""

TakeParcel = Callable[[str, Parcel, memoryview], None]
"""Takes a whole, checked parcel of an edge; the bytes are its own. It may wait for room, until the
edge's `RoadEnded`."""

RoadEnded = Callable[[str], None]
"""Told of a receiving end, before its `EdgeClosed`: a `TakeParcel` of that edge that waits for room
is to return at once, and none after it may wait (one may just be starting)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A parcel that is to be sent, and how its payload is had when its turn has come.

    `read` is called on the road's sending thread, once. What it gives must stay as it is until it
    has been written: after a drop nobody tells when that is, so that a copy is the thing to give.
    It may raise; nothing of the parcel has been sent then.
    """

    parcel: Parcel
    read: Callable[[], memoryview]


def window_cost(size_bytes: int) -> int:
    """Return what a parcel of that payload counts in the window."""
    return size_bytes + PARCEL_COST_BYTES


def encode_parcel(parcel: Parcel, size_bytes: int) -> bytes:
    """Return the head of a parcel as the body of a record; raises ProtocolError beyond limits."""
    try:
        body = _HEAD.pack(
            parcel.ticket,
            parcel.span.start,
            parcel.span.stop,
            parcel.start,
            parcel.stop,
            size_bytes,
        )
    except struct.error as e:
        raise ProtocolError(f"a parcel beyond all limits: {e}") from e
    decode_parcel(body)
    return body


def decode_parcel(body: bytes) -> tuple[Parcel, int]:
    """Return a parcel and the size of its payload; raises ProtocolError for anything senseless."""
    if len(body) != _HEAD.size:
        raise ProtocolError(f"the head of a parcel in {len(body)} bytes")
    ticket, first, last, start, stop, size = _HEAD.unpack(body)
    if ticket > MAX_TICKET:
        raise ProtocolError(f"a parcel by ticket {ticket}")
    if first > last or start > stop:
        raise ProtocolError(f"a parcel of layers [{first}, {last}), positions [{start}, {stop})")
    if size > MAX_PARCEL_BYTES:
        raise ProtocolError(f"a parcel of {size} bytes; the limit is {MAX_PARCEL_BYTES}")
    return Parcel(ticket, Span(first, last), start, stop), size


def encode_taken(cost_bytes: int) -> bytes:
    """Return how much of the window has been taken since the last word, as the body of a record."""
    return _TAKEN.pack(cost_bytes)


def decode_taken(body: bytes) -> int:
    """Return what `encode_taken` was given; raises ProtocolError for a body of another size."""
    if len(body) != _TAKEN.size:
        raise ProtocolError(f"{len(body)} bytes to say what has been taken")
    return int(_TAKEN.unpack(body)[0])
