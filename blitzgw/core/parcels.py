"""What travels between workers for requests: hidden states at a layer, and KV.

A road is an edge of parcels (core/live.py). The sending worker reads them from its engine when
their turn comes; hidden states go before KV, both before weights. The receiving worker keeps what
arrives until a step imports it or it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.span import Span

PARCELS = "parcels"
"""In place of the root of a manifest: an edge of parcels."""

MAX_PARCEL_BYTES = 256 << 20
"""Of one parcel: the KV of a layer, or the hidden states, of 128k tokens at 2 KiB each."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a parcel is, of positions `[start, stop)` of the sequence that `ticket` stands for.

    With an empty span the hidden states that are the input of layer `span.start`; else the KV of
    the span's layers.
    """

    ticket: int
    span: Span
    start: int
    stop: int

    @property
    def is_hidden(self) -> bool:
        """Whether it carries hidden states."""
        return not len(self.span)


# Node → worker.


@dataclass(frozen=True, slots=True)
class DropParcels:
    """Forget what has arrived or still arrives by these tickets of a road, or is still to be sent.

    No `ParcelsSent` follows for what was to be sent.
    """

    edge: str
    tickets: tuple[int, ...]


# Worker → node.


@dataclass(frozen=True, slots=True)
class ParcelArrived:
    """A parcel is here, whole and as it was sent: a step posted from now on may import it."""

    edge: str
    parcel: Parcel


@dataclass(frozen=True, slots=True)
class ParcelsSent:
    """All parcels of a `Send` (core/step.py) have been written: its KV may be given away.

    `seconds` from the step to the last byte; `size_bytes` of payload. `reason` is empty, or why
    they have not been sent, such as a road's end.
    """

    edge: str
    ticket: int
    size_bytes: int
    seconds: float
    reason: str = ""
